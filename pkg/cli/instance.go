package cli

import (
	"context"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/output"
	"github.com/kamivm/kami/pkg/region"
)

func (a *app) printInstances(doc any, all []ami.Instance) error {
	type col = output.Column[ami.Instance]
	return output.List(a.printer(), doc, all, func(i ami.Instance) string { return string(i.InstanceID) }, []col{
		{Title: "INSTANCE", Text: func(i ami.Instance) string { return string(i.InstanceID) }},
		{Title: "NAME", Text: func(i ami.Instance) string { return nameTag(i.Tags) }},
		{Title: "STATE", Text: func(i ami.Instance) string { return string(i.State.Name) }},
		{Title: "IMAGE", Text: func(i ami.Instance) string { return string(i.ImageID) }},
		{Title: "TYPE", Text: func(i ami.Instance) string { return i.InstanceType }},
		{Title: "ACCEL", Text: func(i ami.Instance) string { return i.Accel }},
		{Title: "ADDRESS", Text: func(i ami.Instance) string {
			if i.SSHPort == 0 || i.State.Name != ami.InstanceRunning {
				return i.PrivateIPAddress
			}
			return "127.0.0.1:" + strconv.Itoa(i.SSHPort)
		}},
		{Title: "LAUNCHED", Text: func(i ami.Instance) string { return stamp(i.LaunchTime) }},
	})
}

func nameTag(tags []ami.Tag) string {
	for _, t := range tags {
		if t.Key == "Name" {
			return t.Value
		}
	}
	return ""
}

