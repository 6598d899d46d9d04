package cli

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/output"
	"github.com/kamivm/kami/pkg/region"
)

func volumesDoc(all []ami.Volume) any {
	out := make([]ami.Volume, len(all))
	for i, v := range all {
		v.Attachments = nonNil(v.Attachments)
		out[i] = v
	}
	return map[string]any{"Volumes": out}
}

func (a *app) printVolumes(all []ami.Volume) error {
	return a.printVolumesPage(region.Page[ami.Volume]{Items: all})
}

func (a *app) printVolumesPage(p region.Page[ami.Volume]) error {
	type col = output.Column[ami.Volume]
	at := func(v ami.Volume) ami.VolumeAttachment {
		if len(v.Attachments) == 0 {
			return ami.VolumeAttachment{}
		}
		return v.Attachments[0]
	}
	return list(a, p, volumesDoc(p.Items), func(v ami.Volume) string { return string(v.VolumeID) }, []col{
		{Title: "VOLUME", Text: func(v ami.Volume) string { return string(v.VolumeID) }},
		{Title: "STATE", Text: func(v ami.Volume) string { return string(v.State) }},
		{Title: "SIZE", Text: func(v ami.Volume) string { return gibibytes(v.Size) }},
		{Title: "SNAPSHOT", Text: func(v ami.Volume) string { return string(v.SnapshotID) }},
		{Title: "INSTANCE", Text: func(v ami.Volume) string { return string(at(v).InstanceID) }},
		{Title: "DEVICE", Text: func(v ami.Volume) string { return at(v).Device }},
		{Title: "CREATED", Text: func(v ami.Volume) string { return stamp(v.CreateTime) }},
		{Title: "ENCRYPTED", Text: func(v ami.Volume) string { return yesNo(v.Encrypted) }},
	})
}

func (a *app) volume() *cobra.Command {
	show := &cobra.Command{
		Use: "show VOLUME...", Short: "Show all that is known of volumes", Args: args(1, -1), ValidArgsFunction: a.completeVolumes,
		Example: "  kami volume show vol-0123456789abcdef0",
		RunE: func(c *cobra.Command, given []string) error {
			return a.with(c.Context(), func(r *region.Region) error {
				all, err := r.DescribeVolumes(c.Context(), region.DescribeInput{IDs: given})
				if err != nil {
					return err
				}
				a.wide()
				return a.printVolumes(all)
			})
		},
	}
	return group("volume", "Make, attach and delete volumes",
		"  kami volume create --size 20\n  kami volume attach vol-0123456789abcdef0 i-0123456789abcdef0",
		a.list("volumes", "  kami volume list\n  kami volume list --filter status=available",
			func(ctx context.Context, r *region.Region, in region.DescribeInput) error {
				page, err := r.DescribeVolumesPage(ctx, in)
				if err != nil {
					return err
				}
				return a.printVolumesPage(page)
			}, pageFlags), show, a.volumeCreate(), a.volumeModify(), a.volumeDelete(), a.volumeAttach(), a.volumeDetach(),
		a.tag("volume", "vol-0123456789abcdef0", a.completeVolumes, a.volumeRef), a.untag("volume", "vol-0123456789abcdef0", a.completeVolumes, a.volumeRef))
}

func (a *app) volumeCreate() *cobra.Command {
	var in region.CreateVolumeInput
	var tags []string
	var snap string
	var encrypted func() *bool
	c := &cobra.Command{
		Use: "create", Short: "Make a volume, blank or from a snapshot", Args: args(0, 0), ValidArgsFunction: cobra.NoFileCompletions,
		Long: `Make a volume, blank or from a snapshot. It costs nothing until it is written to.
One that is made from an encrypted snapshot is encrypted too.`,
		Example: `  kami volume create --size 20
  kami volume create --snapshot snap-0123456789abcdef0
  kami volume create --size 20 --encrypted --kms-key-id alias/web`,
		RunE: func(c *cobra.Command, _ []string) (err error) {
			if in.Tags, err = parseTags(tags); err != nil {
				return err
			}
			in.SnapshotID, in.Encrypted = ami.SnapshotID(snap), encrypted()
			return a.with(c.Context(), func(r *region.Region) error {
				v, err := r.CreateVolume(c.Context(), in)
				if err != nil {
					return err
				}
				return a.printVolumes([]ami.Volume{v})
			})
		},
	}
	c.Flags().Int64Var(&in.Size, "size", 0, "size of `GIB` (default the snapshot's)")
	encrypted = a.encryptionFlags(c, &in.KmsKeyID)
	c.Flags().StringVar(&snap, "snapshot", "", "`SNAPSHOT` to begin with")
	must(c.RegisterFlagCompletionFunc("snapshot", a.completeSnapshots))
	tagFlag(c, &tags)
	dryFlag(c, &in.DryRun)
	return c
}

