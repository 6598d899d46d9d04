package cli

import (
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/kamivm/kami/pkg/output"
	"github.com/kamivm/kami/pkg/region"
)

func (a *app) store() *cobra.Command {
	return group("store", "See what is kept, check it and collect garbage", "  kami store du\n  kami store gc --dry-run", a.storeUsage(), a.storeGC(), a.storeMerge(), a.storeVerify())
}

func (a *app) storeUsage() *cobra.Command {
	return &cobra.Command{
		Use: "du", Short: "Show what images cost on disk", Args: args(0, 0), ValidArgsFunction: cobra.NoFileCompletions,
		Long: `Show what images cost on disk: VIRTUAL is what a guest sees, ON DISK all layers
that an image stands on. Of these UNIQUE is what no other image stands on and
SHARED the rest; FREED is what deregistering the image with its snapshots
(kami image deregister --delete-snapshots) would free, which is less than UNIQUE
where a volume or another snapshot needs a layer. What goes into the recycle bin
is freed when it leaves there.`,
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
					{Title: "UNIQUE", Text: func(i region.ImageCost) string { return output.Bytes(i.Unique) }},
					{Title: "SHARED", Text: func(i region.ImageCost) string { return output.Bytes(i.Shared) }},
					{Title: "FREED", Text: func(i region.ImageCost) string { return output.Bytes(i.Freed) }},
				})
				// In a pipe there are only lines of the table.
				if err != nil || !a.asTable() || !output.IsTerminal(a.out) {
					return err
				}
				_, err = fmt.Fprintf(a.out, "All layers take %s, %s of them cached and %s for the recycle bin alone, volumes %s, kernels and other objects %s; %s is garbage.\n", output.Bytes(u.Layers), output.Bytes(u.Cache), output.Bytes(u.Bin), output.Bytes(u.Volumes), output.Bytes(u.Objects), output.Bytes(u.Garbage))
				return err
			})
		},
	}
}

// asTable says whether the answer is for a person.
func (a *app) asTable() bool { return a.flags.output == string(output.Table) && a.flags.query == "" }

func (a *app) storeGC() *cobra.Command {
	var in region.GCInput
	var dry bool
	c := &cobra.Command{
		Use: "gc", Short: "Remove what nothing needs", Args: args(0, 0), ValidArgsFunction: cobra.NoFileCompletions,
		Long: `Remove the layers that no image, snapshot or volume needs, the kernels and other
objects that no image names, and the small files that killed commands left. What
is going to be removed is listed first; what no record names and stays all the
same is listed with the reason. What a command at work or a running guest has is
never touched.

The roots of instance-store images are kept once they were fetched, so that the
next launch costs nothing. They go when no image is of their bundle any more, when
no launch has used them for 30 days, and with --cache.

Disks and folders without a record are left by no command: they are there where
the catalog was lost or brought back from a backup, and hold what a person made.
They go only with --orphans.`,
		Example: "  kami store gc --dry-run\n  kami store gc --cache\n  kami store gc --orphans --dry-run",
		RunE: func(c *cobra.Command, _ []string) error {
			return a.with(c.Context(), func(r *region.Region) error {
				plan, err := r.PlanGarbage(c.Context(), in)
				if err != nil {
					return err
				}
				if a.asTable() {
					if err := a.printPlan(plan); err != nil {
						return err
					}
				}
				verb, done := "would remove", plan
				if !dry {
					verb = "removed"
					if done, err = r.RemoveGarbage(c.Context(), plan); err != nil {
						return err
					}
				}
				if !a.asTable() {
					done.Layers, done.Files, done.Kept = nonNil(done.Layers), nonNil(done.Files), nonNil(done.Kept)
					return output.List(a.printer(), done, done.Files, func(g region.Garbage) string { return g.Path }, nil)
				}
				_, err = fmt.Fprintf(a.out, "%s %s, %s\n", verb, countGarbage(done), output.Bytes(done.Bytes))
				return err
			})
		},
	}
	dryFlag(c, &dry)
	c.Flags().BoolVar(&in.Cache, "cache", false, "also what was cached of bundles and empty ephemeral disks, and no guest has: the next launch makes it again")
	c.Flags().BoolVar(&in.Orphans, "orphans", false, "also the disks of volumes, folders of instances and drafts of snapshots that no record names")
	return c
}

// printPlan lists what goes, and what stays for a reason.
func (a *app) printPlan(plan region.GCPlan) error {
	type row struct {
		action string
		region.Garbage
	}
	var rows []row
	for _, g := range plan.Files {
		rows = append(rows, row{"remove", g})
	}
	for _, g := range plan.Kept {
		rows = append(rows, row{"keep", g})
	}
	if len(rows) == 0 {
		return nil
	}
	type col = output.Column[row]
	return output.List(a.printer(), nil, rows, nil, []col{
		{Title: "PLAN", Text: func(r row) string { return r.action }},
		{Title: "SIZE", Text: func(r row) string { return output.Bytes(r.Bytes) }},
		{Title: "FILE", Text: func(r row) string { return r.Path }},
		{Title: "REASON", Text: func(r row) string { return r.Reason }},
	})
}

// countGarbage says how much there is, as "1 layer and 2 files".
func countGarbage(plan region.GCPlan) string {
	text := count(len(plan.Layers), "layer")
	if others := len(plan.Files) - len(plan.Layers); others > 0 {
		text += " and " + count(others, "other file")
	}
	return text
}

// count is a number with its noun.
func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return strconv.Itoa(n) + " " + noun + "s"
}