// instanceID finds an instance by its id or by its Name tag.
func (a *app) instanceID(ctx context.Context, r *region.Region, ref string) (ami.InstanceID, error) {
	if strings.HasPrefix(ref, "i-") {
		return ami.ParseInstanceID(ref)
	}
	all, err := r.DescribeInstances(ctx, region.DescribeInput{Filters: []region.Filter{{Name: "tag:Name", Values: []string{ref}}}})
	if err != nil {
		return "", err
	}
	var found []ami.InstanceID
	for _, i := range all {
		if i.State.Name != ami.InstanceTerminated {
			found = append(found, i.InstanceID)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return "", ami.Errorf(ami.CodeInvalidInstanceIDNotFound, "No instance has the name %q.", ref).
			WithHint("kami instance list shows the instances there are.")
	}
	return "", ami.Errorf(ami.CodeInvalidParameterValue, "%d instances have the name %q.", len(found), ref).WithHint("Give the id of one; kami instance list --filter 'tag:Name=%s' shows them.", ref)
}

func (a *app) instanceIDs(ctx context.Context, r *region.Region, refs []string) ([]ami.InstanceID, error) {
	ids := make([]ami.InstanceID, len(refs))
	for i, ref := range refs {
		var err error
		if ids[i], err = a.instanceID(ctx, r, ref); err != nil {
			return nil, err
		}
	}
	return ids, nil
}

func (a *app) instance() *cobra.Command {
	return group("instance", "See and control instances",
		"  kami instance list\n  kami instance stop i-0123456789abcdef0\n  kami instance terminate i-0123456789abcdef0", a.instanceList(), a.instanceShow(), a.instanceStart(), a.instanceStop(),
		a.instanceReboot(), a.instanceTerminate(), a.instanceWait(), a.instanceReplaceRoot(), a.instanceMetadata(), a.instanceUEFIData(), a.tag("instance", "i-0123456789abcdef0", a.completeInstances, a.instanceRef),
		a.untag("instance", "i-0123456789abcdef0", a.completeInstances, a.instanceRef))
}

func instancesDoc(all []ami.Instance) any { return map[string]any{"Instances": nonNil(all)} }

func (a *app) instanceList() *cobra.Command {
	return a.list("instances", "  kami instance list\n  kami instance list --filter instance-state-name=running -o id",
		func(ctx context.Context, r *region.Region, in region.DescribeInput) error {
			page, err := r.DescribeInstancesPage(ctx, in)
			if err != nil {
				return err
			}
			return a.tellMore(page.NextToken, a.printInstances(withToken(instancesDoc(page.Items), page.NextToken), page.Items))
		}, pageFlags)
}

// onInstances makes a verb that acts on instances and shows what became of them.
func (a *app) onInstances(c *cobra.Command, do func(context.Context, *region.Region, []ami.InstanceID) ([]ami.Instance, error)) *cobra.Command {
	c.Args, c.ValidArgsFunction = args(1, -1), a.completeInstances
	c.RunE = func(c *cobra.Command, given []string) error {
		return a.with(c.Context(), func(r *region.Region) error {
			ids, err := a.instanceIDs(c.Context(), r, given)
			if err != nil {
				return err
			}
			all, err := do(c.Context(), r, ids)
			if err != nil {
				return err
			}
			return a.printInstances(instancesDoc(all), all)
		})
	}
	return c
}

func describe(ctx context.Context, r *region.Region, ids []ami.InstanceID) ([]ami.Instance, error) {
	text := make([]string, len(ids))
	for i, id := range ids {
		text[i] = string(id)
	}
	return r.DescribeInstances(ctx, region.DescribeInput{IDs: text})
}

func (a *app) instanceShow() *cobra.Command {
	return a.onInstances(&cobra.Command{
		Use: "show INSTANCE...", Short: "Show all that is known of instances", Example: "  kami instance show i-0123456789abcdef0 -o json",
	}, func(ctx context.Context, r *region.Region, ids []ami.InstanceID) ([]ami.Instance, error) {
		a.wide()
		return describe(ctx, r, ids)
	})
}

func (a *app) instanceStart() *cobra.Command {
	var dry bool
	c := a.onInstances(&cobra.Command{
		Use: "start INSTANCE...", Short: "Start stopped instances, and let paused ones go on", Example: "  kami instance start i-0123456789abcdef0",
	}, func(ctx context.Context, r *region.Region, ids []ami.InstanceID) ([]ami.Instance, error) {
		return r.StartInstances(ctx, ids, dry)
	})
	dryFlag(c, &dry)
	return c
}

func (a *app) instanceStop() *cobra.Command {
	in := region.StopInput{}
	c := a.onInstances(&cobra.Command{
		Use: "stop INSTANCE...", Short: "Shut instances down cleanly, by force after a limit",
		Long: `Shut instances down. Each guest is asked to, by its agent or the power button; one
that does not within --timeout loses its power.`,
		Example: "  kami instance stop i-0123456789abcdef0\n  kami instance stop i-0123456789abcdef0 --force",
	}, func(ctx context.Context, r *region.Region, ids []ami.InstanceID) ([]ami.Instance, error) {
		in.InstanceIDs = ids
		return r.StopInstances(ctx, in)
	})
	c.Flags().BoolVar(&in.Force, "force", false, "cut the power at once")
	c.Flags().DurationVar(&in.Timeout, "timeout", region.DefaultStopTimeout, "`TIME` that a clean shutdown may take")
	dryFlag(c, &in.DryRun)
	return c
}

func (a *app) instanceReboot() *cobra.Command {
	var dry bool
	c := a.onInstances(&cobra.Command{
		Use: "reboot INSTANCE...", Short: "Reboot running instances", Example: "  kami instance reboot i-0123456789abcdef0",
	}, func(ctx context.Context, r *region.Region, ids []ami.InstanceID) ([]ami.Instance, error) {
		if err := r.RebootInstances(ctx, ids, dry); err != nil {
			return nil, err
		}
		return describe(ctx, r, ids)
	})
	dryFlag(c, &dry)
	return c
}

func (a *app) instanceTerminate() *cobra.Command {
	var dry bool
	c := a.onInstances(&cobra.Command{
		Use: "terminate INSTANCE...", Aliases: []string{"rm"}, Short: "End instances for good, with the volumes that go with them",
		Long: `End instances for good: the guests, their folders, and the volumes that are
deleted on termination (the root, unless it was said otherwise). Nothing brings
them back; kami image create before it keeps what they hold.`,
		Example: "  kami instance terminate i-0123456789abcdef0",
	}, func(ctx context.Context, r *region.Region, ids []ami.InstanceID) ([]ami.Instance, error) {
		return r.TerminateInstances(ctx, ids, dry)
	})
	dryFlag(c, &dry)
	return c
}

func (a *app) instanceWait() *cobra.Command {
	var cond string
	var limit time.Duration
	c := a.onInstances(&cobra.Command{
		Use: "wait INSTANCE...", Short: "Wait until instances have come so far",
		Long: `Wait until instances are running, booted (the console shows a login prompt), or
answering on ssh. When the wait ends in vain, the error has the last lines of the
guest's console.`,
		Example: "  kami instance wait i-0123456789abcdef0 --for ssh",
	}, func(ctx context.Context, r *region.Region, ids []ami.InstanceID) (all []ami.Instance, err error) {
		for _, id := range ids {
			inst, err := r.WaitInstance(ctx, id, region.WaitFor(cond), limit)
			if err != nil {
				return nil, err
			}
			all = append(all, inst)
		}
		return all, nil
	})
	c.PreRunE = func(*cobra.Command, []string) error { return oneOf("for", cond, waits()...) }
	c.Flags().StringVar(&cond, "for", "booted", "`STATE` to wait for: running, booted or ssh")
	completeValues(c, "for", waits()...)
	c.Flags().DurationVar(&limit, "wait-timeout", region.DefaultWait, "`TIME` to wait at most")
	return c
}
