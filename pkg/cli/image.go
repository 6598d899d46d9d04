package cli

import (
	"cmp"
	"context"
	"errors"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/output"
	"github.com/kamivm/kami/pkg/region"
)

func stamp(t time.Time) string { return t.Local().Format("2006-01-02 15:04:05") }

// stampIf is a time, or nothing for none.
func stampIf(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return stamp(t)
}

func imagesDoc(all []ami.Image) any { return map[string]any{"Images": nonNil(all)} }

func (a *app) printImages(images []ami.Image) error {
	return a.printImagesPage(region.Page[ami.Image]{Items: images})
}

func (a *app) printImagesPage(p region.Page[ami.Image]) error {
	type col = output.Column[ami.Image]
	return list(a, p, imagesDoc(p.Items), func(i ami.Image) string { return string(i.ImageID) }, []col{
		{Title: "IMAGE", Text: func(i ami.Image) string { return string(i.ImageID) }},
		{Title: "NAME", Text: func(i ami.Image) string { return i.Name }},
		{Title: "STATE", Text: func(i ami.Image) string { return string(i.State) }},
		{Title: "ARCH", Text: func(i ami.Image) string { return string(i.Architecture) }},
		{Title: "SIZE", Text: imageSize},
		{Title: "BOOT", Text: imageBoot},
		{Title: "ROOT", Text: func(i ami.Image) string { return i.RootDeviceType }},
		{Title: "CONSISTENCY", Text: func(i ami.Image) string { return string(i.Consistency) }},
		{Title: "CREATED", Text: func(i ami.Image) string { return stamp(i.CreationDate) }},
	})
}

// imageBoot is how an image's guests start.
func imageBoot(i ami.Image) string {
	if i.VirtualizationType == ami.VirtualizationParavirtual {
		return i.VirtualizationType
	}
	return string(i.BootMode)
}

// imageSize is the size of all volumes that an image brings.
func imageSize(i ami.Image) string {
	var sum int64
	if i.Bundle != nil {
		sum = (i.Bundle.SizeBytes + 1<<30 - 1) >> 30
	}
	for _, m := range i.BlockDeviceMappings {
		if m.Ebs != nil && m.Ebs.VolumeSize != nil {
			sum += *m.Ebs.VolumeSize
		}
	}
	return gibibytes(sum)
}

func gibibytes(n int64) string { return strconv.FormatInt(n, 10) + " GiB" }

func nonNil[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}

func dryFlag(c *cobra.Command, to *bool) {
	c.Flags().BoolVar(to, "dry-run", false, "check everything, change nothing")
}

// filterFlag adds --filter, in EC2's form Name=state,Values=available,pending or
// short as state=available.
func filterFlag(c *cobra.Command, to *[]string) {
	c.Flags().StringArrayVar(to, "filter", nil, "keep what matches `NAME=VALUE`, such as state=available or Name=state,Values=available,pending; may be repeated")
}

func parseFilters(list []string) ([]region.Filter, error) {
	var out []region.Filter
	for _, s := range list {
		name, values, ok := strings.Cut(s, "=")
		if rest, long := strings.CutPrefix(s, "Name="); long {
			name, values, ok = strings.Cut(rest, ",Values=")
		}
		if !ok || name == "" {
			return nil, ami.Errorf(ami.CodeInvalidFilter, "The filter %q has not the form name=value.", s)
		}
		out = append(out, region.Filter{Name: name, Values: strings.Split(values, ",")})
	}
	return out, nil
}

// mappingFlag adds --block-device-mapping.
func mappingFlag(c *cobra.Command, to *[]string) {
	c.Flags().StringArrayVar(to, "block-device-mapping", nil,
		"`DEVICE=WHAT` stands there: /dev/sdb=:20, =snap-…:20:false, =ephemeral0, =none, EC2's shorthand, JSON or file://PATH; may be repeated")
}

