package cli

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/kamivm/kami/pkg/output"
	"github.com/kamivm/kami/pkg/region"
)

func pruneDoc(p region.PrunePlan) any {
	p.Images = nonNil(p.Images)
	return p
}

func (a *app) imagePrune() *cobra.Command {
	var in region.PruneInput
	var unused int
	var dry bool
	c := &cobra.Command{
		Use: "prune", Short: "Retire all but the newest images of a name", Args: args(0, 0), ValidArgsFunction: cobra.NoFileCompletions,
		Long: `Retire all but the newest of one's own images whose names fit a pattern, with
their snapshots. What is going to be done is listed first, with the reason where
an image stays; --dry-run ends there. Instances that were launched of the images
live on. What is protected stays, and what a rule of the recycle bin covers goes
there.`,
		Example: "  kami image prune --name 'web-*' --keep 3 --dry-run\n  kami image prune --name 'web-*' --keep 3 --unused-days 30",
		RunE: func(c *cobra.Command, _ []string) error {
			if err := atLeast("keep", int64(in.Keep), 0); err != nil {
				return err
			}
			if err := atLeast("unused-days", int64(unused), 0); err != nil {
				return err
			}
			in.UnusedFor = time.Duration(unused) * 24 * time.Hour
			return a.with(c.Context(), func(r *region.Region) error {
				plan, err := r.PlanPrune(c.Context(), in)
				if err != nil {
					return err
				}
				if a.asTable() {
					if err := a.printPrune(plan); err != nil {
						return err
					}
				}
				verb, done := "would deregister", plan
				var failed error
				if !dry {
					verb = "deregistered"
					done, failed = r.ExecutePrune(c.Context(), plan)
				}
				if !a.asTable() {
					err = a.printPrune(done)
				} else {
					n := 0
					for _, p := range done.Images {
						if p.Goes() && (dry || p.Result != nil) {
							n++
						}
					}
					_, err = fmt.Fprintf(a.out, "%s %s, %s\n", verb, count(n, "image"), output.Bytes(done.Freed))
				}
				if failed != nil {
					return failed
				}
				return err
			})
		},
	}
	f := c.Flags()
	f.StringVar(&in.Name, "name", "", "`PATTERN` of the images' names, with * and ? (needed)")
	f.IntVar(&in.Keep, "keep", 0, "`NUMBER` of the newest that stay (needed)")
	f.IntVar(&unused, "unused-days", 0, "keep what was launched or made in the last `DAYS`")
	f.BoolVar(&in.KeepSnapshots, "keep-snapshots", false, "leave their snapshots")
	must(c.MarkFlagRequired("name"))
	must(c.MarkFlagRequired("keep"))
	must(c.RegisterFlagCompletionFunc("name", cobra.NoFileCompletions))
	dryFlag(c, &dry)
	return c
}

func (a *app) printPrune(plan region.PrunePlan) error {
	type col = output.Column[region.PruneImage]
	return output.List(a.printer(), pruneDoc(plan), plan.Images, func(p region.PruneImage) string { return string(p.ImageID) }, []col{
		{Title: "PLAN", Text: func(p region.PruneImage) string { return p.Action }},
		{Title: "IMAGE", Text: func(p region.PruneImage) string { return string(p.ImageID) }},
		{Title: "NAME", Text: func(p region.PruneImage) string { return p.Name }},
		{Title: "CREATED", Text: func(p region.PruneImage) string { return stamp(p.CreationDate) }},
		{Title: "REASON", Text: func(p region.PruneImage) string { return p.Reason }},
	})
}
