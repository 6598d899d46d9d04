package region

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
)

// AllowedState is what the allowed-images policy does.
type AllowedState string

// The states: nothing; tell which images it would allow; have others not be there.
const (
	AllowedDisabled AllowedState = "disabled"
	AllowedAudit    AllowedState = "audit-mode"
	AllowedEnabled  AllowedState = "enabled"
)

// AllowedStates lists them.
func AllowedStates() []string {
	return []string{string(AllowedDisabled), string(AllowedAudit), string(AllowedEnabled)}
}

// EC2's limits on the policy.
const (
	maxCriteria       = 10
	maxCriterionEach  = 200 // providers
	maxCriterionNames = 50
	maxCriterionDays  = 36500
	providerNone      = "none"
	providerAmazon    = "amazon"
	providerMarket    = "aws-marketplace"
	providerBackup    = "aws-backup-vault"
	settingAllowed    = "allowed-images"
)

// AllowedImages are which images of others an account allows itself. Its own are always
// allowed, and so is what fits any one of the criteria; none allows everything.
type AllowedImages struct {
	State    AllowedState     `json:"State"`
	Criteria []ImageCriterion `json:"ImageCriteria"`
}

// ImageCriterion is fitted by an image that fits each of its fields that is there.
type ImageCriterion struct {
	ImageProviders           []string              `json:"ImageProviders,omitempty"` // accounts, aliases of owners, or none
	MarketplaceProductCodes  []string              `json:"MarketplaceProductCodes,omitempty"`
	ImageNames               []string              `json:"ImageNames,omitempty"` // may have the wildcards * and ?
	CreationDateCondition    *CreationCondition    `json:"CreationDateCondition,omitempty"`
	DeprecationTimeCondition *DeprecationCondition `json:"DeprecationTimeCondition,omitempty"`
}

// CreationCondition is fitted by an image that is not older.
type CreationCondition struct {
	MaximumDaysSinceCreated int `json:"MaximumDaysSinceCreated"`
}

// DeprecationCondition is fitted by an image that has not been deprecated for longer; 0
// by one that is not deprecated.
type DeprecationCondition struct {
	MaximumDaysSinceDeprecated int `json:"MaximumDaysSinceDeprecated"`
}

func (c ImageCriterion) check() error {
	bad := func(format string, args ...any) error {
		return ami.Errorf(ami.CodeInvalidParameterValue, format, args...)
	}
	for _, p := range c.ImageProviders {
		if !ami.IsAccount(p) && !slices.Contains([]string{providerAmazon, providerMarket, providerBackup, providerNone, ami.BuiltinAlias}, p) {
			return bad("The image provider %q is neither an account of 12 digits nor one of amazon, aws-marketplace, aws-backup-vault, kami and none.", p)
		}
	}
	for _, n := range c.ImageNames {
		if n == "" || len(n) > 128 {
			return bad("The image name %q does not have 1 to 128 characters.", n)
		}
	}
	switch created, deprecated := c.CreationDateCondition, c.DeprecationTimeCondition; {
	case len(c.ImageProviders)+len(c.MarketplaceProductCodes)+len(c.ImageNames) == 0 && created == nil && deprecated == nil:
		return ami.Errorf(ami.CodeMissingParameter, "A criterion says nothing.").WithHint("Give providers, names, product codes or ages.")
	case slices.Contains(c.ImageProviders, providerNone) && len(c.ImageProviders) > 1:
		return ami.Errorf(ami.CodeInvalidParameterCombination, "The image provider none goes with no other.")
	case len(c.ImageProviders) > maxCriterionEach || len(c.MarketplaceProductCodes) > maxCriterionNames || len(c.ImageNames) > maxCriterionNames:
		return bad("A criterion has at most %d providers, %d product codes and %d names.", maxCriterionEach, maxCriterionNames, maxCriterionNames)
	case created != nil && (created.MaximumDaysSinceCreated < 0 || created.MaximumDaysSinceCreated > maxCriterionDays),
		deprecated != nil && (deprecated.MaximumDaysSinceDeprecated < 0 || deprecated.MaximumDaysSinceDeprecated > maxCriterionDays):
		return bad("A number of days is not from 0 to %d.", maxCriterionDays)
	}
	return nil
}

// fits says whether an image fits a criterion at an instant.
func (c ImageCriterion) fits(i ami.Image, at time.Time) bool {
	one := func(list []string, ok func(string) bool) bool { return len(list) == 0 || slices.ContainsFunc(list, ok) }
	days := func(n int) time.Duration { return time.Duration(n) * 24 * time.Hour }
	switch created, deprecated := c.CreationDateCondition, c.DeprecationTimeCondition; {
	case !one(c.ImageProviders, func(p string) bool { return p == i.OwnerID || p == i.OwnerAlias && p != "" }),
		!one(c.ImageNames, func(n string) bool { return ami.Match(n, i.Name) }),
		!one(c.MarketplaceProductCodes, func(code string) bool {
			return slices.ContainsFunc(i.ProductCodes, func(p ami.ProductCode) bool { return p.ID == code })
		}),
		created != nil && at.Sub(i.CreationDate) > days(created.MaximumDaysSinceCreated):
		return false
	case deprecated != nil && i.IsDeprecated(at):
		return deprecated.MaximumDaysSinceDeprecated > 0 && at.Sub(i.DeprecationTime) <= days(deprecated.MaximumDaysSinceDeprecated)
	}
	return true
}

