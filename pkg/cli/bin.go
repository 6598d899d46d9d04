package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/output"
	"github.com/kamivm/kami/pkg/region"
)

func rulesDoc(all []region.RetentionRule) any { return map[string]any{"Rules": nonNil(all)} }

func binDoc(all []region.RecycledResource) any { return map[string]any{"Resources": nonNil(all)} }

func (a *app) bin() *cobra.Command {
	list := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List what lies in the recycle bin", Args: args(0, 0), ValidArgsFunction: cobra.NoFileCompletions,
		Long: `List what lies in the recycle bin, that first which leaves it first. What is past
its time is deleted by the next command; nothing else deletes it.`,
		Example: "  kami bin list\n  kami bin list -o id",
		RunE: func(c *cobra.Command, _ []string) error {
			return a.with(c.Context(), func(r *region.Region) error {
				all, err := r.RecycleBin(c.Context())
				if err != nil {
					return err
				}
				type col = output.Column[region.RecycledResource]
				return output.List(a.printer(), binDoc(all), all, func(o region.RecycledResource) string { return o.ResourceID }, []col{
					{Title: "RESOURCE", Text: func(o region.RecycledResource) string { return o.ResourceID }},
					{Title: "TYPE", Text: func(o region.RecycledResource) string { return o.ResourceType }},
					{Title: "NAME", Text: func(o region.RecycledResource) string { return o.Name }},
					{Title: "DELETED", Text: func(o region.RecycledResource) string { return stamp(o.EnterTime) }},
					{Title: "KEPT UNTIL", Text: func(o region.RecycledResource) string { return stamp(o.ExitTime) }},
				})
			})
		},
	}
	var dry bool
	restore := &cobra.Command{
		Use: "restore RESOURCE...", Short: "Take images and snapshots out of the recycle bin", Args: args(1, -1), ValidArgsFunction: a.completeBin,
		Long: `Take images and snapshots out of the recycle bin, in the order in which they are
given: the snapshots of an image before the image. An image is shared again with
whom it was.`,
		Example: "  kami bin restore snap-0123456789abcdef0 ami-0123456789abcdef0",
		RunE: func(c *cobra.Command, given []string) error {
			return a.with(c.Context(), func(r *region.Region) error {
				for _, id := range given {
					var err error
					if strings.HasPrefix(id, "snap-") {
						_, err = r.RestoreSnapshot(c.Context(), ami.SnapshotID(id), dry)
					} else {
						_, err = r.RestoreImage(c.Context(), ami.ImageID(id), dry)
					}
					if err != nil {
						return err
					}
				}
				return nil
			})
		},
	}
	dryFlag(restore, &dry)
	return group("bin", "Keep what is deleted for a while",
		"  kami bin rule create --type EC2_IMAGE --days 14\n  kami bin list\n  kami bin restore ami-0123456789abcdef0", list, restore, a.binRule())
}

func (a *app) printRules(all []region.RetentionRule) error {
	type col = output.Column[region.RetentionRule]
	tags := func(list []region.RecycleTag) string {
		var out []string
		for _, t := range list {
			out = append(out, strings.TrimSuffix(t.Key+"="+t.Value, "="))
		}
		return strings.Join(out, ", ")
	}
	return output.List(a.printer(), rulesDoc(all), all, func(rule region.RetentionRule) string { return rule.Identifier }, []col{
		{Title: "RULE", Text: func(rule region.RetentionRule) string { return rule.Identifier }},
		{Title: "TYPE", Text: func(rule region.RetentionRule) string { return rule.ResourceType }},
		{Title: "KEEPS", Text: func(rule region.RetentionRule) string { return count(rule.Retention.Value, "day") }},
		{Title: "WITH TAG", Text: func(rule region.RetentionRule) string { return tags(rule.ResourceTags) }},
		{Title: "BUT WITH", Text: func(rule region.RetentionRule) string { return tags(rule.ExcludeResourceTags) }},
		{Title: "LOCK", Text: func(rule region.RetentionRule) string { return rule.LockState }},
	})
}

func recycleTags(list []string) (out []region.RecycleTag) {
	for _, s := range list {
		k, v, _ := strings.Cut(s, "=")
		out = append(out, region.RecycleTag{Key: k, Value: v})
	}
	return out
}

