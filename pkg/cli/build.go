package cli

import (
	"errors"

	"github.com/spf13/cobra"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/region"
)

func (a *app) build() *cobra.Command {
	var in region.BuildInput
	var tags []string
	var arch string
	c := &cobra.Command{
		Use: "build RECIPE", Short: "Build an image from a recipe", Args: args(1, 1), ValidArgsFunction: once(a.completeRecipes),
		Long: `Build an image from a recipe: a folder with a recipe.yaml, or the name of one
that comes with kami (tiny, debian-12, web). Names are looked up in the folders
of KAMI_RECIPES, then in ./images and where kami is installed. A paravirtual
image has the root file system alone: no partitions and no boot loader. An
instance-store image is packed into a bundle, and registered of it.`,
		Example: "  kami build tiny\n  kami build ./images/web --name web-1\n  kami build tiny --virtualization-type paravirtual --name tiny-pv\n  kami build tiny --root-device-type instance-store --name tiny-is\n  kami build tiny --architecture arm64 --name tiny-arm64",
		RunE: func(c *cobra.Command, given []string) (err error) {
			if in.Tags, err = parseTags(tags); err != nil {
				return err
			}
			if err := errors.Join(oneOf("virtualization-type", in.VirtualizationType, ami.VirtualizationTypes()...), oneOf("root-device-type", in.RootDeviceType, ami.RootDeviceTypes()...), oneOf("architecture", arch, architectures()...)); err != nil {
				return err
			}
			in.Recipe, in.Architecture = given[0], ami.Architecture(arch)
			return a.with(c.Context(), func(r *region.Region) error {
				image, err := r.BuildImage(c.Context(), in)
				if err != nil {
					return err
				}
				return a.printImages([]ami.Image{image})
			})
		},
	}
	f := c.Flags()
	f.StringVar(&in.Name, "name", "", "`NAME` of the image (default the recipe's and the time)")
	f.StringVar(&in.Description, "description", "", "`TEXT` of at most 255 characters (default the recipe's)")
	f.BoolVar(&in.NoRelative, "no-relative", false, "do not lay the disk over a layer of the store that is like it")
	f.StringVar(&arch, "architecture", "", "`ARCH` of the guest: x86_64, arm64 or i386 (default the recipe's)")
	completeValues(c, "architecture", architectures()...)
	f.BoolVar(&in.SecureBoot, "secure-boot", false, "take boot loaders that are signed, and have the image's guests boot with Secure Boot")
	f.StringArrayVar(&in.Mirrors, "mirror", nil, "take packages from `SOURCE`, a URL or a line as in apt's sources, not from Debian's servers; may be repeated")
	must(c.RegisterFlagCompletionFunc("mirror", cobra.NoFileCompletions))
	virtualizationFlag(c, &in.VirtualizationType, "the recipe's, else hvm")
	f.StringVar(&in.RootDeviceType, "root-device-type", "", "`TYPE` of the root: ebs or instance-store (default ebs)")
	completeValues(c, "root-device-type", ami.RootDeviceTypes()...)
	f.StringVar(&in.ImageLocation, "image-location", "", "`BUCKET/NAME` of the bundle of an instance-store image (default "+region.DefaultBucket+"/ and the image's name)")
	must(c.RegisterFlagCompletionFunc("image-location", cobra.NoFileCompletions))
	bundleStoreFlag(c, &in.Store)
	f.BoolVar(&in.Keep, "keep", false, "keep the files, or the guest, of a build that fails")
	must(c.RegisterFlagCompletionFunc("name", cobra.NoFileCompletions))
	tagFlag(c, &tags)
	dryFlag(c, &in.DryRun)
	return c
}

func (a *app) importImage() *cobra.Command {
	var in region.ImportInput
	var tags []string
	var boot, arch string
	c := &cobra.Command{
		Use: "import FILE|URL", Short: "Make an image of a disk file", Args: args(1, 1),
		Long: `Make a registered image of a disk in one step: raw, qcow2, vmdk, vhd, vhdx or
ova, also compressed with gzip, xz or zstd. The format, the boot mode and the
architecture are found by looking into the disk. A disk that names other files
is refused.`,
		Example: "  kami import debian-12-genericcloud-amd64.qcow2 --name debian\n  kami import disk.vmdk --sha256 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08\n  kami import disk.raw.xz --checksum-file SHA512SUMS",
		RunE: func(c *cobra.Command, given []string) (err error) {
			if err := oneOf("architecture", arch, architectures()...); err != nil {
				return err
			}
			if in.Tags, err = parseTags(tags); err != nil {
				return err
			}
			in.Source, in.BootMode, in.Architecture = given[0], ami.BootMode(boot), ami.Architecture(arch)
			return a.with(c.Context(), func(r *region.Region) error {
				image, err := r.ImportImage(c.Context(), in)
				if err != nil {
					return err
				}
				return a.printImages([]ami.Image{image})
			})
		},
	}
	f := c.Flags()
	f.StringVar(&in.Name, "name", "", "`NAME` of the image (default the file's)")
	f.StringVar(&in.Description, "description", "", "`TEXT` of at most 255 characters")
	f.StringVar(&in.Format, "format", "", "`FORMAT` of the disk: raw, qcow2, vmdk, vhd, vhdx or ova (default found by looking)")
	completeValues(c, "format", "raw", "qcow2", "vmdk", "vhd", "vhdx", "ova")
	f.StringVar(&in.SHA256, "sha256", "", "expected SHA-256 of the file, as `HEX`")
	f.StringVar(&in.SHA512, "sha512", "", "expected SHA-512 of the file, as `HEX`")
	f.BoolVar(&in.NoRelative, "no-relative", false, "do not lay the disk over a layer of the store that is like it")
	f.StringVar(&in.ChecksumFile, "checksum-file", "", "`FILE` or URL with the disk's checksum, as sha256sum writes it")
	f.StringVar(&boot, "boot-mode", "", "`MODE` of booting: legacy-bios, uefi or uefi-preferred (default found by looking)")
	f.StringVar(&arch, "architecture", "", "`ARCH` of the guest: x86_64, arm64 or i386 (default found by looking)")
	f.StringVar(&in.UsageOperation, "usage-operation", "", "`CODE` of EC2's for what is on the disk (default RunInstances: Linux; Windows is RunInstances:0002)")
	completeValues(c, "usage-operation", ami.UsageOperations()...)
	completeValues(c, "boot-mode", bootModes()...)
	completeValues(c, "architecture", architectures()...)
	tagFlag(c, &tags)
	dryFlag(c, &in.DryRun)
	return c
}

func bootModes() []string {
	return []string{string(ami.BootLegacyBIOS), string(ami.BootUEFI), string(ami.BootUEFIPreferred)}
}

func architectures() []string {
	return []string{string(ami.ArchX8664), string(ami.ArchARM64), string(ami.ArchI386)}
}
