package cli

import (
	"path/filepath"
	"strconv"
	"strings"

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
	var at string
	create := &cobra.Command{
		Use: "create NAME", Short: "Make a region", Args: args(1, 1), ValidArgsFunction: cobra.NoFileCompletions,
		Long: `Make a region: images, instances and all else of one are apart from those of
another. The region local-1 is there by itself.

With --at it lies elsewhere. In another folder of this host it is a region like
any; that of another home can be named too, and is then in both. An object
store (s3://…, sftp://…, file://…) only keeps images, which are copied there
and from there (kami image copy). One that is there already is joined.`,
		Example: "  kami region create lab-1\n  kami --region lab-1 image list\n  kami region create disk-2 --at /mnt/disk2/kami\n  kami region create s3-1 --at 's3://images/kami?region=eu-north-1'",
		RunE: func(c *cobra.Command, given []string) (err error) {
			if at != "" && !strings.Contains(at, "://") {
				if at, err = filepath.Abs(at); err != nil {
					return err
				}
			}
			info, err := region.CreateAt(c.Context(), a.flags.home, given[0], at, dry)
			if err != nil {
				return err
			}
			return show([]region.Info{info})
		},
	}
	create.Flags().StringVar(&at, "at", "", "`PLACE` of the region: a folder of this host, or the address of an object store (default in the home)")
	dryFlag(create, &dry)
	see := &cobra.Command{
		Use: "show NAME", Short: "Show all that is known of a region", Args: args(1, 1), ValidArgsFunction: once(a.completeRegions),
		Long: `Show a region. The JSON form has its certificate, which the identity documents
of its instances are signed with; it is made when it is first asked for.`,
		Example: "  kami region show local-1 --query Regions[0].IdentityCertificate -o id > certificate",
		RunE: func(c *cobra.Command, given []string) error {
			info, err := region.Show(c.Context(), a.flags.home, given[0])
			if err != nil {
				return err
			}
			return show([]region.Info{info})
		},
	}
	del := &cobra.Command{
		Use: "delete NAME", Aliases: []string{"rm"}, Short: "Remove a region that holds nothing", Args: args(1, 1),
		Long: `Remove a region that holds nothing any more. Of one that lies elsewhere (--at)
the home only forgets where; what it holds stays.`,
		ValidArgsFunction: once(a.completeRegions), Example: "  kami region delete lab-1",
		RunE: func(c *cobra.Command, given []string) error {
			return region.Delete(c.Context(), a.flags.home, given[0], dry)
		},
	}
	dryFlag(del, &dry)
	return group("region", "Make and list regions", "  kami region create lab-1\n  kami --region lab-1 image list", list, see, create, del, a.blockPublicAccess(), a.allowedImages(), a.imageSignatures())
}
