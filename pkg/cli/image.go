package cli

import (
	"context"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/output"
	"github.com/kamivm/kami/pkg/region"
)

func stamp(t time.Time) string { return t.Local().Format("2006-01-02 15:04:05") }

func (a *app) printImages(images []ami.Image) error {
	type col = output.Column[ami.Image]
	return output.List(a.printer(), map[string]any{"Images": nonNil(images)}, images, func(i ami.Image) string { return string(i.ImageID) }, []col{
		{Title: "IMAGE", Text: func(i ami.Image) string { return string(i.ImageID) }},
		{Title: "NAME", Text: func(i ami.Image) string { return i.Name }},
		{Title: "STATE", Text: func(i ami.Image) string { return string(i.State) }},
		{Title: "ARCH", Text: func(i ami.Image) string { return string(i.Architecture) }},
		{Title: "BOOT", Text: func(i ami.Image) string { return string(i.BootMode) }},
		{Title: "CONSISTENCY", Text: func(i ami.Image) string { return string(i.Consistency) }},
		{Title: "CREATED", Text: func(i ami.Image) string { return stamp(i.CreationDate) }},
	})
}

func nonNil[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}

// tagFlag adds --tag to a command.
func tagFlag(c *cobra.Command, to *[]string) {
	c.Flags().StringArrayVar(to, "tag", nil, "tag as key=value; may be repeated")
}

func parseTags(list []string) ([]ami.Tag, error) {
	var tags []ami.Tag
	for _, s := range list {
		t, err := ami.ParseTag(s)
		if err != nil {
			return nil, err
		}
		tags = append(tags, t)
	}
	return tags, nil
}

func dryFlag(c *cobra.Command, to *bool) {
	c.Flags().BoolVar(to, "dry-run", false, "check everything, change nothing")
}

// filterFlag adds --filter, in EC2's form Name=state,Values=available,pending or
// short as state=available.
func filterFlag(c *cobra.Command, to *[]string) {
	c.Flags().StringArrayVar(to, "filter", nil, "keep what matches, as state=available or Name=state,Values=available,pending; may be repeated")
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
		"device mapping: /dev/sdb=:20, /dev/sdb=snap-…:20:false, /dev/sdb=ephemeral0, /dev/sdb=none, EC2's shorthand, JSON or file://PATH; may be repeated")
}

func parseMappings(list []string) ([]ami.BlockDeviceMapping, error) {
	var out []ami.BlockDeviceMapping
	for _, s := range list {
		if path, ok := strings.CutPrefix(s, "file://"); ok {
			b, err := os.ReadFile(path)
			if err != nil {
				return nil, err
			}
			s = string(b)
		}
		m, err := ami.ParseMapping(s)
		if err != nil {
			return nil, err
		}
		out = append(out, m...)
	}
	return out, nil
}

// list makes a verb that lists, and one that shows by id, of a noun.
func (a *app) list(noun, example string, run func(context.Context, *region.Region, region.DescribeInput) error) *cobra.Command {
	var filters []string
	c := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List " + noun, Example: example, Args: args(0, 0),
		RunE: func(c *cobra.Command, _ []string) error {
			f, err := parseFilters(filters)
			if err != nil {
				return err
			}
			return a.with(c.Context(), func(r *region.Region) error { return run(c.Context(), r, region.DescribeInput{Filters: f}) })
		},
	}
	filterFlag(c, &filters)
	return c
}

func (a *app) image() *cobra.Command {
	return group("image", "Make, find and retire images", a.imageList(), a.imageShow(), a.imageCreate(), a.imageRegister(),
		a.imageDeregister(), a.tag("image", a.completeImages), a.untag("image", a.completeImages))
}

func (a *app) imageList() *cobra.Command {
	return a.list("images", "  kami image list\n  kami image list --filter 'name=web-*' -o id\n  kami image list --query 'Images[0].ImageId'",
		func(ctx context.Context, r *region.Region, in region.DescribeInput) error {
			images, err := r.DescribeImages(ctx, in)
			if err != nil {
				return err
			}
			return a.printImages(images)
		})
}

