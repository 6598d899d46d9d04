package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/kamivm/kami/pkg/output"
	"github.com/kamivm/kami/pkg/region"
)

// pageFlags adds what long lists are read by.
func pageFlags(c *cobra.Command, in *region.DescribeInput) {
	c.Flags().IntVar(&in.MaxResults, "max-items", 0, fmt.Sprintf("at most `NUMBER` of them, up to %d; the rest is behind the token that comes with them (default all)", region.MaxPage))
	c.Flags().StringVar(&in.NextToken, "starting-token", "", "go on behind the list that ended with `TOKEN`")
	completeValues(c, "max-items")
	completeValues(c, "starting-token")
}

func ownersFlag(c *cobra.Command, in *region.DescribeInput) {
	c.Flags().StringSliceVar(&in.Owners, "owners", nil, "those of these `ACCOUNTS` alone: 12 digits, self or an alias, with commas between")
	completeValues(c, "owners", "self")
}

func imageFindFlags(c *cobra.Command, in *region.DescribeInput) {
	f := c.Flags()
	f.StringSliceVar(&in.ExecutableUsers, "executable-users", nil, "those that are shared with these `ACCOUNTS` by name: 12 digits, self, or all for public ones")
	f.BoolVar(&in.IncludeDeprecated, "include-deprecated", false, "also other accounts' images that are deprecated")
	f.BoolVar(&in.IncludeDisabled, "include-disabled", false, "also images that are disabled")
	completeValues(c, "executable-users", "self", "all")
}

// withToken adds to a list's JSON form where it goes on.
func withToken(doc any, token string) any {
	if m, ok := doc.(map[string]any); ok && token != "" {
		m["NextToken"] = token
	}
	return doc
}

// list writes a page of a list, and says how it goes on.
func list[T any](a *app, p region.Page[T], doc any, id func(T) string, columns []output.Column[T]) error {
	return a.tellMore(p.NextToken, output.List(a.printer(), withToken(doc, p.NextToken), p.Items, id, columns))
}

// tellMore says to a person that a list goes on; programs have it in the JSON form.
func (a *app) tellMore(token string, err error) error {
	form := output.Format(a.flags.output)
	if err == nil && token != "" && a.flags.query == "" && (form == output.Table || form == output.ID) {
		fmt.Fprintln(a.err, "kami: that is not all; it goes on with --starting-token "+token)
	}
	return err
}
