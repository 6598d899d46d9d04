package region

import (
	"context"
	"crypto/rand"
	"slices"
	"strings"
	"time"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
)

// What a retention rule is for, EC2's.
const (
	RecycleSnapshots = "EBS_SNAPSHOT"
	RecycleImages    = "EC2_IMAGE"
)

// RecycleTypes lists them.
func RecycleTypes() []string { return []string{RecycleImages, RecycleSnapshots} }

// EC2's limits on retention rules.
const (
	maxRetentionDays = 365
	maxRuleTags      = 50
	maxExcludedTags  = 5
	minUnlockDays    = 7
	maxUnlockDays    = 30
)

// The states of a rule's lock.
const (
	ruleLocked        = "locked"
	rulePendingUnlock = "pending_unlock"
	ruleUnlocked      = "unlocked"
)

// RetentionRule keeps what is deleted in the recycle bin: everything of its type but
// what has an excluded tag, or, with ResourceTags, what has one of them.
type RetentionRule struct {
	Identifier          string          `json:"Identifier"`
	Description         string          `json:"Description,omitempty"`
	ResourceType        string          `json:"ResourceType"` // one of RecycleTypes
	Retention           RetentionPeriod `json:"RetentionPeriod"`
	ResourceTags        []RecycleTag    `json:"ResourceTags,omitempty"`
	ExcludeResourceTags []RecycleTag    `json:"ExcludeResourceTags,omitempty"`
	LockState           string          `json:"LockState,omitempty"` // locked, pending_unlock or unlocked; "" was never locked
	Lock                *RuleLock       `json:"LockConfiguration,omitempty"`
	LockEndTime         time.Time       `json:"LockEndTime,omitzero"` // of one that is being unlocked
}

// RetentionPeriod is how long what is deleted stays in the bin.
type RetentionPeriod struct {
	Value int    `json:"RetentionPeriodValue"` // 1 to 365
	Unit  string `json:"RetentionPeriodUnit"`  // DAYS
}

// RuleLock says how long it takes to unlock a rule.
type RuleLock struct {
	UnlockDelay UnlockDelay `json:"UnlockDelay"`
}

// UnlockDelay is a number of days, 7 to 30.
type UnlockDelay struct {
	Value int    `json:"UnlockDelayValue"`
	Unit  string `json:"UnlockDelayUnit"` // DAYS
}

const unitDays = "DAYS"

// RecycleTag is a tag that a rule looks for; without a value it may have any.
type RecycleTag struct {
	Key   string `json:"ResourceTagKey"`
	Value string `json:"ResourceTagValue,omitempty"`
}

func anyTag(rule []RecycleTag, tags []ami.Tag) bool {
	return slices.ContainsFunc(rule, func(want RecycleTag) bool {
		return slices.ContainsFunc(tags, func(t ami.Tag) bool {
			return t.Key == want.Key && (want.Value == "" || t.Value == want.Value)
		})
	})
}

// covers says whether a rule keeps what has a type and tags.
func (rule RetentionRule) covers(kind string, tags []ami.Tag) bool {
	if rule.ResourceType != kind {
		return false
	}
	if len(rule.ResourceTags) > 0 {
		return anyTag(rule.ResourceTags, tags)
	}
	return !anyTag(rule.ExcludeResourceTags, tags)
}

// lockAt is what a rule's lock is at an instant.
func (rule RetentionRule) lockAt(at time.Time) string {
	if rule.LockState == rulePendingUnlock && !at.Before(rule.LockEndTime) {
		return ruleUnlocked
	}
	return rule.LockState
}

func (rule RetentionRule) check() error {
	bad := func(format string, args ...any) error {
		return ami.Errorf(ami.CodeInvalidParameterValue, format, args...)
	}
	switch {
	case !slices.Contains(RecycleTypes(), rule.ResourceType):
		return bad("The resource type %q is not one of %s.", rule.ResourceType, strings.Join(RecycleTypes(), " and "))
	case rule.Retention.Value < 1 || rule.Retention.Value > maxRetentionDays:
		return bad("The retention of %d days is not from 1 to %d.", rule.Retention.Value, maxRetentionDays)
	case len(rule.ResourceTags) > 0 && len(rule.ExcludeResourceTags) > 0:
		return ami.Errorf(ami.CodeInvalidParameterCombination, "A rule for what has a tag excludes none; only one for everything does.")
	case len(rule.ResourceTags) > maxRuleTags || len(rule.ExcludeResourceTags) > maxExcludedTags:
		return bad("A rule has at most %d tags, or %d that exclude.", maxRuleTags, maxExcludedTags)
	case len(rule.Description) > 255:
		return bad("The description has %d characters; at most 255 are allowed.", len(rule.Description))
	}
	for _, t := range slices.Concat(rule.ResourceTags, rule.ExcludeResourceTags) {
		if err := ami.ValidateTags([]ami.Tag{{Key: t.Key, Value: t.Value}}); err != nil {
			return err
		}
	}
	return nil
}

const settingRules = "recycle-rules"

func rulesOf(tx *catalog.Tx, account string) (rules []RetentionRule, err error) {
	return rules, tx.Setting(account, settingRules, &rules)
}

