package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/output"
	"github.com/kamivm/kami/pkg/region"
)

func (a *app) store() *cobra.Command {
	return group("store", "See what is kept, check it and collect garbage", a.storeUsage(), a.storeGC(), a.storeVerify())
}

func (a *app) storeUsage() *cobra.Command {
	return &cobra.Command{
		Use: "du", Short: "Show what images cost on disk", Args: args(0, 0), Example: "  kami store du\n  kami store du -o json",
		RunE: func(c *cobra.Command, _ []string) error {
			return a.with(c.Context(), func(r *region.Region) error {
				u, err := r.StoreUsage(c.Context())
				if err != nil {
					return err
				}
				type col = output.Column[region.ImageCost]
				err = output.List(a.printer(), u, u.Images, func(i region.ImageCost) string { return string(i.ImageID) }, []col{
					{Title: "IMAGE", Text: func(i region.ImageCost) string { return string(i.ImageID) }},
					{Title: "NAME", Text: func(i region.ImageCost) string { return i.Name }},
					{Title: "VIRTUAL", Text: func(i region.ImageCost) string { return output.Bytes(i.Virtual) }},
					{Title: "ON DISK", Text: func(i region.ImageCost) string { return output.Bytes(i.Chain) }},
					{Title: "ITS OWN", Text: func(i region.ImageCost) string { return output.Bytes(i.Unique) }},
				})
				if err != nil || a.flags.output != string(output.Table) || a.flags.query != "" {
					return err
				}
				_, err = fmt.Fprintf(a.out, "layers %s, volumes %s, garbage %s\n", output.Bytes(u.Layers), output.Bytes(u.Volumes), output.Bytes(u.Garbage))
				return err
			})
		},
	}
}

func (a *app) storeGC() *cobra.Command {
	var dry bool
	c := &cobra.Command{
		Use: "gc", Short: "Remove layers that nothing needs", Args: args(0, 0), Example: "  kami store gc --dry-run\n  kami store gc",
		RunE: func(c *cobra.Command, _ []string) error {
			return a.with(c.Context(), func(r *region.Region) error {
				plan, err := r.CollectGarbage(c.Context(), dry)
				if err != nil {
					return err
				}
				if a.flags.output != string(output.Table) || a.flags.query != "" {
					return output.List[string](a.printer(), plan, nil, nil, nil)
				}
				verb := "removed"
				if dry {
					verb = "would remove"
				}
				_, err = fmt.Fprintf(a.out, "%s %d layers, %s\n", verb, len(plan.Layers), output.Bytes(plan.Bytes))
				return err
			})
		},
	}
	dryFlag(c, &dry)
	return c
}

func (a *app) storeVerify() *cobra.Command {
	return &cobra.Command{
		Use: "verify", Short: "Read every layer and compare it with its name", Args: args(0, 0), Example: "  kami store verify",
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
				err = output.List(a.printer(), map[string]any{"Layers": all}, all, func(v region.VerifyResult) string { return v.Layer.Hex() }, []col{
					{Title: "LAYER", Text: func(v region.VerifyResult) string { return v.Layer.Short() }},
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

func (a *app) doctor() *cobra.Command {
	return &cobra.Command{
		Use: "doctor", Short: "Check this host, and say how to mend it", Args: args(0, 0),
		Long:    "Check what kami needs of this host. The exit status is 1 when something it cannot do without is missing.",
		Example: "  kami doctor\n  kami doctor -o json",
		RunE: func(c *cobra.Command, _ []string) error {
			checks := region.Doctor(c.Context(), a.options())
			type col = output.Column[region.Check]
			err := output.List(a.printer(), map[string]any{"Checks": checks}, checks, func(k region.Check) string { return k.Name }, []col{
				{Title: "CHECK", Text: func(k region.Check) string { return k.Name }},
				{Title: "STATUS", Text: func(k region.Check) string { return string(k.Status) }},
				{Title: "FOUND", Text: func(k region.Check) string { return k.Detail }},
				{Title: "TO MEND", Text: func(k region.Check) string { return k.Mend }},
			})
			for _, k := range checks {
				if err == nil && k.Status == region.CheckFailed {
					err = exitError(exitFailed)
				}
			}
			return err
		},
	}
}
