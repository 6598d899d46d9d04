package cli

import (
	"github.com/spf13/cobra"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/output"
	"github.com/kamivm/kami/pkg/region"
)

func subscriptionsDoc(all []ami.Subscription) any {
	return map[string]any{"Subscriptions": nonNil(all)}
}

func (a *app) printSubscriptions(all []ami.Subscription) error {
	type col = output.Column[ami.Subscription]
	return output.List(a.printer(), subscriptionsDoc(all), all, func(s ami.Subscription) string { return s.ProductCode }, []col{
		{Title: "PRODUCT CODE", Text: func(s ami.Subscription) string { return s.ProductCode }},
		{Title: "ACCOUNT", Text: func(s ami.Subscription) string { return s.AccountID }},
		{Title: "SUBSCRIBED", Text: func(s ami.Subscription) string { return stamp(s.SubscribedAt) }},
		{Title: "CANCELLED", Text: func(s ami.Subscription) string { return stampIf(s.CancelledAt) }},
	})
}

func (a *app) subscription() *cobra.Command {
	var in region.SubscriptionsInput
	list := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List this account's subscriptions", Args: args(0, 0), ValidArgsFunction: cobra.NoFileCompletions,
		Long: `List to what this account has subscribed, or with --sold who has subscribed to
what it offers.`,
		Example: "  kami subscription list\n  kami subscription list --sold --include-cancelled",
		RunE: func(c *cobra.Command, _ []string) error {
			return a.with(c.Context(), func(r *region.Region) error {
				all, err := r.Subscriptions(c.Context(), in)
				if err != nil {
					return err
				}
				return a.printSubscriptions(all)
			})
		},
	}
	list.Flags().BoolVar(&in.Sold, "sold", false, "those of others to this account's offers")
	list.Flags().BoolVar(&in.Cancelled, "include-cancelled", false, "also those that are cancelled")
	var accept, dry bool
	create := &cobra.Command{
		Use: "create CODE", Short: "Subscribe to an offer", Args: args(1, 1), ValidArgsFunction: once(a.completeOffers),
		Long: `Subscribe this account to an offer, so that it may launch images with that
product code. Terms that the offer has are shown by kami offer show, and have to
be accepted. Who has subscribed already is told since when.`,
		Example: "  kami subscription create 7f3k2m9q1x\n  kami subscription create 7f3k2m9q1x --accept-terms",
		RunE: func(c *cobra.Command, given []string) error {
			return a.with(c.Context(), func(r *region.Region) error {
				s, err := r.Subscribe(c.Context(), given[0], accept, dry)
				if err != nil {
					return err
				}
				return a.printSubscriptions([]ami.Subscription{s})
			})
		},
	}
	create.Flags().BoolVar(&accept, "accept-terms", false, "accept the terms of the offer")
	dryFlag(create, &dry)
	var dryCancel bool
	cancel := &cobra.Command{
		Use: "cancel CODE", Aliases: []string{"delete", "rm"}, Short: "End a subscription; instances live on", Args: args(1, 1), ValidArgsFunction: once(a.completeSubscriptions),
		Long: `End this account's subscription to an offer. Its instances live on, and cost
their hours as before; it launches no others.`,
		Example: "  kami subscription cancel 7f3k2m9q1x",
		RunE: func(c *cobra.Command, given []string) error {
			return a.with(c.Context(), func(r *region.Region) error {
				s, err := r.Unsubscribe(c.Context(), given[0], dryCancel)
				if err != nil {
					return err
				}
				return a.printSubscriptions([]ami.Subscription{s})
			})
		},
	}
	dryFlag(cancel, &dryCancel)
	return group("subscription", "Use images that are sold", "  kami subscription create 7f3k2m9q1x\n  kami subscription list", create, list, cancel)
}

func (a *app) completeSubscriptions(c *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	return a.complete(c, func(r *region.Region) (out []string) {
		all, _ := r.Subscriptions(c.Context(), region.SubscriptionsInput{})
		for _, s := range all {
			out = append(out, s.ProductCode)
		}
		return out
	})
}
