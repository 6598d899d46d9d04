package cli

import (
	"github.com/spf13/cobra"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/output"
	"github.com/kamivm/kami/pkg/region"
)

func modificationDoc(m region.VolumeModification) any {
	return map[string]any{"VolumeModification": m}
}

func (a *app) volumeModify() *cobra.Command {
	var in region.ModifyVolumeInput
	c := &cobra.Command{
		Use: "modify VOLUME", Short: "Make a volume larger, also under a running guest", Args: args(1, 1), ValidArgsFunction: a.completeVolumes,
		Long: `Make a volume larger. A running guest sees its disk grow at once; its partition
and file system grow when the guest has them grow (growpart and resize2fs, say;
a root with cloud-init does at the next boot). A volume never shrinks.`,
		Example: "  kami volume modify vol-0123456789abcdef0 --size 40",
		RunE: func(c *cobra.Command, given []string) error {
			in.VolumeID = ami.VolumeID(given[0])
			return a.with(c.Context(), func(r *region.Region) error {
				m, err := r.ModifyVolume(c.Context(), in)
				if err != nil {
					return err
				}
				type col = output.Column[region.VolumeModification]
				return output.List(a.printer(), modificationDoc(m), []region.VolumeModification{m}, func(m region.VolumeModification) string { return string(m.VolumeID) }, []col{
					{Title: "VOLUME", Text: func(m region.VolumeModification) string { return string(m.VolumeID) }},
					{Title: "STATE", Text: func(m region.VolumeModification) string { return m.ModificationState }},
					{Title: "BEFORE", Text: func(m region.VolumeModification) string { return gibibytes(m.OriginalSize) }},
					{Title: "SIZE", Text: func(m region.VolumeModification) string { return gibibytes(m.TargetSize) }},
				})
			})
		},
	}
	c.Flags().Int64Var(&in.Size, "size", 0, "new size in `GIB`")
	must(c.MarkFlagRequired("size"))
	must(c.RegisterFlagCompletionFunc("size", cobra.NoFileCompletions))
	dryFlag(c, &in.DryRun)
	return c
}