func (a *app) binRule() *cobra.Command {
	list := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List the rules of the recycle bin", Args: args(0, 0), ValidArgsFunction: cobra.NoFileCompletions,
		Example: "  kami bin rule list",
		RunE: func(c *cobra.Command, _ []string) error {
			return a.with(c.Context(), func(r *region.Region) error {
				all, err := r.RetentionRules(c.Context())
				if err != nil {
					return err
				}
				return a.printRules(all)
			})
		},
	}
	var delay int
	lock := a.ruleVerb("lock RULE", "Keep a rule from being deleted", "  kami bin rule lock 0a1b2c3d4e5 --unlock-days 7",
		"Keep a rule for everything from being deleted. To unlock it takes a number of\ndays, in which it goes on keeping what is deleted.",
		func(ctx context.Context, r *region.Region, id string, dry bool) (region.RetentionRule, error) {
			return r.LockRetentionRule(ctx, id, delay, dry)
		})
	lock.Flags().IntVar(&delay, "unlock-days", 7, "`DAYS` from unlocking it to its being so, 7 to 30")
	unlock := a.ruleVerb("unlock RULE", "Begin to unlock a rule", "  kami bin rule unlock 0a1b2c3d4e5",
		"Begin to unlock a rule. It can be deleted when the days are over that it was\nlocked with.",
		func(ctx context.Context, r *region.Region, id string, dry bool) (region.RetentionRule, error) {
			return r.UnlockRetentionRule(ctx, id, dry)
		})
	var dry bool
	del := &cobra.Command{
		Use: "delete RULE...", Aliases: []string{"rm"}, Short: "Delete rules of the recycle bin", Args: args(1, -1), ValidArgsFunction: a.completeRules,
		Long:    "Delete rules of the recycle bin. What lies there already stays as long as it was\nto.",
		Example: "  kami bin rule delete 0a1b2c3d4e5",
		RunE: func(c *cobra.Command, given []string) error {
			return a.with(c.Context(), func(r *region.Region) error {
				return allOrNone(given, dry, func(id string, dry bool) error { return r.DeleteRetentionRule(c.Context(), id, dry) })
			})
		},
	}
	dryFlag(del, &dry)
	return group("rule", "Say what the recycle bin keeps, and how long",
		"  kami bin rule create --type EC2_IMAGE --days 14\n  kami bin rule list", list, a.ruleCreate(), del, lock, unlock)
}

func (a *app) ruleCreate() *cobra.Command {
	var rule region.RetentionRule
	var with, without []string
	var dry bool
	c := &cobra.Command{
		Use: "create", Short: "Have the recycle bin keep what is deleted", Args: args(0, 0), ValidArgsFunction: cobra.NoFileCompletions,
		Long: fmt.Sprintf(`Have the recycle bin keep what is deleted from now on: images (%s) or
snapshots (%s) of this account. With --tag only those that have one of
the tags, with --exclude-tag all but those that have one; a tag without a value
is any of its key. Of several rules that fit the longest decides.`, region.RecycleImages, region.RecycleSnapshots),
		Example: "  kami bin rule create --type EC2_IMAGE --days 14\n  kami bin rule create --type EBS_SNAPSHOT --days 30 --tag stage=live\n  kami bin rule create --type EBS_SNAPSHOT --days 7 --exclude-tag scratch",
		RunE: func(c *cobra.Command, _ []string) error {
			if err := oneOf("type", rule.ResourceType, region.RecycleTypes()...); err != nil {
				return err
			}
			rule.ResourceTags, rule.ExcludeResourceTags = recycleTags(with), recycleTags(without)
			return a.with(c.Context(), func(r *region.Region) error {
				made, err := r.CreateRetentionRule(c.Context(), rule, dry)
				if err != nil {
					return err
				}
				return a.printRules([]region.RetentionRule{made})
			})
		},
	}
	f := c.Flags()
	f.StringVar(&rule.ResourceType, "type", "", "`TYPE` of what is kept: EC2_IMAGE or EBS_SNAPSHOT (needed)")
	f.IntVar(&rule.Retention.Value, "days", 0, "`NUMBER` of days that it is kept, 1 to 365 (needed)")
	f.StringVar(&rule.Description, "description", "", "`TEXT` of at most 255 characters")
	f.StringArrayVar(&with, "tag", nil, "keep what has this tag, as `KEY=VALUE` or KEY; may be repeated")
	f.StringArrayVar(&without, "exclude-tag", nil, "keep all but what has this tag, as `KEY=VALUE` or KEY; may be repeated")
	must(c.MarkFlagRequired("type"))
	must(c.MarkFlagRequired("days"))
	completeValues(c, "type", region.RecycleTypes()...)
	dryFlag(c, &dry)
	return c
}

// ruleVerb makes a verb that changes one rule.
func (a *app) ruleVerb(use, short, example, long string, do func(context.Context, *region.Region, string, bool) (region.RetentionRule, error)) *cobra.Command {
	var dry bool
	c := &cobra.Command{
		Use: use, Short: short, Long: long, Example: example, Args: args(1, 1), ValidArgsFunction: once(a.completeRules),
		RunE: func(c *cobra.Command, given []string) error {
			return a.with(c.Context(), func(r *region.Region) error {
				rule, err := do(c.Context(), r, given[0], dry)
				if err != nil {
					return err
				}
				return a.printRules([]region.RetentionRule{rule})
			})
		},
	}
	dryFlag(c, &dry)
	return c
}

func (a *app) completeBin(c *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	return a.complete(c, func(r *region.Region) (out []string) {
		all, _ := r.RecycleBin(c.Context())
		for _, o := range all {
			out = append(out, o.ResourceID+"\t"+o.Name)
		}
		return out
	})
}

func (a *app) completeRules(c *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	return a.complete(c, func(r *region.Region) (out []string) {
		all, _ := r.RetentionRules(c.Context())
		for _, rule := range all {
			out = append(out, rule.Identifier+"\t"+rule.ResourceType)
		}
		return out
	})
}