func (a *app) imageShow() *cobra.Command {
	return &cobra.Command{
		Use: "show IMAGE", Short: "Show all that is known of an image", Args: args(1, 1), ValidArgsFunction: a.completeImages,
		Example: "  kami image show web-1\n  kami image show ami-0123456789abcdef0 -o json",
		RunE: func(c *cobra.Command, given []string) error {
			return a.with(c.Context(), func(r *region.Region) error {
				image, err := r.ResolveImage(c.Context(), given[0], false)
				if err != nil {
					return err
				}
				if a.flags.output == string(output.Table) {
					a.flags.output = string(output.YAML)
				}
				return a.printImages([]ami.Image{image})
			})
		},
	}
}

func (a *app) imageCreate() *cobra.Command {
	var in region.CreateImageInput
	var tags, mappings []string
	c := &cobra.Command{
		Use: "create INSTANCE", Short: "Save an instance as the next image", Args: args(1, 1), ValidArgsFunction: a.completeInstances,
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
	f.StringVar(&in.Name, "name", "", "name of the image (required)")
	f.StringVar(&in.Description, "description", "", "description, at most 255 characters")
	f.BoolVar(&in.NoReboot, "no-reboot", false, "leave a running instance running")
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
	c := &cobra.Command{
		Use: "register", Short: "Make an image over snapshots", Args: args(0, 0),
		Example: "  kami image register --name web-5 --block-device-mapping /dev/sda1=snap-0123456789abcdef0",
		RunE: func(c *cobra.Command, _ []string) (err error) {
			if in.Tags, err = parseTags(tags); err != nil {
				return err
			}
			if in.BlockDeviceMappings, err = parseMappings(mappings); err != nil {
				return err
			}
			in.Architecture, in.BootMode = ami.Architecture(arch), ami.BootMode(boot)
			return a.with(c.Context(), func(r *region.Region) error {
				image, err := r.RegisterImage(c.Context(), in)
				if err != nil {
					return err
				}
				return a.printImages([]ami.Image{image})
			})
		},
	}
	f := c.Flags()
	f.StringVar(&in.Name, "name", "", "name of the image (required)")
	f.StringVar(&in.Description, "description", "", "description, at most 255 characters")
	f.StringVar(&in.RootDeviceName, "root-device-name", "/dev/sda1", "device that the guest boots from")
	f.StringVar(&arch, "architecture", "x86_64", "architecture")
	f.StringVar(&boot, "boot-mode", "", "legacy-bios, uefi or uefi-preferred")
	must(c.MarkFlagRequired("name"))
	mappingFlag(c, &mappings)
	tagFlag(c, &tags)
	dryFlag(c, &in.DryRun)
	return c
}

func (a *app) imageDeregister() *cobra.Command {
	var del, dry bool
	c := &cobra.Command{
		Use: "deregister IMAGE...", Aliases: []string{"rm"}, Short: "Retire images; instances live on", Args: args(1, -1), ValidArgsFunction: a.completeImages,
		Example: "  kami image deregister web-1\n  kami image deregister web-1 --delete-snapshots",
		RunE: func(c *cobra.Command, given []string) error {
			return a.with(c.Context(), func(r *region.Region) error {
				var done []region.DeregisterResult
				for _, ref := range given {
					image, err := r.ResolveImage(c.Context(), ref, false)
					if err != nil {
						return err
					}
					res, err := r.DeregisterImage(c.Context(), image.ImageID, del, dry)
					if err != nil {
						return err
					}
					done = append(done, res)
				}
				type col = output.Column[region.DeregisterResult]
				return output.List(a.printer(), map[string]any{"Results": done}, done, func(d region.DeregisterResult) string { return string(d.ImageID) }, []col{
					{Title: "IMAGE", Text: func(d region.DeregisterResult) string { return string(d.ImageID) }},
					{Title: "SNAPSHOTS", Text: func(d region.DeregisterResult) string {
						var s []string
						for _, r := range d.DeleteSnapshots {
							s = append(s, string(r.SnapshotID)+" "+r.ReturnCode)
						}
						return strings.Join(s, ", ")
					}},
				})
			})
		},
	}
	c.Flags().BoolVar(&del, "delete-snapshots", false, "delete its snapshots too, unless another image uses them")
	dryFlag(c, &dry)
	return c
}

func (a *app) tag(noun string, complete cobra.CompletionFunc) *cobra.Command {
	var dry bool
	c := &cobra.Command{
		Use: "tag ID KEY=VALUE...", Short: "Set tags", Args: args(2, -1), ValidArgsFunction: complete,
		Example: "  kami " + noun + " tag ID stage=test owner=me",
		RunE: func(c *cobra.Command, given []string) error {
			tags, err := parseTags(given[1:])
			if err != nil {
				return err
			}
			return a.with(c.Context(), func(r *region.Region) error {
				return r.CreateTags(c.Context(), given[:1], tags, dry)
			})
		},
	}
	dryFlag(c, &dry)
	return c
}

func (a *app) untag(noun string, complete cobra.CompletionFunc) *cobra.Command {
	var dry bool
	c := &cobra.Command{
		Use: "untag ID KEY...", Short: "Remove tags", Args: args(2, -1), ValidArgsFunction: complete,
		Example: "  kami " + noun + " untag ID stage",
		RunE: func(c *cobra.Command, given []string) error {
			return a.with(c.Context(), func(r *region.Region) error {
				return r.DeleteTags(c.Context(), given[:1], given[1:], dry)
			})
		},
	}
	dryFlag(c, &dry)
	return c
}

func (a *app) build() *cobra.Command {
	var in region.BuildInput
	var tags []string
	c := &cobra.Command{
		Use: "build RECIPE", Short: "Build an image from a recipe", Args: args(1, 1),
		Long: `Build an image from a recipe: a folder with a recipe.yaml, or the name of one
that comes with kami (tiny, debian-12).`,
		Example: "  kami build tiny\n  kami build ./images/web --name web-1",
		RunE: func(c *cobra.Command, given []string) (err error) {
			if in.Tags, err = parseTags(tags); err != nil {
				return err
			}
			in.Recipe = given[0]
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
	f.StringVar(&in.Name, "name", "", "name of the image; default the recipe's and the time")
	f.StringVar(&in.Description, "description", "", "description; default the recipe's")
	f.BoolVar(&in.Keep, "keep", false, "keep the files of a build that fails")
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
	f.StringVar(&in.Name, "name", "", "name of the image; default the file's")
	f.StringVar(&in.Description, "description", "", "description, at most 255 characters")
	f.StringVar(&in.Format, "format", "", "raw, qcow2, vmdk, vhd, vhdx or ova; default found by looking")
	f.StringVar(&in.SHA256, "sha256", "", "expected SHA-256 of the file")
	f.StringVar(&in.SHA512, "sha512", "", "expected SHA-512 of the file")
	f.StringVar(&in.ChecksumFile, "checksum-file", "", "file or URL with the file's checksum, as sha256sum writes it")
	f.StringVar(&boot, "boot-mode", "", "legacy-bios, uefi or uefi-preferred; default found by looking")
	f.StringVar(&arch, "architecture", "", "architecture; default found by looking")
	tagFlag(c, &tags)
	dryFlag(c, &in.DryRun)
	return c
}

// userData reads user data: a text, file://PATH, @PATH, or - for standard input.
func (a *app) userData(s string) ([]byte, error) {
	if s == "-" {
		return io.ReadAll(io.LimitReader(a.in, region.MaxUserData+1))
	}
	path, ok := strings.CutPrefix(s, "file://")
	if !ok {
		path, ok = strings.CutPrefix(s, "@")
	}
	if !ok {
		return []byte(s), nil
	}
	return os.ReadFile(path)
}