func parseMappings(list []string) ([]ami.BlockDeviceMapping, error) {
	var out []ami.BlockDeviceMapping
	var errs []error // of all of them at once
	for _, s := range list {
		s, err := textOf("block device mapping", s)
		if err != nil {
			return nil, err
		}
		m, err := ami.ParseMapping(s)
		out, errs = append(out, m...), append(errs, err)
	}
	return out, errors.Join(errs...)
}

// list makes a verb that lists, and one that shows by id, of a noun.
func (a *app) list(noun, example string, run func(context.Context, *region.Region, region.DescribeInput) error, flags ...func(*cobra.Command, *region.DescribeInput)) *cobra.Command {
	var filters []string
	var in region.DescribeInput
	c := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List " + noun, Example: example, Args: args(0, 0), ValidArgsFunction: cobra.NoFileCompletions,
		Long: "List " + noun + ", the oldest first. Filters are EC2's; all of them have to\nmatch, and values may have the wildcards * and ?.",
		RunE: func(c *cobra.Command, _ []string) error {
			var err error
			if in.Filters, err = parseFilters(filters); err != nil {
				return err
			}
			return a.with(c.Context(), func(r *region.Region) error { return run(c.Context(), r, in) })
		},
	}
	filterFlag(c, &filters)
	for _, add := range flags {
		add(c, &in)
	}
	return c
}

func (a *app) image() *cobra.Command {
	return group("image", "Make, find and retire images",
		"  kami image list\n  kami image create i-0123456789abcdef0 --name web-2\n  kami image deregister web-1 --delete-snapshots", a.orFar(a.imageList(), a.listFar), a.orFar(a.imageShow(), a.showFar), a.imageCreate(), a.imageRegister(), a.imageCopy(), a.imageStore(), a.imageRestore(), a.imageExport(),
		a.orFar(a.imageDeregister(), a.deregisterFar), a.imagePrune(), a.imagePermission(), a.imageDeprecate(), a.imageDisable(), a.imageEnable(), a.imageProtect(), a.imageUnprotect(),
		a.imageSign(), a.imageVerify(), a.imageManifest(), a.imageProductCode(),
		a.imageUsage(), a.imageReferences(), a.imageAncestry(), a.imageTree(), a.tag("image", "web-1", a.completeImages, a.imageRef), a.untag("image", "web-1", a.completeImages, a.imageRef))
}

func (a *app) imageList() *cobra.Command {
	return a.list("images", "  kami image list\n  kami image list --filter 'name=web-*' -o id\n  kami image list --owners self --max-items 20\n  kami image list --query 'Images[0].ImageId'",
		func(ctx context.Context, r *region.Region, in region.DescribeInput) error {
			page, err := r.DescribeImagesPage(ctx, in)
			if err != nil {
				return err
			}
			return a.printImagesPage(page)
		}, pageFlags, ownersFlag, imageFindFlags)
}

func (a *app) imageShow() *cobra.Command {
	return &cobra.Command{
		Use: "show IMAGE", Short: "Show all that is known of an image", Args: args(1, 1), ValidArgsFunction: once(a.completeImages),
		Example: "  kami image show web-1\n  kami image show ami-0123456789abcdef0 -o json",
		RunE: func(c *cobra.Command, given []string) error {
			return a.with(c.Context(), func(r *region.Region) error {
				image, err := r.ResolveImage(c.Context(), given[0], false)
				if err != nil {
					return err
				}
				a.wide()
				return a.printImages([]ami.Image{image})
			})
		},
	}
}