// RetentionRules returns the rules of the caller's recycle bin, oldest first.
func (r *Region) RetentionRules(ctx context.Context) (rules []RetentionRule, err error) {
	err = r.catalog.View(ctx, func(tx *catalog.Tx) error {
		if rules, err = rulesOf(tx, r.account); err != nil {
			return err
		}
		now, err := r.seen(tx)
		for i := range rules {
			rules[i].LockState = rules[i].lockAt(now)
		}
		return err
	})
	return rules, storeError(err, "The rules cannot be read.")
}

// CreateRetentionRule makes a rule, whose identifier it chooses. It is for what is
// deleted from now on.
func (r *Region) CreateRetentionRule(ctx context.Context, rule RetentionRule, dry bool) (RetentionRule, error) {
	if err := rule.check(); err != nil {
		return rule, err
	}
	rule.Identifier, rule.LockState, rule.Lock, rule.LockEndTime = strings.ToLower(rand.Text()[:11]), "", nil, time.Time{}
	rule.Retention.Unit = unitDays
	if dry {
		return rule, dryRun("make a rule for %s", rule.ResourceType)
	}
	err := r.catalog.Update(ctx, func(tx *catalog.Tx) error {
		rules, err := rulesOf(tx, r.account)
		if err != nil {
			return err
		}
		return tx.PutSetting(r.account, settingRules, append(rules, rule))
	})
	return rule, storeError(err, "The rule cannot be written.")
}

// editRule changes one rule, or with gone deletes it.
func (r *Region) editRule(ctx context.Context, id string, dry bool, would string, edit func(tx *catalog.Tx, rule *RetentionRule) (gone bool, err error)) (out RetentionRule, err error) {
	err = r.catalog.Update(ctx, func(tx *catalog.Tx) error {
		rules, err := rulesOf(tx, r.account)
		if err != nil {
			return err
		}
		i := slices.IndexFunc(rules, func(rule RetentionRule) bool { return rule.Identifier == id })
		if i < 0 {
			return ami.Errorf(ami.CodeRuleNotFound, "The rule %q does not exist.", id).WithHint("kami bin rule list shows the rules there are.")
		}
		gone, err := edit(tx, &rules[i])
		if err != nil {
			return err
		}
		if dry {
			return dryRun("%s the rule %s", would, id)
		}
		if out = rules[i]; gone {
			rules = slices.Delete(rules, i, i+1)
		}
		return tx.PutSetting(r.account, settingRules, rules)
	})
	return out, storeError(err, "The rule cannot be changed.")
}

// DeleteRetentionRule deletes a rule that is not locked. What lies in the bin stays
// there as long as it was to.
func (r *Region) DeleteRetentionRule(ctx context.Context, id string, dry bool) error {
	_, err := r.editRule(ctx, id, dry, "delete", func(tx *catalog.Tx, rule *RetentionRule) (bool, error) {
		now, err := r.seen(tx)
		if err != nil {
			return false, err
		}
		if lock := rule.lockAt(now); lock != "" && lock != ruleUnlocked {
			until := ""
			if lock == rulePendingUnlock {
				until = " until " + rule.LockEndTime.Format(time.RFC3339)
			}
			return false, ami.Errorf(ami.CodeRuleConflict, "The rule %s is locked%s.", id, until).
				WithHint("kami bin rule unlock %s begins to unlock it, which takes %d days.", id, rule.Lock.UnlockDelay.Value)
		}
		return true, nil
	})
	return err
}

// LockRetentionRule keeps a rule for everything from being deleted. Unlocking it takes
// a number of days.
func (r *Region) LockRetentionRule(ctx context.Context, id string, unlockDelayDays int, dry bool) (RetentionRule, error) {
	if unlockDelayDays < minUnlockDays || unlockDelayDays > maxUnlockDays {
		return RetentionRule{}, ami.Errorf(ami.CodeInvalidParameterValue, "The unlock delay of %d days is not from %d to %d.", unlockDelayDays, minUnlockDays, maxUnlockDays)
	}
	return r.editRule(ctx, id, dry, "lock", func(tx *catalog.Tx, rule *RetentionRule) (bool, error) {
		now, err := r.tick(tx)
		if err != nil {
			return false, err
		}
		if len(rule.ResourceTags) > 0 {
			return false, ami.Errorf(ami.CodeInvalidParameterCombination, "The rule %s is for what has a tag, and only one for everything can be locked.", id)
		}
		if lock := rule.lockAt(now); lock == ruleLocked || lock == rulePendingUnlock {
			return false, ami.Errorf(ami.CodeRuleConflict, "The rule %s is %s already.", id, strings.ReplaceAll(lock, "_", " "))
		}
		rule.LockState, rule.Lock, rule.LockEndTime = ruleLocked, &RuleLock{UnlockDelay{unlockDelayDays, unitDays}}, time.Time{}
		return false, nil
	})
}

// UnlockRetentionRule begins to unlock a rule.
func (r *Region) UnlockRetentionRule(ctx context.Context, id string, dry bool) (RetentionRule, error) {
	return r.editRule(ctx, id, dry, "unlock", func(tx *catalog.Tx, rule *RetentionRule) (bool, error) {
		now, err := r.tick(tx)
		if err != nil {
			return false, err
		}
		if rule.lockAt(now) != ruleLocked {
			return false, ami.Errorf(ami.CodeRuleConflict, "The rule %s is not locked.", id)
		}
		rule.LockState, rule.LockEndTime = rulePendingUnlock, now.AddDate(0, 0, rule.Lock.UnlockDelay.Value).Truncate(time.Second)
		return false, nil
	})
}
