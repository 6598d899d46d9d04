package cli

import (
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/region"
)

// once offers what complete does for the first argument and nothing for others.
func once(complete cobra.CompletionFunc) cobra.CompletionFunc {
	return func(c *cobra.Command, given []string, word string) ([]string, cobra.ShellCompDirective) {
		if len(given) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return complete(c, given, word)
	}
}

// thenFile offers what complete does for the first argument and files for others.
func thenFile(complete cobra.CompletionFunc) cobra.CompletionFunc {
	return func(c *cobra.Command, given []string, word string) ([]string, cobra.ShellCompDirective) {
		if len(given) > 0 {
			return nil, cobra.ShellCompDirectiveDefault
		}
		return complete(c, given, word)
	}
}

// completeValues offers the values that a flag takes.
func completeValues(c *cobra.Command, flag string, values ...string) {
	must(c.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp)))
}

// completeRecipes offers the recipes that have names, and folders.
func (a *app) completeRecipes(c *cobra.Command, _ []string, _ string) (out []string, _ cobra.ShellCompDirective) {
	if err := a.configure(c, nil); err != nil {
		return nil, cobra.ShellCompDirectiveDefault
	}
	for _, dir := range a.recipes {
		found, _ := filepath.Glob(filepath.Join(dir, "*", "recipe.yaml"))
		for _, path := range found {
			if name := filepath.Base(filepath.Dir(path)); !slices.Contains(out, name) {
				out = append(out, name)
			}
		}
	}
	return out, cobra.ShellCompDirectiveDefault
}

// complete offers what the region has. A shell waits for the answer, so what
// goes wrong only means that nothing is offered.
func (a *app) complete(c *cobra.Command, find func(*region.Region) []string) ([]string, cobra.ShellCompDirective) {
	if err := a.configure(c, nil); err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	a.progress = nil
	var out []string
	err := a.with(c.Context(), func(r *region.Region) error {
		out = find(r)
		return nil
	})
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}

func (a *app) completeImages(c *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	return a.complete(c, func(r *region.Region) (out []string) {
		all, _ := r.DescribeImages(c.Context(), region.DescribeInput{IncludeDeprecated: true, IncludeDisabled: true})
		for _, i := range all {
			out = append(out, string(i.ImageID)+"\t"+i.Name, i.Name)
		}
		return out
	})
}

func (a *app) completeInstances(c *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	return a.complete(c, func(r *region.Region) (out []string) {
		all, _ := r.DescribeInstances(c.Context(), region.DescribeInput{})
		for _, i := range all {
			if i.State.Name == ami.InstanceTerminated {
				continue
			}
			out = append(out, string(i.InstanceID)+"\t"+string(i.State.Name))
			if name := nameTag(i.Tags); name != "" {
				out = append(out, name)
			}
		}
		return out
	})
}

func (a *app) completeSnapshots(c *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	return a.complete(c, func(r *region.Region) (out []string) {
		all, _ := r.DescribeSnapshots(c.Context(), region.DescribeInput{})
		for _, s := range all {
			out = append(out, string(s.SnapshotID)+"\t"+s.Description)
		}
		return out
	})
}

// completeAttach offers a volume, then an instance.
func (a *app) completeAttach(c *cobra.Command, given []string, word string) ([]string, cobra.ShellCompDirective) {
	switch len(given) {
	case 0:
		return a.completeVolumes(c, given, word)
	case 1:
		return a.completeInstances(c, given, word)
	}
	return nil, cobra.ShellCompDirectiveNoFileComp
}

func (a *app) completeVolumes(c *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	return a.complete(c, func(r *region.Region) (out []string) {
		all, _ := r.DescribeVolumes(c.Context(), region.DescribeInput{})
		for _, v := range all {
			out = append(out, string(v.VolumeID)+"\t"+string(v.State))
		}
		return out
	})
}

func (a *app) completeKeys(c *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	return a.complete(c, func(r *region.Region) (out []string) {
		all, _ := r.DescribeKeyPairs(c.Context(), region.DescribeInput{})
		for _, k := range all {
			out = append(out, k.KeyName)
		}
		return out
	})
}

func (a *app) completeRegions(c *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	if err := a.configure(c, nil); err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	out, _ := region.Names(a.flags.home)
	return out, cobra.ShellCompDirectiveNoFileComp
}

func (a *app) completeKMSKeys(c *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	return a.complete(c, func(r *region.Region) (out []string) {
		all, _ := r.DescribeKMSKeys(c.Context())
		for _, k := range all {
			out = append(out, k.KeyID+"\t"+k.Alias)
			if k.Alias != "" {
				out = append(out, k.Alias)
			}
		}
		return out
	})
}
