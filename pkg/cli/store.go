package cli

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/digest"
	"github.com/kamivm/kami/pkg/output"
	"github.com/kamivm/kami/pkg/region"
)

func (a *app) store() *cobra.Command {
	return group("store", "See what is kept, check it and collect garbage", "  kami store du\n  kami store gc --dry-run", a.storeUsage(), a.storeGC(), a.storeVerify())
}

func (a *app) storeUsage() *cobra.Command {
	return &cobra.Command{
		Use: "du", Short: "Show what images cost on disk", Args: args(0, 0), ValidArgsFunction: cobra.NoFileCompletions,
		Long: `Show what images cost on disk: VIRTUAL is what a guest sees, ON DISK all layers
that an image stands on, and ITS OWN what deregistering it with its snapshots
would free.`,
		Example: "  kami store du\n  kami store du -o json",
		RunE: func(c *cobra.Command, _ []string) error {
			return a.with(c.Context(), func(r *region.Region) error {
				u, err := r.StoreUsage(c.Context())
				if err != nil {
					return err
				}
				u.Images = nonNil(u.Images)
				type col = output.Column[region.ImageCost]
				err = output.List(a.printer(), u, u.Images, func(i region.ImageCost) string { return string(i.ImageID) }, []col{
					{Title: "IMAGE", Text: func(i region.ImageCost) string { return string(i.ImageID) }},
					{Title: "NAME", Text: func(i region.ImageCost) string { return i.Name }},
					{Title: "VIRTUAL", Text: func(i region.ImageCost) string { return output.Bytes(i.Virtual) }},
					{Title: "ON DISK", Text: func(i region.ImageCost) string { return output.Bytes(i.Chain) }},
					{Title: "ITS OWN", Text: func(i region.ImageCost) string { return output.Bytes(i.Unique) }},
				})
				// In a pipe there are only lines of the table.
				if err != nil || a.flags.output != string(output.Table) || a.flags.query != "" || !output.IsTerminal(a.out) {
					return err
				}
				_, err = fmt.Fprintf(a.out, "All layers take %s, volumes %s; %s of the layers are garbage.\n", output.Bytes(u.Layers), output.Bytes(u.Volumes), output.Bytes(u.Garbage))
				return err
			})
		},
	}
}

func (a *app) storeGC() *cobra.Command {
	var dry bool
	c := &cobra.Command{
		Use: "gc", Short: "Remove layers that nothing needs", Args: args(0, 0), ValidArgsFunction: cobra.NoFileCompletions,
		Long: `Remove layers that no image, snapshot or volume needs. Such are left by commands
that were killed; what commands delete themselves goes at once.`,
		Example: "  kami store gc --dry-run\n  kami store gc",
		RunE: func(c *cobra.Command, _ []string) error {
			return a.with(c.Context(), func(r *region.Region) error {
				plan, err := r.CollectGarbage(c.Context(), dry)
				if err != nil {
					return err
				}
				if a.flags.output != string(output.Table) || a.flags.query != "" {
					plan.Layers = nonNil(plan.Layers)
					return output.List(a.printer(), plan, plan.Layers, digest.Digest.Hex, nil)
				}
				verb := "removed"
				if dry {
					verb = "would remove"
				}
				n := strconv.Itoa(len(plan.Layers)) + " layers"
				if len(plan.Layers) == 1 {
					n = "1 layer"
				}
				if dry {
					for _, d := range plan.Layers {
						fmt.Fprintln(a.out, d.Hex())
					}
				}
				_, err = fmt.Fprintf(a.out, "%s %s, %s\n", verb, n, output.Bytes(plan.Bytes))
				return err
			})
		},
	}
	dryFlag(c, &dry)
	return c
}

func verifyDoc(all []region.VerifyResult) any {
	out := make([]region.VerifyResult, len(all))
	for i, v := range all {
		v.Images = nonNil(v.Images)
		out[i] = v
	}
	return map[string]any{"Layers": out}
}

func (a *app) storeVerify() *cobra.Command {
	return &cobra.Command{
		Use: "verify", Short: "Read every layer and compare it with its name", Args: args(0, 0), ValidArgsFunction: cobra.NoFileCompletions,
		Long: `Read every layer and compare it with its name, which is its SHA-256, and read
every record. The exit status is 1 when one is damaged or missing.`,
		Example: "  kami store verify",
		RunE: func(c *cobra.Command, _ []string) error {
			return a.with(c.Context(), func(r *region.Region) error {
				all, err := r.VerifyStore(c.Context())
				if err != nil {
					return err
				}
				bad := 0
				for _, v := range all {
					if !v.OK {
						bad++
					}
				}
				type col = output.Column[region.VerifyResult]
				err = output.List(a.printer(), verifyDoc(all), all, func(v region.VerifyResult) string { return v.Layer.Hex() }, []col{
					{Title: "LAYER", Text: func(v region.VerifyResult) string {
						if v.Layer == "" {
							return "-"
						}
						return v.Layer.Short()
					}},
					{Title: "RESULT", Text: func(v region.VerifyResult) string {
						if v.OK {
							return "ok"
						}
						return v.Detail
					}},
					{Title: "IMAGES", Text: func(v region.VerifyResult) string { return join(v.Images) }},
				})
				if err == nil && bad > 0 {
					err = exitError(exitFailed)
				}
				return err
			})
		},
	}
}

func join(ids []ami.ImageID) string {
	text := make([]string, len(ids))
	for i, id := range ids {
		text[i] = string(id)
	}
	return strings.Join(text, " ")
}