func (a *app) imageCreate() *cobra.Command {
	var in region.CreateImageInput
	var tags, mappings []string
	c := &cobra.Command{
		Use: "create INSTANCE", Short: "Save an instance as the next image", Args: args(1, 1), ValidArgsFunction: once(a.completeInstances),
		Long: `Save an instance as an image: its root and every volume attached to it, at one
instant. A running instance is shut down cleanly and started again, so that all
it had in memory is on its disks; with --no-reboot it goes on, and the image is
as after a power cut, or frozen where a guest agent answers.`,
		Example: "  kami image create i-0123456789abcdef0 --name web-2\n  kami image create i-0123456789abcdef0 --name web-3 --no-reboot\n  kami image create i-0123456789abcdef0 --name web-4 --block-device-mapping /dev/sdb=none",
		RunE: func(c *cobra.Command, given []string) (err error) {
			if in.Tags, err = parseTags(tags); err != nil {
				return err
			}
			if in.BlockDeviceMappings, err = parseMappings(mappings); err != nil {
				return err
			}
			return a.with(c.Context(), func(r *region.Region) error {
				if in.InstanceID, err = a.instanceID(c.Context(), r, given[0]); err != nil {
					return err
				}
				image, err := r.CreateImage(c.Context(), in)
				if err != nil {
					return err
				}
				return a.printImages([]ami.Image{image})
			})
		},
	}
	f := c.Flags()
	f.StringVar(&in.Name, "name", "", "`NAME` of the image (needed)")
	f.StringVar(&in.Description, "description", "", "`TEXT` of at most 255 characters")
	f.BoolVar(&in.NoReboot, "no-reboot", false, "leave a running instance running")
	requireFlag(c, &in.Require)
	must(c.MarkFlagRequired("name"))
	mappingFlag(c, &mappings)
	tagFlag(c, &tags)
	dryFlag(c, &in.DryRun)
	return c
}

func (a *app) imageRegister() *cobra.Command {
	var in region.RegisterImageInput
	var tags, mappings []string
	var arch, boot string
	var pv bootFlags
	var support supportFlags
	c := &cobra.Command{
		Use: "register", Short: "Make an image over snapshots, or of a bundle", Args: args(0, 0), ValidArgsFunction: cobra.NoFileCompletions,
		Long: `Make an image of snapshots that exist. One has to be mapped to the root device;
it costs nothing, since an image only names its snapshots.

With --image-location make an instance-store image of a bundle, which has to be
signed by a key that is trusted (kami bundle trust). Its guests have a root of
their own that is made of the bundle and ends with them; what is not said here
is the bundle's. A bundle that is changed afterwards is not launched any more.`,
		Example: "  kami image register --name web-5 --block-device-mapping /dev/sda1=snap-0123456789abcdef0\n  kami image register --name pv-1 --block-device-mapping /dev/sda1=snap-0123456789abcdef0 --virtualization-type paravirtual\n  kami image register --name web-6 --image-location images/web-6.manifest",
		RunE: func(c *cobra.Command, _ []string) (err error) {
			if err := errors.Join(oneOf("architecture", arch, architectures()...), oneOf("virtualization-type", in.VirtualizationType, ami.VirtualizationTypes()...)); err != nil {
				return err
			}
			if in.Tags, err = parseTags(tags); err != nil {
				return err
			}
			if in.BlockDeviceMappings, err = parseMappings(mappings); err != nil {
				return err
			}
			in.Architecture, in.BootMode = ami.Architecture(arch), ami.BootMode(boot)
			if err := support.read(a, c, &in); err != nil {
				return err
			}
			if in.ImageLocation == "" { // what a bundle says for itself
				in.Architecture, in.RootDeviceName = cmp.Or(in.Architecture, ami.ArchX8664), cmp.Or(in.RootDeviceName, "/dev/sda1")
			}
			return a.with(c.Context(), func(r *region.Region) error {
				if in.PVBoot, err = pv.read(c.Context(), r); err != nil {
					return err
				}
				image, err := r.RegisterImage(c.Context(), in)
				if err != nil {
					return err
				}
				return a.printImages([]ami.Image{image})
			})
		},
	}
	f := c.Flags()
	f.StringVar(&in.Name, "name", "", "`NAME` of the image (needed)")
	f.StringVar(&in.Description, "description", "", "`TEXT` of at most 255 characters")
	f.StringVar(&in.ImageLocation, "image-location", "", "`LOCATION` of a bundle, BUCKET/NAME.manifest, for an instance-store image")
	bundleStoreFlag(c, &in.Store)
	allowUnsignedFlag(c, &in.AllowUnsigned)
	must(c.RegisterFlagCompletionFunc("image-location", a.completeBundles))
	f.StringVar(&in.RootDeviceName, "root-device-name", "", "`DEVICE` that the guest boots from (default /dev/sda1)")
	f.StringVar(&arch, "architecture", "", "`ARCH` of the guest: x86_64, arm64 or i386 (default x86_64)")
	f.StringVar(&boot, "boot-mode", "", "`MODE` of booting: legacy-bios, uefi or uefi-preferred (default the architecture's)")
	f.StringVar(&in.ImdsSupport, "imds-support", "", "`VERSION` v2.0 says that the image asks for its metadata with tokens")
	completeValues(c, "imds-support", ami.IMDSv2)
	support.add(c, &in)
	virtualizationFlag(c, &in.VirtualizationType, "hvm, or the bundle's")
	pv.add(a, c, "the bundle's, else ")
	must(c.MarkFlagRequired("name"))
	completeValues(c, "boot-mode", bootModes()...)
	completeValues(c, "architecture", architectures()...)
	mappingFlag(c, &mappings)
	tagFlag(c, &tags)
	dryFlag(c, &in.DryRun)
	return c
}

