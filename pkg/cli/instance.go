package cli

import (
	"context"
	"fmt"
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
		return "", ami.Errorf(ami.CodeInvalidInstanceIDNotFound, "The instance ID '%s' does not exist", ref).
			WithHint("kami instance list shows the instances there are.")
	}
	return "", ami.Errorf(ami.CodeInvalidParameterValue, "%d instances have the name %q.", len(found), ref).WithHint("Give an id.")
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

func (a *app) launch() *cobra.Command {
	var in region.RunInstancesInput
	var tags, mappings []string
	var boot, shutdown, wait, userData, name string
	var limit time.Duration
	c := &cobra.Command{
		Use: "launch IMAGE", Short: "Launch instances of an image", Args: args(1, 1), ValidArgsFunction: a.completeImages,
		Long: `Launch instances of an image, which is named by its id, its name, or with
--latest by a pattern of which the newest is taken. All instances start, or none.`,
		Example: "  kami launch web-1 --key-name me --wait ssh\n  kami launch 'web-*' --latest --count 3 --instance-type t3.small\n  kami launch web-1 --block-device-mapping /dev/sdf=:20 --user-data @setup.sh",
		RunE: func(c *cobra.Command, given []string) (err error) {
			if in.Tags, err = parseTags(tags); err != nil {
				return err
			}
			if name != "" {
				in.Tags = append(in.Tags, ami.Tag{Key: "Name", Value: name})
			}
			if in.BlockDeviceMappings, err = parseMappings(mappings); err != nil {
				return err
			}
			if in.UserData, err = a.userData(userData); err != nil {
				return err
			}
			in.Image, in.BootMode, in.ShutdownBehavior = given[0], ami.BootMode(boot), ami.ShutdownBehavior(shutdown)
			switch region.WaitFor(wait) {
			case "", region.WaitRunning, region.WaitBooted, region.WaitSSH:
			default:
				return usageError{fmt.Errorf("--wait %q is not running, booted or ssh", wait)}
			}
			return a.with(c.Context(), func(r *region.Region) error {
				res, err := r.RunInstances(c.Context(), in)
				if err != nil {
					return err
				}
				if wait != "" {
					for i, inst := range res.Instances {
						if res.Instances[i], err = r.WaitInstance(c.Context(), inst.InstanceID, region.WaitFor(wait), limit); err != nil {
							return err
						}
					}
				}
				return a.printInstances(res, res.Instances)
			})
		},
	}
	f := c.Flags()
	f.BoolVar(&in.Latest, "latest", false, "IMAGE is a pattern with * and ?; take the newest that matches")
	f.StringVar(&in.InstanceType, "instance-type", "", "EC2's name of a size (default t3.micro: 2 CPUs, 1 GiB)")
	f.IntVar(&in.CPUs, "cpus", 0, "CPUs, instead of the type's")
	f.Int64Var(&in.MemoryMiB, "memory", 0, "memory in MiB, instead of the type's")
	f.IntVar(&in.Count, "count", 1, "how many instances")
	f.StringVar(&in.KeyName, "key-name", "", "key pair that the guest lets in")
	f.StringVar(&userData, "user-data", "", "text, @FILE, file://FILE or - for standard input; at most 16 KiB")
	f.StringVar(&boot, "boot-mode", "", "legacy-bios, uefi or uefi-preferred, instead of the image's")
	f.StringVar(&shutdown, "shutdown-behavior", "", "what a shutdown inside the guest does: stop (default) or terminate")
	f.StringVar(&in.Hostname, "hostname", "", "host name (default the instance's id)")
	f.StringVar(&name, "name", "", "the instances' Name tag, by which they can be called")
	f.StringVar(&in.Network, "network", "", `network of the hypervisor's, or "user" for none (default: "default" where the system's libvirt has it up, else "user")`)
	f.BoolVar(&in.RequireKVM, "require-kvm", false, "fail rather than emulate")
	f.StringVar(&wait, "wait", "", "wait until the guest is running, booted or answers on ssh")
	f.DurationVar(&limit, "wait-timeout", region.DefaultWait, "how long to wait at most")
	must(c.RegisterFlagCompletionFunc("key-name", a.completeKeys))
	must(c.RegisterFlagCompletionFunc("wait", cobra.FixedCompletions([]string{"running", "booted", "ssh"}, cobra.ShellCompDirectiveNoFileComp)))
	must(c.RegisterFlagCompletionFunc("boot-mode", cobra.FixedCompletions([]string{"legacy-bios", "uefi", "uefi-preferred"}, cobra.ShellCompDirectiveNoFileComp)))
	mappingFlag(c, &mappings)
	tagFlag(c, &tags)
	dryFlag(c, &in.DryRun)
	return c
}

func (a *app) instance() *cobra.Command {
	return group("instance", "See and control instances", a.instanceList(), a.instanceShow(), a.instanceStart(), a.instanceStop(),
		a.instanceReboot(), a.instanceTerminate(), a.instanceWait(), a.tag("instance", a.completeInstances), a.untag("instance", a.completeInstances))
}

func instancesDoc(all []ami.Instance) any { return map[string]any{"Instances": nonNil(all)} }

func (a *app) instanceList() *cobra.Command {
	return a.list("instances", "  kami instance list\n  kami instance list --filter instance-state-name=running -o id",
		func(ctx context.Context, r *region.Region, in region.DescribeInput) error {
			all, err := r.DescribeInstances(ctx, in)
			if err != nil {
				return err
			}
			return a.printInstances(instancesDoc(all), all)
		})
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
		if a.flags.output == string(output.Table) {
			a.flags.output = string(output.YAML)
		}
		return describe(ctx, r, ids)
	})
}

func (a *app) instanceStart() *cobra.Command {
	var dry bool
	c := a.onInstances(&cobra.Command{
		Use: "start INSTANCE...", Short: "Start stopped instances", Example: "  kami instance start i-0123456789abcdef0",
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
		Example: "  kami instance stop i-0123456789abcdef0\n  kami instance stop i-0123456789abcdef0 --force",
	}, func(ctx context.Context, r *region.Region, ids []ami.InstanceID) ([]ami.Instance, error) {
		in.InstanceIDs = ids
		return r.StopInstances(ctx, in)
	})
	c.Flags().BoolVar(&in.Force, "force", false, "cut the power at once")
	c.Flags().DurationVar(&in.Timeout, "timeout", region.DefaultStopTimeout, "how long a clean shutdown may take")
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
		Use: "wait INSTANCE...", Short: "Wait until instances have come so far", Example: "  kami instance wait i-0123456789abcdef0 --for ssh",
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
	c.Flags().StringVar(&cond, "for", "booted", "running, booted or ssh")
	c.Flags().DurationVar(&limit, "wait-timeout", region.DefaultWait, "how long to wait at most")
	return c
}
