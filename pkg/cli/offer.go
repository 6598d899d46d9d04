package cli

import (
	"strings"

	"github.com/spf13/cobra"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/output"
	"github.com/kamivm/kami/pkg/region"
)

func offersDoc(all []ami.Offer) any { return map[string]any{"Offers": nonNil(all)} }

func (a *app) printOffers(all []ami.Offer) error {
	type col = output.Column[ami.Offer]
	price := func(amount, currency string) string {
		if strings.Trim(amount, "0.") == "" {
			return "free"
		}
		return amount + " " + currency
	}
	return output.List(a.printer(), offersDoc(all), all, func(o ami.Offer) string { return o.ProductCode }, []col{
		{Title: "PRODUCT CODE", Text: func(o ami.Offer) string { return o.ProductCode }},
		{Title: "TITLE", Text: func(o ami.Offer) string { return o.Title }},
		{Title: "SELLER", Text: func(o ami.Offer) string { return o.OwnerID }},
		{Title: "AN HOUR", Text: func(o ami.Offer) string { return price(o.HourlyPrice, o.Currency) }},
		{Title: "A MONTH", Text: func(o ami.Offer) string { return price(o.MonthlyPrice, o.Currency) }},
		{Title: "TERMS", Text: func(o ami.Offer) string {
			if o.Terms == "" {
				return "none"
			}
			return "yes"
		}},
		{Title: "DELETED", Text: func(o ami.Offer) string { return stampIf(o.DeletionTime) }},
	})
}

func (a *app) offer() *cobra.Command {
	var deleted, dry bool
	list := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List what is offered in the region", Args: args(0, 0), ValidArgsFunction: cobra.NoFileCompletions,
		Example: "  kami offer list",
		RunE: func(c *cobra.Command, _ []string) error {
			return a.with(c.Context(), func(r *region.Region) error {
				all, err := r.Offers(c.Context(), deleted)
				if err != nil {
					return err
				}
				return a.printOffers(all)
			})
		},
	}
	list.Flags().BoolVar(&deleted, "include-deleted", false, "also what is offered no more")
	show := &cobra.Command{
		Use: "show CODE", Short: "Show an offer with its terms", Args: args(1, 1), ValidArgsFunction: once(a.completeOffers),
		Example: "  kami offer show 7f3k2m9q1x\n  kami offer show 7f3k2m9q1x --query 'Offers[0].Terms' -o id",
		RunE: func(c *cobra.Command, given []string) error {
			return a.with(c.Context(), func(r *region.Region) error {
				o, err := r.Offer(c.Context(), given[0])
				if err != nil {
					return err
				}
				a.wide()
				return a.printOffers([]ami.Offer{o})
			})
		},
	}
	del := &cobra.Command{
		Use: "delete CODE...", Aliases: []string{"rm"}, Short: "End offers: nobody can subscribe any more", Args: args(1, -1), ValidArgsFunction: a.completeOffers,
		Long: `End offers of this account's: nobody can subscribe any more. Who has subscribed
stays so, launches as before, and pays by it. A product code is never another
offer's.`,
		Example: "  kami offer delete 7f3k2m9q1x",
		RunE: func(c *cobra.Command, given []string) error {
			return a.with(c.Context(), func(r *region.Region) error {
				return allOrNone(given, dry, func(code string, dry bool) error {
					_, err := r.DeleteOffer(c.Context(), code, dry)
					return err
				})
			})
		},
	}
	dryFlag(del, &dry)
	return group("offer", "Sell images",
		"  kami offer create --title Web --hourly-price 0.02 --currency EUR\n  kami image product-code web-1 7f3k2m9q1x\n  kami offer list", a.offerCreate(), list, show, del)
}

func (a *app) offerCreate() *cobra.Command {
	var in region.CreateOfferInput
	c := &cobra.Command{
		Use: "create", Short: "Offer images for a price", Args: args(0, 0), ValidArgsFunction: cobra.NoFileCompletions,
		Long: `Offer images for a price: of each hour that an instance runs, of each month of a
subscription, or both. Prices are decimal numbers. The offer is known by its
product code, which kami image product-code puts to the images that are sold by
it; others launch those when they have subscribed (kami subscription create).`,
		Example: "  kami offer create --title Web --hourly-price 0.02 --currency EUR\n  kami offer create --title Supported --monthly-price 49 --currency EUR --terms file://terms.txt",
		RunE: func(c *cobra.Command, _ []string) error {
			var err error
			if in.Terms, err = textOf("terms", in.Terms); err != nil {
				return err
			}
			return a.with(c.Context(), func(r *region.Region) error {
				o, err := r.CreateOffer(c.Context(), in)
				if err != nil {
					return err
				}
				return a.printOffers([]ami.Offer{o})
			})
		},
	}
	f := c.Flags()
	f.StringVar(&in.ProductCode, "product-code", "", "`CODE` of the offer (default a new one)")
	f.StringVar(&in.Title, "title", "", "`TEXT` that says what is sold (needed)")
	f.StringVar(&in.HourlyPrice, "hourly-price", "", "`AMOUNT` of each hour that an instance runs, such as 0.02")
	f.StringVar(&in.MonthlyPrice, "monthly-price", "", "`AMOUNT` of each month of a subscription, such as 49")
	f.StringVar(&in.Currency, "currency", "", "`CURRENCY` of the prices, such as EUR")
	f.StringVar(&in.Terms, "terms", "", "`TEXT` that subscribers have to accept, or file://PATH")
	must(c.MarkFlagRequired("title"))
	dryFlag(c, &in.DryRun)
	return c
}

func (a *app) completeOffers(c *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	return a.complete(c, func(r *region.Region) (out []string) {
		all, _ := r.Offers(c.Context(), false)
		for _, o := range all {
			out = append(out, o.ProductCode+"\t"+o.Title)
		}
		return out
	})
}

func (a *app) imageProductCode() *cobra.Command {
	var dry bool
	c := &cobra.Command{
		Use: "product-code IMAGE CODE...", Short: "Sell an image: put product codes to it", Args: args(2, -1),
		ValidArgsFunction: func(c *cobra.Command, given []string, word string) ([]string, cobra.ShellCompDirective) {
			if len(given) == 0 {
				return a.completeImages(c, given, word)
			}
			return a.completeOffers(c, given[1:], word)
		},
		Long: `Put the product codes of this account's offers to an image of its. Others whom
it is shared with launch it when they have subscribed. The codes go with it: to
instances, their volumes and snapshots, and the images that are made of them.
They cannot be taken away again, and the image cannot be public.`,
		Example: "  kami image product-code web-1 7f3k2m9q1x\n  kami image list --filter product-code=7f3k2m9q1x",
		RunE: func(c *cobra.Command, given []string) error {
			return a.with(c.Context(), func(r *region.Region) error {
				id, err := a.ownImageID(c.Context(), r, given[0])
				if err != nil {
					return err
				}
				image, err := r.AddProductCodes(c.Context(), id, given[1:], dry)
				if err != nil {
					return err
				}
				return a.printImages([]ami.Image{image})
			})
		},
	}
	dryFlag(c, &dry)
	return c
}
