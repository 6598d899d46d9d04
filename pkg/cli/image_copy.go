package cli

import (
	"strconv"

	"github.com/spf13/cobra"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/output"
	"github.com/kamivm/kami/pkg/region"
)

func (a *app) printCopy(done region.CopiedImage) error {
	type col = output.Column[region.CopiedImage]
	return output.List(a.printer(), done, []region.CopiedImage{done}, func(c region.CopiedImage) string { return string(c.ImageID) }, []col{
		{Title: "IMAGE", Text: func(c region.CopiedImage) string { return string(c.ImageID) }},
		{Title: "NAME", Text: func(c region.CopiedImage) string { return c.Name }},
		{Title: "REGION", Text: func(c region.CopiedImage) string { return c.RegionName }},
		{Title: "SOURCE", Text: func(c region.CopiedImage) string { return string(c.SourceImageID) }},
		{Title: "LAYERS", Text: func(c region.CopiedImage) string { return strconv.Itoa(c.LayersCopied) }},
		{Title: "MOVED", Text: func(c region.CopiedImage) string { return output.Bytes(c.MovedBytes) }},
		{Title: "SAVED", Text: func(c region.CopiedImage) string { return output.Bytes(c.SavedBytes) }},
	})
}

func (a *app) imageCopy() *cobra.Command {
	var in region.CopyImageInput
	var tags []string
	var to string
	c := &cobra.Command{
		Use: "copy IMAGE", Short: "Copy an image to another region", Args: args(1, 1), ValidArgsFunction: once(a.completeImages),
		Long: `Copy an image, with its snapshots, to the region that is worked in, from the one
that --from-region names; or from the region that is worked in to the one that
--to-region names. The copy is an image of its own: it has another id, is shared
with nobody, and stays when the source goes.

What the other side has is not moved: within a lineage only the layers that it
lacks are read; to and from a region in an object store only the pieces travel
that no image there or here has, also of images that were built apart. All that
arrives is verified. Asked again, a copy that was broken off goes on.

An encrypted image stays encrypted, in another region by a key of that one; a
plain one is encrypted with --encrypted. A region in an object store has no keys.`,
		Example: "  kami image copy web-1 --from-region lab-1 --name web-1\n" +
			"  kami image copy web-1 --to-region s3-1 --name web-1 --copy-tags\n" +
			"  kami image copy web-1 --name web-1-secret --encrypted",
		RunE: func(c *cobra.Command, given []string) (err error) {
			if in.Tags, err = parseTags(tags); err != nil {
				return err
			}
			opts := a.options()
			if to != "" && in.SourceRegion == "" {
				in.SourceRegion = opts.Name
			}
			if to != "" {
				opts.Name = to
			}
			in.SourceImageID = given[0]
			done, err := region.CopyImage(c.Context(), opts, in)
			if err != nil {
				return err
			}
			return a.printCopy(done)
		},
	}
	f := c.Flags()
	f.StringVar(&in.SourceRegion, "from-region", "", "`REGION` that the image is in (default the one that is worked in)")
	f.StringVar(&to, "to-region", "", "`REGION` that the copy is to be in (default the one that is worked in)")
	f.StringVar(&in.Name, "name", "", "`NAME` of the copy (needed)")
	f.StringVar(&in.Description, "description", "", "`TEXT` of at most 255 characters (default names the source)")
	f.BoolVar(&in.Encrypted, "encrypted", false, "encrypt what is not encrypted")
	f.StringVar(&in.KmsKeyID, "kms-key-id", "", "`KEY` to encrypt with, by id or alias (default the region's own)")
	f.BoolVar(&in.CopyImageTags, "copy-tags", false, "give the copy the tags of the source, where that is this account's")
	f.StringVar(&in.ClientToken, "client-token", "", "`TOKEN` of this request: asked again with the same one, it is the same copy")
	tagFlag(c, &tags)
	dryFlag(c, &in.DryRun)
	must(c.MarkFlagRequired("name"))
	must(c.RegisterFlagCompletionFunc("from-region", a.completeRegions))
	must(c.RegisterFlagCompletionFunc("to-region", a.completeRegions))
	must(c.RegisterFlagCompletionFunc("kms-key-id", a.completeKMSKeys))
	return c
}

// far is whether the region that is worked in is an object store.
func (a *app) far() bool { return region.IsRemote(a.flags.home, a.flags.region) }

// orFar lets a command of images work in an object store too.
func (a *app) orFar(c *cobra.Command, run func(c *cobra.Command, given []string) error) *cobra.Command {
	near := c.RunE
	c.RunE = func(c *cobra.Command, given []string) error {
		if a.far() {
			return run(c, given)
		}
		return near(c, given)
	}
	return c
}

func (a *app) listFar(c *cobra.Command, _ []string) error {
	list, err := c.Flags().GetStringArray("filter")
	if err != nil {
		return err
	}
	filters, err := parseFilters(list)
	if err != nil {
		return err
	}
	images, err := region.RemoteImages(c.Context(), a.options(), region.DescribeInput{Filters: filters})
	if err != nil {
		return err
	}
	return a.printImages(images)
}

func (a *app) showFar(c *cobra.Command, given []string) error {
	images, err := region.RemoteImages(c.Context(), a.options(), region.DescribeInput{})
	if err != nil {
		return err
	}
	for _, i := range images {
		if string(i.ImageID) == given[0] || i.Name == given[0] {
			a.wide()
			return a.printImages([]ami.Image{i})
		}
	}
	return ami.Errorf(ami.CodeInvalidAMIIDNotFound, "The image id '[%s]' does not exist", given[0])
}

func (a *app) deregisterFar(c *cobra.Command, given []string) error {
	dry, err := c.Flags().GetBool("dry-run")
	if err != nil {
		return err
	}
	var done []region.DeregisterResult
	err = allOrNone(given, dry, func(ref string, dry bool) error {
		res, err := region.DeregisterRemoteImage(c.Context(), a.options(), ref, dry)
		if err == nil {
			done = append(done, res)
		}
		return err
	})
	if err != nil {
		return err
	}
	return output.List(a.printer(), deregisterDoc(done), done, func(d region.DeregisterResult) string { return string(d.ImageID) }, []output.Column[region.DeregisterResult]{
		{Title: "IMAGE", Text: func(d region.DeregisterResult) string { return string(d.ImageID) }},
	})
}
