package cli

import (
	"context"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/output"
	"github.com/kamivm/kami/pkg/region"
)

func (a *app) printKernels(all []ami.Image) error {
	type col = output.Column[ami.Image]
	return output.List(a.printer(), imagesDoc(all), all, func(i ami.Image) string { return string(i.ImageID) }, []col{
		{Title: "KERNEL", Text: func(i ami.Image) string { return string(i.ImageID) }},
		{Title: "NAME", Text: func(i ami.Image) string { return i.Name }},
		{Title: "TYPE", Text: func(i ami.Image) string { return i.ImageType }},
		{Title: "ARCH", Text: func(i ami.Image) string { return string(i.Architecture) }},
		{Title: "SIZE", Text: func(i ami.Image) string {
			if i.Data == "" {
				return "-"
			}
			return output.Bytes(i.DataBytes)
		}},
		{Title: "OWNER", Text: func(i ami.Image) string {
			if i.OwnerAlias != "" {
				return i.OwnerAlias
			}
			return i.OwnerID
		}},
		{Title: "CREATED", Text: func(i ami.Image) string { return stamp(i.CreationDate) }},
	})
}

func (a *app) kernel() *cobra.Command {
	return group("kernel", "Keep kernels and ramdisks of paravirtual guests",
		"  kami kernel list\n  kami kernel register vmlinuz --name linux-6.1\n  kami kernel register initrd.img --type ramdisk --name linux-6.1-initrd",
		a.kernelRegister(), a.kernelList(), a.kernelShow(), a.kernelDeregister(),
		a.tag("kernel", "linux-6.1", a.completeKernels, a.kernelRef), a.untag("kernel", "linux-6.1", a.completeKernels, a.kernelRef))
}

func (a *app) kernelRegister() *cobra.Command {
	var in region.RegisterKernelInput
	var tags []string
	var arch string
	c := &cobra.Command{
		Use: "register FILE", Short: "Make a kernel or ramdisk image of a file", Args: args(1, 1),
		Long: `Make a kernel image (aki-) of a file, a bzImage or an ELF file with an entry for
PVH, or with --type ramdisk a ramdisk image (ari-), with which paravirtual guests
can be started. A guest that is to start the kernel in its own root, whatever
that is by then, needs none: pv-grub, which every region has, does that.`,
		Example: "  kami kernel register /boot/vmlinuz-6.1.0-13-cloud-amd64 --name linux-6.1\n  kami kernel register initrd.img --type ramdisk --name linux-6.1-initrd",
		RunE: func(c *cobra.Command, given []string) (err error) {
			if err := oneOf("type", in.Type, ami.ImageTypeKernel, ami.ImageTypeRamdisk); err != nil {
				return err
			}
			if err := oneOf("architecture", arch, architectures()...); err != nil {
				return err
			}
			if in.Tags, err = parseTags(tags); err != nil {
				return err
			}
			in.File, in.Architecture = given[0], ami.Architecture(arch)
			return a.with(c.Context(), func(r *region.Region) error {
				image, err := r.RegisterKernel(c.Context(), in)
				if err != nil {
					return err
				}
				return a.printKernels([]ami.Image{image})
			})
		},
	}
	f := c.Flags()
	f.StringVar(&in.Name, "name", "", "`NAME` of the image (needed)")
	f.StringVar(&in.Type, "type", ami.ImageTypeKernel, "`TYPE` of the file: kernel or ramdisk")
	f.StringVar(&in.Description, "description", "", "`TEXT` of at most 255 characters")
	f.StringVar(&arch, "architecture", "", "`ARCH` of its guests: x86_64, arm64 or i386 (default the kernel's own, x86_64 for a ramdisk)")
	must(c.MarkFlagRequired("name"))
	completeValues(c, "type", ami.ImageTypeKernel, ami.ImageTypeRamdisk)
	completeValues(c, "architecture", architectures()...)
	must(c.RegisterFlagCompletionFunc("name", cobra.NoFileCompletions))
	tagFlag(c, &tags)
	dryFlag(c, &in.DryRun)
	return c
}

func (a *app) kernelList() *cobra.Command {
	return a.list("kernel images", "  kami kernel list\n  kami kernel list --filter image-type=ramdisk -o id",
		func(ctx context.Context, r *region.Region, in region.DescribeInput) error {
			all, err := r.DescribeKernels(ctx, in)
			if err != nil {
				return err
			}
			return a.printKernels(all)
		})
}

