package cli

import (
	"strconv"

	"github.com/spf13/cobra"

	"github.com/kamivm/kami/pkg/output"
	"github.com/kamivm/kami/pkg/region"
)

func (a *app) region() *cobra.Command {
	show := func(all []region.Info) error {
		type col = output.Column[region.Info]
		return output.List(a.printer(), map[string]any{"Regions": all}, all, func(i region.Info) string { return i.RegionName }, []col{
			{Title: "REGION", Text: func(i region.Info) string { return i.RegionName }},
			{Title: "IMAGES", Text: func(i region.Info) string { return strconv.Itoa(i.Images) }},
			{Title: "INSTANCES", Text: func(i region.Info) string { return strconv.Itoa(i.Instances) }},
			{Title: "PATH", Text: func(i region.Info) string { return i.Path }},
		})
	}
	list := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List the regions of this home", Args: args(0, 0), Example: "  kami region list",
		RunE: func(c *cobra.Command, _ []string) error {
			all, err := region.List(c.Context(), a.flags.home)
			if err != nil {
				return err
			}
			return show(all)
		},
	}
	create := &cobra.Command{
		Use: "create NAME", Short: "Make a region", Args: args(1, 1), Example: "  kami region create lab-1",
		RunE: func(c *cobra.Command, given []string) error {
			info, err := region.Create(c.Context(), a.flags.home, given[0])
			if err != nil {
				return err
			}
			return show([]region.Info{info})
		},
	}
	var dry bool
	del := &cobra.Command{
		Use: "delete NAME", Aliases: []string{"rm"}, Short: "Remove a region that holds nothing", Args: args(1, 1),
		ValidArgsFunction: a.completeRegions, Example: "  kami region delete lab-1",
		RunE: func(c *cobra.Command, given []string) error {
			return region.Delete(c.Context(), a.flags.home, given[0], dry)
		},
	}
	dryFlag(del, &dry)
	return group("region", "Make and list regions", list, create, del)
}