// allows says whether a policy, whatever its state, allows an account an image.
func (p AllowedImages) allows(account string, i ami.Image, at time.Time) bool {
	return i.OwnerID == account || i.OwnerID == ami.Builtin || len(p.Criteria) == 0 ||
		slices.ContainsFunc(p.Criteria, func(c ImageCriterion) bool { return c.fits(i, at) })
}

// AllowedImages returns the caller's policy.
func (r *Region) AllowedImages(ctx context.Context) (p AllowedImages, err error) {
	err = r.catalog.View(ctx, func(tx *catalog.Tx) (err error) {
		p, err = r.policy(tx)
		return err
	})
	return p, storeError(err, "The policy cannot be read.")
}

func (r *Region) policy(tx *catalog.Tx) (AllowedImages, error) {
	p := AllowedImages{State: AllowedDisabled}
	return p, tx.Setting(r.account, settingAllowed, &p)
}

// SetAllowedImages turns the caller's policy on or off, and with criteria replaces
// those; nil leaves them.
func (r *Region) SetAllowedImages(ctx context.Context, state AllowedState, criteria []ImageCriterion, dry bool) (p AllowedImages, err error) {
	if state != "" && !slices.Contains(AllowedStates(), string(state)) {
		return p, ami.Errorf(ami.CodeInvalidParameterValue, "The state %q is not one of %s.", state, strings.Join(AllowedStates(), ", "))
	}
	if len(criteria) > maxCriteria {
		return p, ami.Errorf(ami.CodeInvalidParameterValue, "There are %d criteria; at most %d are allowed.", len(criteria), maxCriteria)
	}
	for _, c := range criteria {
		if err := c.check(); err != nil {
			return p, err
		}
	}
	err = r.catalog.Update(ctx, func(tx *catalog.Tx) error {
		if p, err = r.policy(tx); err != nil {
			return err
		}
		if state != "" {
			p.State = state
		}
		if criteria != nil {
			p.Criteria = criteria
		}
		if dry {
			return dryRun("set the policy of allowed images to %s with %d criteria", p.State, len(p.Criteria))
		}
		return tx.PutSetting(r.account, settingAllowed, p)
	})
	return p, storeError(err, "The policy cannot be written.")
}

// checkAllowed refuses what the policy, being enabled, keeps from the caller: it is not
// there.
func (r *Region) checkAllowed(tx *catalog.Tx, i ami.Image) error {
	p, err := r.policy(tx)
	if err != nil || p.State != AllowedEnabled || p.allows(r.account, i, r.now()) {
		return err
	}
	return ami.Errorf(ami.CodeInvalidAMIIDNotFound, "The image id '[%s]' does not exist", i.ImageID).
		WithHint("The policy of allowed images keeps it from this account: kami region allowed-images")
}

// noteAudit tells of the launch of an image that the policy, in audit mode, would not
// allow.
func (r *Region) noteAudit(ctx context.Context, i ami.Image) error {
	p, err := r.AllowedImages(ctx)
	if err == nil && p.State == AllowedAudit && !p.allows(r.account, i, r.now()) {
		r.progress.Note("%s (%s) is not among the allowed images; the policy, in audit mode, only tells of that", i.ImageID, i.Name)
	}
	return err
}

// audited marks which images are allowed, unless the policy is disabled; with it
// enabled the others are not there. It leaves those that fit the filters by that.
func (r *Region) audited(tx *catalog.Tx, images []ami.Image, filters []Filter) ([]ami.Image, error) {
	p, err := r.policy(tx)
	if err != nil {
		return nil, err
	}
	now, out := r.now(), images[:0:0]
	for _, i := range images {
		allowed := p.State == AllowedDisabled || p.allows(r.account, i, now)
		if p.State != AllowedDisabled {
			i.ImageAllowed = &allowed
		}
		fits := allowed || p.State != AllowedEnabled
		for _, f := range filters {
			fits = fits && (f.Name != filterAllowed || slices.ContainsFunc(f.Values, func(v string) bool { return ami.Match(v, strconv.FormatBool(allowed)) }))
		}
		if fits {
			out = append(out, i)
		}
	}
	return out, nil
}

// filterAllowed is the one filter that no record knows of itself.
const filterAllowed = "image-allowed"
