package cli

import (
	"github.com/spf13/cobra"

	"github.com/kamivm/kami/pkg/output"
	"github.com/kamivm/kami/pkg/region"
)

func taskDoc(t region.ReplaceRootTask) any { return map[string]any{"ReplaceRootVolumeTask": t} }

func (a *app) instanceReplaceRoot() *cobra.Command {
	var in region.ReplaceRootInput
	var image string
	c := &cobra.Command{
		Use: "replace-root INSTANCE", Short: "Give an instance its root back as it was", Args: args(1, 1), ValidArgsFunction: a.completeInstances,
		Long: `Give an instance a fresh root volume in the place of the one it has: as it was at
launch, as it is in a snapshot, or another image's. A running instance is shut
down and started again; its identity, address and other volumes stay. The old
root is kept as a volume unless --delete-replaced says otherwise.`,
		Example: "  kami instance replace-root i-0123456789abcdef0\n" +
			"  kami instance replace-root i-0123456789abcdef0 --snapshot snap-0123456789abcdef0 --delete-replaced",
		RunE: func(c *cobra.Command, given []string) error {
			return a.with(c.Context(), func(r *region.Region) (err error) {
				if in.InstanceID, err = a.instanceID(c.Context(), r, given[0]); err != nil {
					return err
				}
				if image != "" {
					found, err := r.ResolveImage(c.Context(), image, false)
					if err != nil {
						return err
					}
					in.ImageID = found.ImageID
				}
				t, err := r.ReplaceRootVolume(c.Context(), in)
				if err != nil {
					return err
				}
				type col = output.Column[region.ReplaceRootTask]
				return output.List(a.printer(), taskDoc(t), []region.ReplaceRootTask{t}, func(t region.ReplaceRootTask) string { return string(t.VolumeID) }, []col{
					{Title: "INSTANCE", Text: func(t region.ReplaceRootTask) string { return string(t.InstanceID) }},
					{Title: "STATE", Text: func(t region.ReplaceRootTask) string { return t.TaskState }},
					{Title: "SNAPSHOT", Text: func(t region.ReplaceRootTask) string { return string(t.SnapshotID) }},
					{Title: "ROOT", Text: func(t region.ReplaceRootTask) string { return string(t.VolumeID) }},
					{Title: "BEFORE", Text: func(t region.ReplaceRootTask) string { return string(t.ReplacedID) }},
				})
			})
		},
	}
	f := c.Flags()
	f.StringVar((*string)(&in.SnapshotID), "snapshot", "", "`SNAPSHOT` to make the root of (default the one it was launched from)")
	f.StringVar(&image, "image", "", "`IMAGE` whose root to take")
	f.BoolVar(&in.DeleteReplacedVolume, "delete-replaced", false, "delete the root that was replaced")
	must(c.RegisterFlagCompletionFunc("snapshot", a.completeSnapshots))
	must(c.RegisterFlagCompletionFunc("image", a.completeImages))
	dryFlag(c, &in.DryRun)
	return c
}
