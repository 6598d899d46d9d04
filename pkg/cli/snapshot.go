package cli

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/output"
	"github.com/kamivm/kami/pkg/region"
)

func snapshotsDoc(all []ami.Snapshot) any { return map[string]any{"Snapshots": nonNil(all)} }

func (a *app) printSnapshots(all []ami.Snapshot) error {
	return a.printSnapshotsPage(region.Page[ami.Snapshot]{Items: all})
}

func (a *app) printSnapshotsPage(p region.Page[ami.Snapshot]) error {
	type col = output.Column[ami.Snapshot]
	return list(a, p, snapshotsDoc(p.Items), func(s ami.Snapshot) string { return string(s.SnapshotID) }, []col{
		{Title: "SNAPSHOT", Text: func(s ami.Snapshot) string { return string(s.SnapshotID) }},
		{Title: "STATE", Text: func(s ami.Snapshot) string { return string(s.State) }},
		{Title: "SIZE", Text: func(s ami.Snapshot) string { return gibibytes(s.VolumeSize) }},
		{Title: "ON DISK", Text: func(s ami.Snapshot) string { return output.Bytes(s.LayerBytes) }},
		{Title: "LAYER", Text: func(s ami.Snapshot) string { return s.Layer.Short() }},
		{Title: "CONSISTENCY", Text: func(s ami.Snapshot) string { return string(s.Consistency) }},
		{Title: "VOLUME", Text: func(s ami.Snapshot) string { return string(s.VolumeID) }},
		{Title: "STARTED", Text: func(s ami.Snapshot) string { return stamp(s.StartTime) }},
		{Title: "ENCRYPTED", Text: func(s ami.Snapshot) string { return yesNo(s.Encrypted) }},
	})
}

func (a *app) snapshot() *cobra.Command {
	show := &cobra.Command{
		Use: "show SNAPSHOT...", Short: "Show all that is known of snapshots", Args: args(1, -1), ValidArgsFunction: a.completeSnapshots,
		Example: "  kami snapshot show snap-0123456789abcdef0",
		RunE: func(c *cobra.Command, given []string) error {
			return a.with(c.Context(), func(r *region.Region) error {
				all, err := r.DescribeSnapshots(c.Context(), region.DescribeInput{IDs: given})
				if err != nil {
					return err
				}
				a.wide()
				return a.printSnapshots(all)
			})
		},
	}
	return group("snapshot", "Make, find and delete snapshots",
		"  kami snapshot create vol-0123456789abcdef0\n  kami snapshot list",
		a.list("snapshots", "  kami snapshot list\n  kami snapshot list --filter status=completed",
			func(ctx context.Context, r *region.Region, in region.DescribeInput) error {
				page, err := r.DescribeSnapshotsPage(ctx, in)
				if err != nil {
					return err
				}
				return a.printSnapshotsPage(page)
			}, pageFlags, ownersFlag), show, a.snapshotCreate(), a.snapshotCopy(), a.snapshotDelete(), a.snapshotDiff(), a.snapshotExport(), a.snapshotLock(), a.snapshotUnlock(),
		a.tag("snapshot", "snap-0123456789abcdef0", a.completeSnapshots, a.snapshotRef), a.untag("snapshot", "snap-0123456789abcdef0", a.completeSnapshots, a.snapshotRef))
}

// wide shows one object whole where a person looks.
func (a *app) wide() {
	if a.flags.output == string(output.Table) {
		a.flags.output = string(output.YAML)
	}
}

func (a *app) snapshotCreate() *cobra.Command {
	var in region.CreateSnapshotInput
	var tags []string
	c := &cobra.Command{
		Use: "create VOLUME", Short: "Snapshot a volume, attached or not", Args: args(1, 1), ValidArgsFunction: once(a.completeVolumes),
		Long: `Snapshot a volume as it is at this instant. It costs what was written since the
last one. Of a running guest it is as after a power cut, or frozen where a guest
agent answers.`,
		Example: "  kami snapshot create vol-0123456789abcdef0 --description before",
		RunE: func(c *cobra.Command, given []string) (err error) {
			if in.Tags, err = parseTags(tags); err != nil {
				return err
			}
			in.VolumeID = ami.VolumeID(given[0])
			return a.with(c.Context(), func(r *region.Region) error {
				s, err := r.CreateSnapshot(c.Context(), in)
				if err != nil {
					return err
				}
				return a.printSnapshots([]ami.Snapshot{s})
			})
		},
	}
	requireFlag(c, &in.Require)
	c.Flags().StringVar(&in.Description, "description", "", "`TEXT` of at most 255 characters")
	tagFlag(c, &tags)
	dryFlag(c, &in.DryRun)
	return c
}

func (a *app) snapshotDelete() *cobra.Command {
	var dry bool
	c := &cobra.Command{
		Use: "delete SNAPSHOT...", Aliases: []string{"rm"}, Short: "Delete snapshots that no image uses", Args: args(1, -1), ValidArgsFunction: a.completeSnapshots,
		Example: "  kami snapshot delete snap-0123456789abcdef0",
		RunE: func(c *cobra.Command, given []string) error {
			return a.with(c.Context(), func(r *region.Region) error {
				return allOrNone(given, dry, func(id string, dry bool) error { return r.DeleteSnapshot(c.Context(), ami.SnapshotID(id), dry) })
			})
		},
	}
	dryFlag(c, &dry)
	return c
}
