package cli

import (
	"errors"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/output"
	"github.com/kamivm/kami/pkg/region"
)

func groupsDoc(all []ami.Group) any { return map[string]any{"AutoScalingGroups": nonNil(all)} }

func actionsDoc(all []region.GroupAction) any { return map[string]any{"Activities": nonNil(all)} }

func (a *app) printGroups(all []ami.Group) error {
	type col = output.Column[ami.Group]
	current := func(g ami.Group) (n int) {
		for _, i := range g.Instances {
			if i.Current && i.State == ami.InstanceRunning {
				n++
			}
		}
		return n
	}
	return output.List(a.printer(), groupsDoc(all), all, func(g ami.Group) string { return g.GroupName }, []col{
		{Title: "GROUP", Text: func(g ami.Group) string { return g.GroupName }},
		{Title: "LAUNCHES", Text: func(g ami.Group) string {
			if g.Launch.Template != "" {
				return g.Launch.Template
			}
			return g.Launch.Data.ImageID
		}},
		{Title: "DESIRED", Text: func(g ami.Group) string { return strconv.Itoa(g.DesiredCapacity) }},
		{Title: "MIN", Text: func(g ami.Group) string { return strconv.Itoa(g.MinSize) }},
		{Title: "MAX", Text: func(g ami.Group) string { return strconv.Itoa(g.MaxSize) }},
		{Title: "INSTANCES", Text: func(g ami.Group) string { return strconv.Itoa(len(g.Instances)) }},
		{Title: "CURRENT", Text: func(g ami.Group) string { return strconv.Itoa(current(g)) }},
		{Title: "HEALTH CHECK", Text: func(g ami.Group) string { return g.HealthCheck }},
		{Title: "ROLL", Text: func(g ami.Group) string {
			if g.Status != "" || g.Refresh == nil {
				return g.Status
			}
			return g.Refresh.Status
		}},
	})
}

func (a *app) printActions(all []region.GroupAction) error {
	type col = output.Column[region.GroupAction]
	return output.List(a.printer(), actionsDoc(all), all, func(o region.GroupAction) string { return string(o.InstanceID) }, []col{
		{Title: "GROUP", Text: func(o region.GroupAction) string { return o.GroupName }},
		{Title: "ACTION", Text: func(o region.GroupAction) string {
			if o.DryRun {
				return "would " + o.Action
			}
			return o.Action
		}},
		{Title: "INSTANCE", Text: func(o region.GroupAction) string { return string(o.InstanceID) }},
		{Title: "CAUSE", Text: func(o region.GroupAction) string { return o.Cause }},
		{Title: "REVISION", Text: func(o region.GroupAction) string { return o.Revision }},
	})
}

func (a *app) group() *cobra.Command {
	list := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List groups", Args: args(0, 0), ValidArgsFunction: cobra.NoFileCompletions,
		Example: "  kami group list",
		RunE: func(c *cobra.Command, _ []string) error {
			return a.with(c.Context(), func(r *region.Region) error {
				all, err := r.Groups(c.Context())
				if err != nil {
					return err
				}
				return a.printGroups(all)
			})
		},
	}
	show := &cobra.Command{
		Use: "show GROUP", Short: "Show a group and its instances", Args: args(1, 1), ValidArgsFunction: once(a.completeGroups),
		Example: "  kami group show web",
		RunE: func(c *cobra.Command, given []string) error {
			return a.with(c.Context(), func(r *region.Region) error {
				g, err := r.Group(c.Context(), given[0])
				if err != nil {
					return err
				}
				return a.printGroup(g)
			})
		},
	}
	var dry bool
	reconcile := &cobra.Command{
		Use: "reconcile [GROUP...]", Short: "Bring groups to what is wanted of them", Args: args(0, -1), ValidArgsFunction: a.completeGroups,
		Long: `Bring groups to what is wanted of them, all without a name: terminate what is
not healthy, launch what is missing and wait until it is healthy, terminate what
is too much, and go on with a roll or a deletion that was interrupted. What was
done is listed; doing it again does nothing. It is meant to be called by a timer,
and may be killed at any time. --dry-run lists what would be done.`,
		Example: "  kami group reconcile --dry-run\n  kami group reconcile web",
		RunE: func(c *cobra.Command, given []string) error {
			return a.with(c.Context(), func(r *region.Region) error {
				done, err := r.ReconcileGroups(c.Context(), given, dry)
				return errors.Join(a.printActions(done), err)
			})
		},
	}
	reconcile.Flags().BoolVar(&dry, "dry-run", false, "list what would be done, change nothing")
	return group("group", "Keep a number of instances running",
		"  kami group create web --template web --desired 3 --health-check ssh\n  kami group reconcile\n  kami group roll web --template 'web:$Latest' --batch 2", a.groupCreate(), list, show, a.groupSet(), a.groupDelete(), reconcile, a.groupRoll())
}

