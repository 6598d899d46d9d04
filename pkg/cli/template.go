package cli

import (
	"context"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/output"
	"github.com/kamivm/kami/pkg/region"
)

func templatesDoc(all []ami.LaunchTemplate) any {
	return map[string]any{"LaunchTemplates": nonNil(all)}
}

func (a *app) printTemplates(all []ami.LaunchTemplate) error {
	type col = output.Column[ami.LaunchTemplate]
	return output.List(a.printer(), templatesDoc(all), all, func(t ami.LaunchTemplate) string { return string(t.LaunchTemplateID) }, []col{
		{Title: "TEMPLATE", Text: func(t ami.LaunchTemplate) string { return string(t.LaunchTemplateID) }},
		{Title: "NAME", Text: func(t ami.LaunchTemplate) string { return t.LaunchTemplateName }},
		{Title: "VERSIONS", Text: func(t ami.LaunchTemplate) string { return strconv.Itoa(len(t.Versions)) }},
		{Title: "LATEST", Text: func(t ami.LaunchTemplate) string { return version(t.LatestVersionNumber) }},
		{Title: "DEFAULT", Text: func(t ami.LaunchTemplate) string { return version(t.DefaultVersionNumber) }},
		{Title: "CREATED", Text: func(t ami.LaunchTemplate) string { return stamp(t.CreateTime) }},
	})
}

func version(n int64) string { return strconv.FormatInt(n, 10) }

func versionsDoc(all []ami.LaunchTemplateVersion) any {
	return map[string]any{"LaunchTemplateVersions": nonNil(all)}
}

func (a *app) printVersions(all []ami.LaunchTemplateVersion) error {
	type col = output.Column[ami.LaunchTemplateVersion]
	return output.List(a.printer(), versionsDoc(all), all, func(v ami.LaunchTemplateVersion) string { return version(v.VersionNumber) }, []col{
		{Title: "VERSION", Text: func(v ami.LaunchTemplateVersion) string { return version(v.VersionNumber) }},
		{Title: "DEFAULT", Text: func(v ami.LaunchTemplateVersion) string {
			if v.DefaultVersion {
				return "default"
			}
			return ""
		}},
		{Title: "IMAGE", Text: func(v ami.LaunchTemplateVersion) string { return v.LaunchTemplateData.ImageID }},
		{Title: "TYPE", Text: func(v ami.LaunchTemplateVersion) string { return v.LaunchTemplateData.InstanceType }},
		{Title: "KEY", Text: func(v ami.LaunchTemplateVersion) string { return v.LaunchTemplateData.KeyName }},
		{Title: "CREATED", Text: func(v ami.LaunchTemplateVersion) string { return stamp(v.CreateTime) }},
		{Title: "DESCRIPTION", Text: func(v ami.LaunchTemplateVersion) string { return v.VersionDescription }},
	})
}

func (a *app) template() *cobra.Command {
	list := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List launch templates", Args: args(0, 0), ValidArgsFunction: cobra.NoFileCompletions,
		Example: "  kami template list",
		RunE: func(c *cobra.Command, _ []string) error {
			return a.with(c.Context(), func(r *region.Region) error {
				all, err := r.LaunchTemplates(c.Context())
				if err != nil {
					return err
				}
				return a.printTemplates(all)
			})
		},
	}
	show := &cobra.Command{
		Use: "show NAME[:VERSION]", Short: "Show the versions of a launch template", Args: args(1, 1), ValidArgsFunction: once(a.completeTemplates),
		Long:    "Show the versions of a launch template, or one of them: a number, $Latest or\n$Default.",
		Example: "  kami template show web\n  kami template show 'web:$Latest' -o json",
		RunE: func(c *cobra.Command, given []string) error {
			return a.with(c.Context(), func(r *region.Region) error {
				name, ref := ami.ParseTemplateRef(given[0])
				t, err := r.LaunchTemplate(c.Context(), name)
				if err != nil {
					return err
				}
				all := t.Versions
				if ref != "" {
					v, err := t.Version(ref)
					if err != nil {
						return err
					}
					all = []ami.LaunchTemplateVersion{v}
				}
				return a.printVersions(all)
			})
		},
	}
	var dry bool
	def := &cobra.Command{
		Use: "default NAME:VERSION", Short: "Make a version of a launch template its default", Args: args(1, 1), ValidArgsFunction: once(a.completeTemplates),
		Example: "  kami template default web:3",
		RunE: func(c *cobra.Command, given []string) error {
			return a.with(c.Context(), func(r *region.Region) error {
				name, ref := ami.ParseTemplateRef(given[0])
				if ref == "" {
					return usagef("the version is missing: %s:VERSION; %s", strings.TrimSuffix(name, ":"), seeHelp(c))
				}
				t, err := r.SetDefaultTemplateVersion(c.Context(), name, ref, dry)
				if err != nil {
					return err
				}
				return a.printTemplates([]ami.LaunchTemplate{t})
			})
		},
	}
	dryFlag(def, &dry)
	var dryDelete bool
	del := &cobra.Command{
		Use: "delete NAME[:VERSION]...", Aliases: []string{"rm"}, Short: "Delete launch templates, or versions of them", Args: args(1, -1), ValidArgsFunction: a.completeTemplates,
		Long:    "Delete launch templates, or versions of them that are not the default. Instances\nthat were launched by them stay. The number of a version is never given again.",
		Example: "  kami template delete web:2\n  kami template delete web",
		RunE: func(c *cobra.Command, given []string) error {
			return a.with(c.Context(), func(r *region.Region) error {
				return allOrNone(given, dryDelete, func(ref string, dry bool) error {
					name, v := ami.ParseTemplateRef(ref)
					return r.DeleteLaunchTemplate(c.Context(), name, v, dry)
				})
			})
		},
	}
	dryFlag(del, &dryDelete)
	return group("template", "Keep how instances are launched, in versions",
		"  kami template create web --image web-1 --instance-type t3.small\n  kami template version web --source-version '$Latest' --image web-2\n  kami launch --template web", a.templateCreate(), a.templateVersion(), list, show, def, del)
}