func deregisterDoc(all []region.DeregisterResult) any { return map[string]any{"Results": nonNil(all)} }

func (a *app) imageDeregister() *cobra.Command {
	var del, dry bool
	c := &cobra.Command{
		Use: "deregister IMAGE...", Aliases: []string{"rm"}, Short: "Retire images; instances live on", Args: args(1, -1), ValidArgsFunction: a.completeImages,
		Long: `Retire images. Instances that were launched of them live on. Their snapshots
stay too, and go on costing disk, unless --delete-snapshots is given: then it is
told of each what became of it, and how many bytes were really freed. What a
rule of the recycle bin covers goes there (kami bin). The bundle of an
instance-store image stays where it is: kami bundle delete.`,
		Example: "  kami image deregister web-1\n  kami image deregister web-1 --delete-snapshots",
		RunE: func(c *cobra.Command, given []string) error {
			return a.with(c.Context(), func(r *region.Region) error {
				var done []region.DeregisterResult
				err := allOrNone(given, dry, func(ref string, dry bool) error {
					id, err := a.ownImageID(c.Context(), r, ref)
					if err != nil {
						return err
					}
					res, err := r.DeregisterImage(c.Context(), id, del, dry)
					if err == nil {
						done = append(done, res)
					}
					return err
				})
				if err != nil {
					return err
				}
				type col = output.Column[region.DeregisterResult]
				return output.List(a.printer(), deregisterDoc(done), done, func(d region.DeregisterResult) string { return string(d.ImageID) }, []col{
					{Title: "IMAGE", Text: func(d region.DeregisterResult) string { return string(d.ImageID) }},
					{Title: "SNAPSHOTS", Text: func(d region.DeregisterResult) string {
						var s []string
						for _, r := range d.DeleteSnapshots {
							s = append(s, string(r.SnapshotID)+" "+r.ReturnCode)
						}
						return strings.Join(s, ", ")
					}},
					{Title: "FREED", Text: func(d region.DeregisterResult) string { return output.Bytes(d.Freed) }},
					{Title: "IN THE BIN UNTIL", Text: func(d region.DeregisterResult) string { return stampIf(d.RecycleBinExit) }},
				})
			})
		},
	}
	c.Flags().BoolVar(&del, "delete-snapshots", false, "delete its snapshots too, unless another image uses them")
	dryFlag(c, &dry)
	return c
}
