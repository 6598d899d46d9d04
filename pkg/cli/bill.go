package cli

import (
	"encoding/csv"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/kamivm/kami/pkg/output"
	"github.com/kamivm/kami/pkg/region"
)

func (a *app) bill() *cobra.Command {
	var in region.BillInput
	var asCSV, lines bool
	c := &cobra.Command{
		Use: "bill", Short: "Say what was used in a month, and what it costs", Args: args(0, 0), ValidArgsFunction: cobra.NoFileCompletions,
		Long: `Say what this account used in a month, and what that costs by the price list
prices.yaml of the region's folder, or else of the home: the time that instances
ran, by type and product code, to the second and at least a minute each time; the
size of volumes; and what snapshots add, in bytes that no older snapshot has.
Without a price list all costs are 0. What still goes on is counted until now. A
month is one of UTC.

The table has a row for each type and price; with --lines, and in JSON, each use
is there. --csv writes each use as CSV with the columns of FOCUS 1.0, the FinOps
Open Cost and Usage Specification.`,
		Example: "  kami bill\n  kami bill --month 2026-11 --as 111122223333\n  kami bill --month 2026-11 --all-accounts --csv > bill.csv",
		RunE: func(c *cobra.Command, _ []string) error {
			if err := errors.Join(exclusive(c, "csv", "query"), exclusive(c, "csv", "output")); err != nil {
				return err
			}
			return a.with(c.Context(), func(r *region.Region) error {
				b, err := r.Bill(c.Context(), in)
				if err != nil {
					return err
				}
				a.tellOfBill(b)
				if asCSV {
					return a.printBillCSV(b)
				}
				if lines && a.asTable() {
					return a.printBillLines(b)
				}
				return a.printBill(b)
			})
		},
	}
	f := c.Flags()
	f.StringVar(&in.Month, "month", "", "`MONTH` such as 2026-11 (default the one that runs)")
	f.BoolVar(&in.AllAccounts, "all-accounts", false, "of everybody, for the account that keeps the region")
	f.BoolVar(&lines, "lines", false, "a row for each use")
	f.BoolVar(&asCSV, "csv", false, "write CSV with the columns of FOCUS 1.0")
	must(c.RegisterFlagCompletionFunc("month", cobra.NoFileCompletions))
	return c
}

func billDoc(b region.Bill) region.Bill {
	b.Lines, b.Totals = nonNil(b.Lines), nonNil(b.Totals)
	return b
}

func (a *app) printBill(b region.Bill) error {
	type col = output.Column[region.BillTotal]
	return output.List(a.printer(), billDoc(b), b.Totals, func(t region.BillTotal) string { return t.AccountID }, []col{
		{Title: "ACCOUNT", Text: func(t region.BillTotal) string { return t.AccountID }},
		{Title: "FOR", Text: func(t region.BillTotal) string { return t.Kind }},
		{Title: "TYPE", Text: func(t region.BillTotal) string { return t.Type }},
		{Title: "QUANTITY", Text: func(t region.BillTotal) string { return t.Quantity }},
		{Title: "UNIT", Text: func(t region.BillTotal) string { return t.Unit }},
		{Title: "PRICE", Text: func(t region.BillTotal) string { return t.UnitPrice }},
		{Title: "COST", Text: func(t region.BillTotal) string { return t.Cost }},
		{Title: "CURRENCY", Text: func(t region.BillTotal) string { return t.Currency }},
	})
}

func (a *app) printBillLines(b region.Bill) error {
	type col = output.Column[region.BillLine]
	return output.List(a.printer(), billDoc(b), b.Lines, func(l region.BillLine) string { return l.ResourceID }, []col{
		{Title: "ACCOUNT", Text: func(l region.BillLine) string { return l.AccountID }},
		{Title: "FOR", Text: func(l region.BillLine) string { return l.Kind }},
		{Title: "RESOURCE", Text: func(l region.BillLine) string { return l.ResourceID }},
		{Title: "TYPE", Text: func(l region.BillLine) string { return l.Type }},
		{Title: "FROM", Text: func(l region.BillLine) string { return stamp(l.Start) }},
		{Title: "TO", Text: func(l region.BillLine) string { return stamp(l.End) }},
		{Title: "QUANTITY", Text: func(l region.BillLine) string { return l.Quantity }},
		{Title: "UNIT", Text: func(l region.BillLine) string { return l.Unit }},
		{Title: "COST", Text: func(l region.BillLine) string { return l.Cost }},
		{Title: "CURRENCY", Text: func(l region.BillLine) string { return l.Currency }},
	})
}

func (a *app) printBillCSV(b region.Bill) error {
	if a.progress != nil {
		a.progress.Close()
	}
	w := csv.NewWriter(a.out)
	return w.WriteAll(b.FOCUS())
}

// tellOfBill says what a reader of the numbers has to know, beside them.
func (a *app) tellOfBill(b region.Bill) {
	if a.flags.quiet {
		return
	}
	a.progress.Close()
	if b.PriceList == "" {
		fmt.Fprintf(a.err, "kami: there is no price list, so that everything costs 0 but what offers sell: write one to %s/prices.yaml (docs/billing.md)\n", a.flags.home)
	}
	if b.MeteredSince.After(b.Start) {
		fmt.Fprintf(a.err, "kami: use is noted since %s; what was used before that is not on the bill\n", stamp(b.MeteredSince))
	}
}
