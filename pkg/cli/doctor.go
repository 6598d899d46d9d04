package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/kamivm/kami/pkg/output"
	"github.com/kamivm/kami/pkg/region"
)

func checksDoc(all []region.Check) any { return map[string]any{"Checks": nonNil(all)} }

func (a *app) doctor() *cobra.Command {
	return &cobra.Command{
		Use: "doctor", Short: "Check this host, and say how to mend it", Args: args(0, 0), ValidArgsFunction: cobra.NoFileCompletions,
		Long: `Check what kami needs of this host, and say how to mend what is not well. With a
warning kami works, but less well. The exit status is 1 when something is missing
that it cannot do without.`,
		Example: "  kami doctor\n  kami doctor -o json",
		RunE: func(c *cobra.Command, _ []string) error {
			checks := region.Doctor(c.Context(), a.options())
			if err := a.printChecks(checks); err != nil {
				return err
			}
			for _, k := range checks {
				if k.Status == region.CheckFailed {
					return exitError(exitFailed)
				}
			}
			return nil
		},
	}
}

// printChecks writes the checks. On a terminal what mends stands under the
// table: beside it, lines would be too long for any.
func (a *app) printChecks(checks []region.Check) error {
	type col = output.Column[region.Check]
	columns := []col{
		{Title: "CHECK", Text: func(k region.Check) string { return k.Name }},
		{Title: "STATUS", Text: func(k region.Check) string { return string(k.Status) }},
		{Title: "FOUND", Text: func(k region.Check) string { return k.Detail }},
	}
	screen := a.flags.output == string(output.Table) && a.flags.query == "" && output.IsTerminal(a.out)
	if !screen {
		columns = append(columns, col{Title: "TO MEND", Text: func(k region.Check) string { return k.Mend }})
	}
	err := output.List(a.printer(), checksDoc(checks), checks, func(k region.Check) string { return k.Name }, columns)
	if err != nil || !screen {
		return err
	}
	said := false
	for _, k := range checks {
		if k.Status == region.CheckOK || k.Mend == "" {
			continue
		}
		if !said {
			fmt.Fprintln(a.out, "\nTo mend:")
			said = true
		}
		if _, err := fmt.Fprintf(a.out, "  %s: %s\n", k.Name, k.Mend); err != nil {
			return err
		}
	}
	return nil
}