// templateVerb writes a launch template or a version of one.
type templateVerb func(*region.Region, context.Context, region.TemplateInput) (ami.LaunchTemplate, error)

func (a *app) templateCreate() *cobra.Command {
	var in region.TemplateInput
	var run region.RunInstancesInput
	var l launchFlags
	c := &cobra.Command{
		Use: "create NAME", Short: "Make a launch template", Args: args(1, 1), ValidArgsFunction: cobra.NoFileCompletions,
		Long: `Make a launch template with its version 1. What it does not say is said by who
launches it, or has kami's default. That its image and keys exist is checked when
it is launched; an image that is given by its name is that of the name then.`,
		Example: "  kami template create web --image web-1 --instance-type t3.small --key-name me",
		RunE: func(c *cobra.Command, given []string) error {
			return a.writeTemplate(c, given[0], &in, &run, &l, (*region.Region).CreateLaunchTemplate)
		},
	}
	a.templateFlags(c, &in, &run, &l)
	return c
}

func (a *app) templateVersion() *cobra.Command {
	var in region.TemplateInput
	var run region.RunInstancesInput
	var l launchFlags
	c := &cobra.Command{
		Use: "version NAME", Short: "Make another version of a launch template", Args: args(1, 1), ValidArgsFunction: once(a.completeTemplates),
		Long: `Make another version of a launch template. With --source-version it has what that
version says and this one does not; without it, only what is said here. The
default version stays what it was, unless --default makes this one it.`,
		Example: "  kami template version web --source-version '$Latest' --image web-2 --default",
		RunE: func(c *cobra.Command, given []string) error {
			return a.writeTemplate(c, given[0], &in, &run, &l, (*region.Region).CreateLaunchTemplateVersion)
		},
	}
	c.Flags().StringVar(&in.SourceVersion, "source-version", "", "`VERSION` that the new one is made from: a number, $Latest or $Default")
	c.Flags().BoolVar(&in.Default, "default", false, "make the new version the default")
	completeValues(c, "source-version", ami.TemplateLatest, ami.TemplateDefault)
	a.templateFlags(c, &in, &run, &l)
	return c
}

func (a *app) templateFlags(c *cobra.Command, in *region.TemplateInput, run *region.RunInstancesInput, l *launchFlags) {
	c.Flags().StringVar(&run.Image, "image", "", "`IMAGE`, by its id or name")
	c.Flags().StringVar(&in.Description, "description", "", "`TEXT` of at most 255 characters, of the version")
	must(c.RegisterFlagCompletionFunc("image", a.completeImages))
	l.add(a, c, run)
	dryFlag(c, &in.DryRun)
}

func (a *app) writeTemplate(c *cobra.Command, name string, in *region.TemplateInput, run *region.RunInstancesInput, l *launchFlags, do templateVerb) error {
	if err := l.read(a, run); err != nil {
		return err
	}
	return a.with(c.Context(), func(r *region.Region) error {
		if err := l.readIn(c.Context(), r, run); err != nil {
			return err
		}
		in.Name, in.Data = name, region.TemplateDataOf(*run)
		t, err := do(r, c.Context(), *in)
		if err != nil {
			return err
		}
		return a.printTemplates([]ami.LaunchTemplate{t})
	})
}

func (a *app) completeTemplates(c *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	return a.complete(c, func(r *region.Region) (out []string) {
		all, _ := r.LaunchTemplates(c.Context())
		for _, t := range all {
			out = append(out, t.LaunchTemplateName)
		}
		return out
	})
}