func (a *app) printGroup(g ami.Group) error {
	if !a.asTable() {
		return a.printGroups([]ami.Group{g})
	}
	if g.Refresh != nil && !a.flags.quiet {
		fmt.Fprintf(a.err, "kami: the roll of %s is %s", stamp(g.Refresh.StartTime), g.Refresh.Status)
		if g.Refresh.Reason != "" {
			fmt.Fprintf(a.err, ": %s", g.Refresh.Reason)
		}
		fmt.Fprintln(a.err)
	}
	type col = output.Column[ami.GroupInstance]
	return output.List(a.printer(), groupsDoc([]ami.Group{g}), g.Instances, func(i ami.GroupInstance) string { return string(i.InstanceID) }, []col{
		{Title: "INSTANCE", Text: func(i ami.GroupInstance) string { return string(i.InstanceID) }},
		{Title: "STATE", Text: func(i ami.GroupInstance) string { return string(i.State) }},
		{Title: "IN SERVICE", Text: func(i ami.GroupInstance) string { return yesNo(i.InService) }},
		{Title: "CURRENT", Text: func(i ami.GroupInstance) string { return yesNo(i.Current) }},
		{Title: "LAUNCHED", Text: func(i ami.GroupInstance) string { return stamp(i.LaunchTime) }},
		{Title: "REVISION", Text: func(i ami.GroupInstance) string { return i.Revision }},
	})
}

// groupLaunchFlags say what a group launches.
type groupLaunchFlags struct{ template, image, instanceType, keyName string }

func (l *groupLaunchFlags) add(a *app, c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&l.template, "template", "", "`NAME[:VERSION]` of the launch template; the version is a number, $Latest or $Default")
	f.StringVar(&l.image, "image", "", "`IMAGE` to launch, by its id or name, instead of the template's")
	f.StringVar(&l.instanceType, "instance-type", "", "`TYPE`, instead of the template's")
	f.StringVar(&l.keyName, "key-name", "", "`NAME` of the key pair, instead of the template's")
	must(c.RegisterFlagCompletionFunc("template", a.completeTemplates))
	must(c.RegisterFlagCompletionFunc("image", a.completeImages))
	must(c.RegisterFlagCompletionFunc("key-name", a.completeKeys))
}

// read returns nil where nothing was said.
func (l *groupLaunchFlags) read() *ami.GroupLaunch {
	if *l == (groupLaunchFlags{}) {
		return nil
	}
	return &ami.GroupLaunch{Template: l.template, Data: ami.LaunchTemplateData{ImageID: l.image, InstanceType: l.instanceType, KeyName: l.keyName}}
}

// groupFlags say what is wanted of a group.
type groupFlags struct {
	launch             groupLaunchFlags
	least, most, wants int
	check              string
}

func (g *groupFlags) add(a *app, c *cobra.Command, in *region.GroupInput) {
	g.launch.add(a, c)
	f := c.Flags()
	f.IntVar(&g.wants, "desired", 0, "`N` instances are kept running")
	f.IntVar(&g.least, "min", 0, "`N` instances at least may be desired")
	f.IntVar(&g.most, "max", 0, "`N` instances at most may be desired, up to 100")
	f.StringVar(&g.check, "health-check", "", "`STATE` of a healthy instance: running, booted or ssh (its ssh server answers)")
	f.DurationVar(&in.Grace, "grace", 0, "`TIME` that an instance has to become healthy (default 5m)")
	completeValues(c, "health-check", waits()...)
	dryFlag(c, &in.DryRun)
}

func (g *groupFlags) read(c *cobra.Command, in *region.GroupInput) error {
	in.Launch, in.HealthCheck = g.launch.read(), region.WaitFor(g.check)
	for name, to := range map[string]struct {
		n  *int
		to **int
	}{"desired": {&g.wants, &in.Desired}, "min": {&g.least, &in.Min}, "max": {&g.most, &in.Max}} {
		if c.Flags().Changed(name) {
			*to.to = to.n
		}
	}
	return oneOf("health-check", g.check, waits()...)
}

