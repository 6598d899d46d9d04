package cli

import (
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/region"
)

// bundleFlags adds what is said of a bundle, whatever it is made of.
func (a *app) bundleFlags(c *cobra.Command, to *region.BundleSpec, mappings *[]string) {
	f := c.Flags()
	f.StringVar(&to.Name, "name", "", "`NAME` of what is in the bundle (default the bundle's own)")
	f.StringVar(&to.Description, "description", "", "`TEXT` of at most 1024 bytes")
	f.StringVar((*string)(&to.KernelID), "kernel", "", "kernel that its guests start with, an `AKI` (default that of the instance, else pv-grub)")
	f.StringVar((*string)(&to.RamdiskID), "ramdisk", "", "ramdisk that goes with the kernel, an `ARI`")
	f.StringVar(&to.KernelCmdline, "kernel-cmdline", "", "command `LINE` of the kernel")
	f.StringSliceVar(&to.ProductCodes, "product-codes", nil, "product `CODES` that the bundle carries, with commas between them")
	f.StringArrayVar(&to.Include, "include", nil, "`PATTERN` of files that the safety filter is to leave in; may be repeated")
	f.StringArrayVar(&to.Exclude, "exclude", nil, "`PATTERN` of files and folders to leave out besides; may be repeated")
	f.BoolVar(&to.NoFilter, "no-filter", false, "leave nothing out but what --exclude names")
	f.BoolVar(&to.Unsigned, "unsigned", false, "do not sign the bundle")
	f.StringVar(&to.ChunkSizes, "chunk-size", "", "`SIZES` of chunks in KiB, MIN:AVG:MAX (default 16:64:256)")
	bundleStoreFlag(c, &to.Store)
	mappingFlag(c, mappings)
	dryFlag(c, &to.DryRun)
}

func (a *app) bundleCreate() *cobra.Command {
	var in region.CreateBundleInput
	var mappings []string
	var arch, boot, size string
	c := &cobra.Command{
		Use: "create TEMPLATE BUNDLE", Short: "Pack a filesystem template into an object store", Args: args(2, 2), ValidArgsFunction: once(a.completeRecipes),
		Long: `Pack a template into an object store, cut by content into chunks of which each is
stored once in a bucket, with a signed manifest. A template is

  a folder, or a tar (also .gz, .xz, .zst, .bz2), which becomes an ext4 filesystem
  a container image: an OCI layout, or what docker save has written
  a recipe, by its folder or name, which is built
  a filesystem or disk image in any format that kami import reads

Trees and filesystems are for guests that start with a kernel (paravirtual), whole
disks for those that boot firmware (hvm). With --partition gpt a tree gets boot
loaders for BIOS and UEFI.

Of a tree the safety filter leaves out what is in /proc, /sys, /dev, /tmp and
/mnt, private keys (*.priv, *id_rsa* and the like, *.jks, and those of *.pem and
*.gpg that hold one), */.ssh/authorized_keys, */.*_history and *.sw[op].`,
		Example: "  kami bundle create /srv/rootfs images/web-1\n" +
			"  kami bundle create rootfs.tar.zst images/web-1 --size 2GiB --store s3://kami/eu\n" +
			"  kami bundle create debian-12 images/debian-12 --partition gpt",
		RunE: func(c *cobra.Command, given []string) (err error) {
			if err := oneOf("architecture", arch, architectures()...); err != nil {
				return err
			}
			in.Source, in.Location = given[0], given[1]
			if in.BlockDeviceMappings, err = parseMappings(mappings); err != nil {
				return err
			}
			if in.Size, err = sizeOf("size", size); err != nil {
				return err
			}
			if in.Script != "" {
				if in.Script, err = filepath.Abs(in.Script); err != nil {
					return err
				}
			}
			in.Architecture, in.BootMode = ami.Architecture(arch), ami.BootMode(boot)
			return a.with(c.Context(), func(r *region.Region) error {
				b, err := r.CreateBundle(c.Context(), in)
				if err != nil {
					return err
				}
				return a.printBundles([]region.Bundle{b})
			})
		},
	}
	f := c.Flags()
	f.StringVar(&in.Kind, "kind", "", "`KIND` of the template: "+strings.Join(region.BundleKinds(), ", ")+" (default found by looking)")
	f.StringVar(&size, "size", "", "`SIZE` of the root filesystem, such as 2GiB (default by what is in it)")
	f.StringVar(&in.Partition, "partition", "", "partition `TABLE`: "+strings.Join(region.BundlePartitions(), ", ")+" (default none for a tree, else as it is)")
	f.StringVar(&in.Script, "script", "", "`PROGRAM` that is run with the tree's folder as its argument, before that is packed")
	f.StringVar(&in.RootDeviceName, "root-device-name", "", "`DEVICE` that the guest boots from (default /dev/sda1)")
	f.StringVar(&arch, "architecture", "", "`ARCH` of the guest: x86_64, arm64 or i386 (default what the template says)")
	f.StringVar(&boot, "boot-mode", "", "`MODE` of booting: legacy-bios, uefi or uefi-preferred (default found by looking)")
	completeValues(c, "kind", region.BundleKinds()...)
	completeValues(c, "partition", region.BundlePartitions()...)
	completeValues(c, "boot-mode", bootModes()...)
	completeValues(c, "architecture", architectures()...)
	a.bundleFlags(c, &in.BundleSpec, &mappings)
	return c
}

func (a *app) bundleInstance() *cobra.Command {
	var in region.BundleInstanceInput
	var mappings []string
	c := &cobra.Command{
		Use: "instance INSTANCE BUNDLE", Short: "Pack the root disk of an instance", Args: args(2, 2), ValidArgsFunction: once(a.completeInstances),
		Long: `Pack the root disk of an instance, running or stopped, as it is at one instant. A
running guest goes on; its filesystems are frozen for the instant where its agent
answers. Kernel, ramdisk, mapping, architecture and boot mode are the instance's,
unless they are said.

From ext2, ext3 and ext4 the safety filter takes out what kami bundle create would
leave out, and what the blocks that no file has still hold. Other filesystems are
packed block by block as they are, which has to be said: --no-filter.`,
		Example: "  kami bundle instance i-0123456789abcdef0 images/web-2\n  kami bundle instance i-0123456789abcdef0 images/web-2 --include '*/.ssh/authorized_keys'",
		RunE: func(c *cobra.Command, given []string) (err error) {
			in.Location = given[1]
			if in.BlockDeviceMappings, err = parseMappings(mappings); err != nil {
				return err
			}
			return a.with(c.Context(), func(r *region.Region) error {
				if in.InstanceID, err = a.instanceID(c.Context(), r, given[0]); err != nil {
					return err
				}
				b, err := r.BundleInstance(c.Context(), in)
				if err != nil {
					return err
				}
				return a.printBundles([]region.Bundle{b})
			})
		},
	}
	c.Flags().BoolVar(&in.Decrypt, "decrypt", false, "pack what is on an encrypted volume into a bundle that is not")
	requireFlag(c, &in.Require)
	a.bundleFlags(c, &in.BundleSpec, &mappings)
	return c
}
