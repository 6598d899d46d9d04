package cli

import (
	"encoding/json"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kamivm/kami/pkg/output"
	"github.com/kamivm/kami/pkg/region"
)

func accessBlockDoc(s region.AccessBlock) any {
	return map[string]any{"ImageBlockPublicAccessState": string(s)}
}

func (a *app) blockPublicAccess() *cobra.Command {
	var dry bool
	states := []string{string(region.BlockNewSharing), string(region.Unblocked)}
	c := &cobra.Command{
		Use: "block-public-access [STATE]", Short: "Keep images from becoming public", Args: args(0, 1), ValidArgs: states,
		Long: `Show whether this account's images in the region may become public, or with a
STATE, block-new-sharing or unblocked, set it. Images that are public already
stay so.`,
		Example: "  kami region block-public-access\n  kami region block-public-access block-new-sharing",
		RunE: func(c *cobra.Command, given []string) error {
			return a.with(c.Context(), func(r *region.Region) error {
				if len(given) > 0 {
					if err := r.SetImageBlockPublicAccess(c.Context(), region.AccessBlock(given[0]), dry); err != nil {
						return err
					}
				}
				state, err := r.ImageBlockPublicAccess(c.Context())
				if err != nil {
					return err
				}
				type col = output.Column[region.AccessBlock]
				text := func(s region.AccessBlock) string { return string(s) }
				return output.List(a.printer(), accessBlockDoc(state), []region.AccessBlock{state}, text, []col{{Title: "PUBLIC ACCESS", Text: text}})
			})
		},
	}
	dryFlag(c, &dry)
	return c
}

func allowedDoc(p region.AllowedImages) any {
	p.Criteria = nonNil(p.Criteria)
	return p
}

func (a *app) allowedImages() *cobra.Command {
	var one region.ImageCriterion
	var criteria string
	var age, deprecated int
	var none, dry bool
	c := &cobra.Command{
		Use: "allowed-images [STATE]", Short: "Say which images of others this account may use", Args: args(0, 1), ValidArgs: region.AllowedStates(),
		Long: `Show which images of others this account allows itself in the region, or set it.
STATE is disabled, audit-mode, in which images are only marked (ImageAllowed),
or enabled, in which those that are not allowed are not there. Its own images
are always allowed, and so is one that fits any one criterion; without any, all
are. The flags make up one criterion, which takes the place of those there are,
and which an image fits that fits them all; --criteria gives several as EC2's
JSON.`,
		Example: "  kami region allowed-images\n  kami region allowed-images audit-mode --provider 123456789012 --name 'web-*' --max-age-days 90\n  kami region allowed-images enabled --criteria file://criteria.json\n  kami region allowed-images disabled --no-criteria",
		RunE: func(c *cobra.Command, given []string) error {
			f := c.Flags()
			if f.Changed("max-age-days") {
				one.CreationDateCondition = &region.CreationCondition{MaximumDaysSinceCreated: age}
			}
			if f.Changed("max-deprecated-days") {
				one.DeprecationTimeCondition = &region.DeprecationCondition{MaximumDaysSinceDeprecated: deprecated}
			}
			flags := f.Changed("provider") || f.Changed("name") || f.Changed("product-code") || one.CreationDateCondition != nil || one.DeprecationTimeCondition != nil
			var all []region.ImageCriterion
			switch {
			case flags && (criteria != "" || none) || criteria != "" && none:
				return usagef("give the criteria by flags, or with --criteria, or --no-criteria; %s", seeHelp(c))
			case none:
				all = []region.ImageCriterion{}
			case flags:
				all = []region.ImageCriterion{one}
			case criteria != "":
				var err error
				if all, err = readCriteria(criteria); err != nil {
					return err
				}
			}
			return a.with(c.Context(), func(r *region.Region) error {
				if len(given) > 0 || all != nil {
					state := region.AllowedState("")
					if len(given) > 0 {
						state = region.AllowedState(given[0])
					}
					if _, err := r.SetAllowedImages(c.Context(), state, all, dry); err != nil {
						return err
					}
				}
				p, err := r.AllowedImages(c.Context())
				if err != nil {
					return err
				}
				return a.printAllowed(p)
			})
		},
	}
	f := c.Flags()
	f.StringArrayVar(&one.ImageProviders, "provider", nil, "`ACCOUNT` whose images are allowed, an alias of one, or none; may be repeated")
	f.StringArrayVar(&one.ImageNames, "name", nil, "`PATTERN` of names that are allowed, with * and ?; may be repeated")
	f.StringArrayVar(&one.MarketplaceProductCodes, "product-code", nil, "product `CODE` that is allowed; may be repeated")
	f.IntVar(&age, "max-age-days", 0, "images made in the last `DAYS`")
	f.IntVar(&deprecated, "max-deprecated-days", 0, "images deprecated for at most `DAYS`, 0 for not at all")
	f.StringVar(&criteria, "criteria", "", "several, as the `JSON` of EC2's ImageCriteria or file://PATH")
	f.BoolVar(&none, "no-criteria", false, "take away the criteria that there are")
	dryFlag(c, &dry)
	return c
}

// readCriteria reads EC2's JSON.
func readCriteria(s string) (all []region.ImageCriterion, err error) {
	if s, err = textOf("criteria", s); err != nil {
		return nil, err
	}
	d := json.NewDecoder(strings.NewReader(s))
	d.DisallowUnknownFields()
	if err := d.Decode(&all); err != nil {
		return nil, usagef("the criteria are not EC2's JSON of ImageCriteria: %w", err)
	}
	if all == nil {
		all = []region.ImageCriterion{}
	}
	return all, nil
}

func (a *app) printAllowed(p region.AllowedImages) error {
	rows := p.Criteria
	if len(rows) == 0 { // the state is told all the same
		rows = []region.ImageCriterion{{}}
	}
	type col = output.Column[region.ImageCriterion]
	state := func(region.ImageCriterion) string { return string(p.State) }
	return output.List(a.printer(), allowedDoc(p), rows, state, []col{
		{Title: "STATE", Text: state},
		{Title: "PROVIDERS", Text: func(c region.ImageCriterion) string { return strings.Join(c.ImageProviders, ", ") }},
		{Title: "NAMES", Text: func(c region.ImageCriterion) string { return strings.Join(c.ImageNames, ", ") }},
		{Title: "PRODUCT CODES", Text: func(c region.ImageCriterion) string { return strings.Join(c.MarketplaceProductCodes, ", ") }},
		{Title: "MAX AGE", Text: func(c region.ImageCriterion) string {
			if c.CreationDateCondition == nil {
				return ""
			}
			return count(c.CreationDateCondition.MaximumDaysSinceCreated, "day")
		}},
		{Title: "MAX DEPRECATED", Text: func(c region.ImageCriterion) string {
			if c.DeprecationTimeCondition == nil {
				return ""
			}
			return count(c.DeprecationTimeCondition.MaximumDaysSinceDeprecated, "day")
		}},
	})
}
