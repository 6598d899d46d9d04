package cli

import (
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/output"
	"github.com/kamivm/kami/pkg/region"
)

// treeFormats are how the ancestry of images is shown.
func treeFormats() []string { return []string{"text", "dot", "svg", "json"} }

func (a *app) imageTree() *cobra.Command {
	var format string
	c := &cobra.Command{
		Use: "tree", Short: "Draw which image was made from which", Args: args(0, 0), ValidArgsFunction: cobra.NoFileCompletions,
		Long: `Draw which image was made from which: each image hangs on the one whose guest it
was saved from. The size is what the image alone costs on disk.`,
		Example: "  kami image tree\n  kami image tree --format svg\n  kami image tree --format dot",
		RunE: func(c *cobra.Command, _ []string) error {
			if !slices.Contains(treeFormats(), format) {
				return usageError{fmt.Errorf("the format %q is not one of %v", format, treeFormats())}
			}
			return a.with(c.Context(), func(r *region.Region) error {
				images, err := r.DescribeImages(c.Context(), region.DescribeInput{IncludeDeprecated: true, IncludeDisabled: true})
				if err != nil {
					return err
				}
				usage, err := r.StoreUsage(c.Context())
				if err != nil {
					return err
				}
				roots := imageTree(images, usage)
				p := a.printer() // the progress is over
				switch {
				case format == "dot":
					return output.DOT(a.out, "images", roots)
				case format == "svg":
					return output.SVG(a.out, roots)
				case format == "json":
					p.Format = output.JSON
				case p.Format == output.Table && p.Query == "":
					return output.Tree(a.out, roots)
				}
				doc := map[string]any{"Images": nonNil(treeDoc(images, ""))}
				return output.List(p, doc, images, func(i ami.Image) string { return string(i.ImageID) }, nil)
			})
		},
	}
	c.Flags().StringVar(&format, "format", "text", "`FORMAT`: text, dot (Graphviz), svg or json")
	completeValues(c, "format", treeFormats()...)
	return c
}

// ancestor is the image that i hangs on: its source if that is shown too.
func ancestor(images []ami.Image, i ami.Image) ami.ImageID {
	if slices.ContainsFunc(images, func(p ami.Image) bool { return p.ImageID == i.SourceImageID && p.ImageID != i.ImageID }) {
		return i.SourceImageID
	}
	return ""
}

func imageTree(images []ami.Image, usage region.StoreUsage) []output.Node {
	unique := map[ami.ImageID]int64{}
	for _, c := range usage.Images {
		unique[c.ImageID] = c.Unique
	}
	var below func(parent ami.ImageID) []output.Node
	below = func(parent ami.ImageID) (out []output.Node) {
		for _, i := range images {
			if ancestor(images, i) == parent {
				note := fmt.Sprintf("%s  %s", i.ImageID, output.Bytes(unique[i.ImageID]))
				if i.State != ami.ImageAvailable {
					note += "  " + string(i.State)
				}
				out = append(out, output.Node{ID: string(i.ImageID), Label: i.Name, Note: note, Children: below(i.ImageID)})
			}
		}
		return out
	}
	return below("")
}

// treeImage is an image with those made from it.
type treeImage struct {
	ImageID  ami.ImageID `json:"ImageId"`
	Name     string      `json:"Name"`
	Children []treeImage `json:"Children"`
}

func treeDoc(images []ami.Image, parent ami.ImageID) (out []treeImage) {
	for _, i := range images {
		if ancestor(images, i) == parent {
			out = append(out, treeImage{i.ImageID, i.Name, nonNil(treeDoc(images, i.ImageID))})
		}
	}
	return out
}
