package cli

import (
	"strconv"

	"github.com/spf13/cobra"

	"github.com/kamivm/kami/pkg/output"
	"github.com/kamivm/kami/pkg/region"
)

func regionsDoc(all []region.Info) any { return map[string]any{"Regions": nonNil(all)} }

func (a *app) region() *cobra.Command {
	show := func(all []region.Info) error {
		type col = output.Column[region.Info]
		return output.List(a.printer(), regionsDoc(all), all, func(i region.Info) string { return i.RegionName }, []col{
			{Title: "REGION", Text: func(i region.Info) string { return i.RegionName }},
			{Title: "IMAGES", Text: func(i region.Info) string { return strconv.Itoa(i.Images) }},
			{Title: "INSTANCES", Text: func(i region.Info) string { return strconv.Itoa(i.Instances) }},
			{Title: "PATH", Text: func(i region.Info) string { return i.Path }},
		})
	}
	list := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List the regions of this home", Args: args(0, 0), ValidArgsFunction: cobra.NoFileCompletions, Example: "  kami region list",
		RunE: func(c *cobra.Command, _ []string) error {
			all, err := region.List(c.Context(), a.flags.home)
			if err != nil {
				return err
			}
			return show(all)
		},
	}
	var dry bool
	create := &cobra.Command{
		Use: "create NAME", Short: "Make a region", Args: args(1, 1), ValidArgsFunction: cobra.NoFileCompletions,
		Long: `Make a region: images, instances and all else of one are apart from those of
another. The region local-1 is there by itself.`,
		Example: "  kami region create lab-1\n  kami --region lab-1 image list",
		RunE: func(c *cobra.Command, given []string) error {
			info, err := region.Create(c.Context(), a.flags.home, given[0], dry)
			if err != nil {
				return err
			}
			return show([]region.Info{info})
		},
	}
	dryFlag(create, &dry)
	del := &cobra.Command{
		Use: "delete NAME", Aliases: []string{"rm"}, Short: "Remove a region that holds nothing", Args: args(1, 1),
		ValidArgsFunction: once(a.completeRegions), Example: "  kami region delete lab-1",
		RunE: func(c *cobra.Command, given []string) error {
			return region.Delete(c.Context(), a.flags.home, given[0], dry)
		},
	}
	dryFlag(del, &dry)
	return group("region", "Make and list regions", "  kami region create lab-1\n  kami --region lab-1 image list", list, create, del)
}