func (a *app) volumeDelete() *cobra.Command {
	var dry bool
	c := &cobra.Command{
		Use: "delete VOLUME...", Aliases: []string{"rm"}, Short: "Delete volumes that are not attached", Args: args(1, -1), ValidArgsFunction: a.completeVolumes,
		Example: "  kami volume delete vol-0123456789abcdef0",
		RunE: func(c *cobra.Command, given []string) error {
			return a.with(c.Context(), func(r *region.Region) error {
				return allOrNone(given, dry, func(id string, dry bool) error { return r.DeleteVolume(c.Context(), ami.VolumeID(id), dry) })
			})
		},
	}
	dryFlag(c, &dry)
	return c
}

func (a *app) printAttachment(at ami.VolumeAttachment) error {
	type col = output.Column[ami.VolumeAttachment]
	return output.List(a.printer(), at, []ami.VolumeAttachment{at}, func(at ami.VolumeAttachment) string { return string(at.VolumeID) }, []col{
		{Title: "VOLUME", Text: func(at ami.VolumeAttachment) string { return string(at.VolumeID) }},
		{Title: "INSTANCE", Text: func(at ami.VolumeAttachment) string { return string(at.InstanceID) }},
		{Title: "DEVICE", Text: func(at ami.VolumeAttachment) string { return at.Device }},
		{Title: "STATE", Text: func(at ami.VolumeAttachment) string { return at.State }},
	})
}

func (a *app) volumeAttach() *cobra.Command {
	var in region.AttachVolumeInput
	c := &cobra.Command{
		Use: "attach VOLUME INSTANCE", Short: "Attach a volume to an instance, also a running one", Args: args(2, 2), ValidArgsFunction: a.completeAttach,
		Example: "  kami volume attach vol-0123456789abcdef0 i-0123456789abcdef0 --device /dev/sdf",
		RunE: func(c *cobra.Command, given []string) error {
			return a.with(c.Context(), func(r *region.Region) (err error) {
				in.VolumeID = ami.VolumeID(given[0])
				if in.InstanceID, err = a.instanceID(c.Context(), r, given[1]); err != nil {
					return err
				}
				at, err := r.AttachVolume(c.Context(), in)
				if err != nil {
					return err
				}
				return a.printAttachment(at)
			})
		},
	}
	c.Flags().StringVar(&in.Device, "device", "", "`DEVICE` name (default the next free one from /dev/sdf)")
	dryFlag(c, &in.DryRun)
	return c
}

func (a *app) volumeDetach() *cobra.Command {
	var force, dry bool
	c := &cobra.Command{
		Use: "detach VOLUME", Short: "Detach a volume from its instance, also a running one", Args: args(1, 1), ValidArgsFunction: once(a.completeVolumes),
		Example: "  kami volume detach vol-0123456789abcdef0",
		RunE: func(c *cobra.Command, given []string) error {
			return a.with(c.Context(), func(r *region.Region) error {
				at, err := r.DetachVolume(c.Context(), ami.VolumeID(given[0]), force, dry)
				if err != nil {
					return err
				}
				return a.printAttachment(at)
			})
		},
	}
	c.Flags().BoolVar(&force, "force", false, "detach even if the guest does not let go")
	dryFlag(c, &dry)
	return c
}