func (a *app) groupCreate() *cobra.Command {
	var in region.GroupInput
	var flags groupFlags
	c := &cobra.Command{
		Use: "create GROUP", Short: "Make a group", Args: args(1, 1), ValidArgsFunction: cobra.NoFileCompletions,
		Long: `Make a group, which keeps a number of instances of a launch template or an image
running, whenever it is reconciled: its first instances come with the first kami
group reconcile. Without --desired it is one, without --max as many as desired;
the health check is running.`,
		Example: "  kami group create web --template web --desired 3 --max 6 --health-check ssh\n  kami group create job --image job-1 --instance-type t3.nano",
		RunE: func(c *cobra.Command, given []string) error {
			if err := flags.read(c, &in); err != nil {
				return err
			}
			if in.Launch == nil {
				return usagef("a --template or an --image is needed; %s", seeHelp(c))
			}
			in.Name = given[0]
			return a.with(c.Context(), func(r *region.Region) error {
				g, err := r.CreateGroup(c.Context(), in)
				if err != nil {
					return err
				}
				return a.printGroups([]ami.Group{g})
			})
		},
	}
	flags.add(a, c, &in)
	return c
}

func (a *app) groupSet() *cobra.Command {
	var in region.GroupInput
	var flags groupFlags
	c := &cobra.Command{
		Use: "set GROUP", Short: "Change what is wanted of a group", Args: args(1, 1), ValidArgsFunction: once(a.completeGroups),
		Long: `Change what is wanted of a group. What is not said stays; what it launches is said
as a whole. The next reconciliation does it. Another template or image is for
instances that are launched from then on; kami group roll replaces those that run.`,
		Example: "  kami group set web --desired 5\n  kami group set web --template 'web:$Latest'",
		RunE: func(c *cobra.Command, given []string) error {
			if err := flags.read(c, &in); err != nil {
				return err
			}
			in.Name = given[0]
			return a.with(c.Context(), func(r *region.Region) error {
				if _, err := r.SetGroup(c.Context(), in); err != nil {
					return err
				}
				g, err := r.Group(c.Context(), given[0])
				if err != nil {
					return err
				}
				return a.printGroups([]ami.Group{g})
			})
		},
	}
	flags.add(a, c, &in)
	return c
}

func (a *app) groupDelete() *cobra.Command {
	var force, dry bool
	c := &cobra.Command{
		Use: "delete GROUP", Aliases: []string{"rm"}, Short: "Delete a group", Args: args(1, 1), ValidArgsFunction: once(a.completeGroups),
		Long:    "Delete a group that has no instances, or with --force with them.",
		Example: "  kami group delete web --force",
		RunE: func(c *cobra.Command, given []string) error {
			return a.with(c.Context(), func(r *region.Region) error {
				done, err := r.DeleteGroup(c.Context(), given[0], force, dry)
				if len(done) == 0 {
					return err
				}
				return errors.Join(a.printActions(done), err)
			})
		},
	}
	c.Flags().BoolVar(&force, "force", false, "terminate its instances")
	dryFlag(c, &dry)
	return c
}

func (a *app) groupRoll() *cobra.Command {
	var in region.RollInput
	var launch groupLaunchFlags
	c := &cobra.Command{
		Use: "roll GROUP", Short: "Replace the instances of a group, a batch at a time", Args: args(1, 1), ValidArgsFunction: once(a.completeGroups),
		Long: `Replace the instances of a group that are not of what it launches, or of another
template, version or image that it launches from then on. A batch of new ones is
launched and has to become healthy before as many old ones are terminated. When
one does not within the group's grace, it is terminated and the roll stops: the
old instances that are left run on, and the group launches what it did before. A
roll that is killed goes on with the next reconciliation.`,
		Example: "  kami group roll web --template 'web:$Latest' --batch 2\n  kami group roll job --image job-2 --dry-run",
		RunE: func(c *cobra.Command, given []string) error {
			in.Name, in.Launch = given[0], launch.read()
			if c.Flags().Changed("batch") {
				if err := atLeast("batch", int64(in.Batch), 1); err != nil {
					return err
				}
			}
			return a.with(c.Context(), func(r *region.Region) error {
				done, err := r.RollGroup(c.Context(), in)
				return errors.Join(a.printActions(done), err)
			})
		},
	}
	launch.add(a, c)
	c.Flags().IntVar(&in.Batch, "batch", 0, "`N` instances at once (default 1)")
	c.Flags().BoolVar(&in.DryRun, "dry-run", false, "list what would be done, change nothing")
	return c
}

func (a *app) completeGroups(c *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	return a.complete(c, func(r *region.Region) (out []string) {
		all, _ := r.Groups(c.Context())
		for _, g := range all {
			out = append(out, g.GroupName)
		}
		return out
	})
}