func (a *app) kernelShow() *cobra.Command {
	return &cobra.Command{
		Use: "show KERNEL", Short: "Show all that is known of a kernel or ramdisk", Args: args(1, 1), ValidArgsFunction: once(a.completeKernels),
		Example: "  kami kernel show pv-grub-x86_64\n  kami kernel show aki-0123456789abcdef0 -o json",
		RunE: func(c *cobra.Command, given []string) error {
			return a.with(c.Context(), func(r *region.Region) error {
				image, err := r.ResolveKernel(c.Context(), given[0], "")
				if err != nil {
					return err
				}
				a.wide()
				return a.printKernels([]ami.Image{image})
			})
		},
	}
}

func (a *app) kernelDeregister() *cobra.Command {
	var dry bool
	c := &cobra.Command{
		Use: "deregister KERNEL...", Aliases: []string{"rm"}, Short: "Retire kernels and ramdisks that nothing starts with", Args: args(1, -1), ValidArgsFunction: a.completeKernels,
		Long:    "Retire kernels and ramdisks. One that an image or an instance starts with is\nrefused.",
		Example: "  kami kernel deregister linux-6.1 linux-6.1-initrd",
		RunE: func(c *cobra.Command, given []string) error {
			return a.with(c.Context(), func(r *region.Region) error {
				return allOrNone(given, dry, func(ref string, dry bool) error {
					image, err := r.ResolveKernel(c.Context(), ref, "")
					if err != nil {
						return err
					}
					return r.DeregisterKernel(c.Context(), image.ImageID, dry)
				})
			})
		},
	}
	dryFlag(c, &dry)
	return c
}

// kernelRef finds the id of a kernel or ramdisk.
func (a *app) kernelRef(ctx context.Context, r *region.Region, ref string) (string, error) {
	image, err := r.ResolveKernel(ctx, ref, "")
	return string(image.ImageID), err
}

// bootFlags are the flags of what a paravirtual guest starts with.
type bootFlags struct{ kernel, ramdisk, cmdline string }

// add adds them; whose says whose they are otherwise.
func (b *bootFlags) add(a *app, c *cobra.Command, whose string) {
	f := c.Flags()
	f.StringVar(&b.kernel, "kernel", "", "`KERNEL` image that a paravirtual guest starts with (default "+whose+"pv-grub)")
	f.StringVar(&b.ramdisk, "ramdisk", "", "`RAMDISK` image that goes with the kernel")
	f.StringVar(&b.cmdline, "kernel-cmdline", "", "`TEXT` of the kernel's command line; with pv-grub it comes behind the guest's own")
	must(c.RegisterFlagCompletionFunc("kernel", a.completeKernelsOf(ami.ImageTypeKernel)))
	must(c.RegisterFlagCompletionFunc("ramdisk", a.completeKernelsOf(ami.ImageTypeRamdisk)))
	must(c.RegisterFlagCompletionFunc("kernel-cmdline", cobra.NoFileCompletions))
}

// read finds what they name.
func (b *bootFlags) read(ctx context.Context, r *region.Region) (region.PVBoot, error) {
	boot := region.PVBoot{KernelID: ami.KernelID(b.kernel), RamdiskID: ami.RamdiskID(b.ramdisk), KernelCmdline: b.cmdline}
	if b.kernel != "" && !strings.HasPrefix(b.kernel, "aki-") {
		image, err := r.ResolveKernel(ctx, b.kernel, ami.ImageTypeKernel)
		if err != nil {
			return boot, err
		}
		boot.KernelID = ami.KernelID(image.ImageID)
	}
	if b.ramdisk != "" && !strings.HasPrefix(b.ramdisk, "ari-") {
		image, err := r.ResolveKernel(ctx, b.ramdisk, ami.ImageTypeRamdisk)
		if err != nil {
			return boot, err
		}
		boot.RamdiskID = ami.RamdiskID(image.ImageID)
	}
	return boot, nil
}

func (a *app) completeKernels(c *cobra.Command, given []string, word string) ([]string, cobra.ShellCompDirective) {
	return a.completeKernelsOf("")(c, given, word)
}

// completeKernelsOf offers what is of one type, "" for all.
func (a *app) completeKernelsOf(kind string) cobra.CompletionFunc {
	return func(c *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		return a.complete(c, func(r *region.Region) (out []string) {
			all, _ := r.DescribeKernels(c.Context(), region.DescribeInput{})
			for _, i := range all {
				if kind == "" || i.ImageType == kind {
					out = append(out, string(i.ImageID)+"\t"+i.Name, i.Name)
				}
			}
			return out
		})
	}
}

// virtualizationFlag adds --virtualization-type.
func virtualizationFlag(c *cobra.Command, to *string, whose string) {
	c.Flags().StringVar(to, "virtualization-type", "", "`TYPE` of the guests: hvm or paravirtual (default "+whose+")")
	completeValues(c, "virtualization-type", ami.VirtualizationTypes()...)
}
