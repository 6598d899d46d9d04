package cli

import (
	"cmp"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/output"
	"github.com/kamivm/kami/pkg/region"
)

// profile is a named section of config.toml: settings that go together.
type profile struct {
	Region  string `toml:"region"`
	Account string `toml:"account"`
	Connect string `toml:"connect"`
	Driver  string `toml:"driver"`
	Output  string `toml:"output"`
}

// settleProfile takes the settings of the profile that was chosen. One that is named
// by a flag goes before the environment, as flags do; one that the environment names
// goes before the rest of config.toml.
func (a *app) settleProfile(conf *config) error {
	a.profiles = slices.Sorted(maps.Keys(conf.Profiles))
	name := cmp.Or(a.flags.profile, os.Getenv("KAMI_PROFILE"))
	if name == "" {
		return nil
	}
	p, ok := conf.Profiles[name]
	if !ok {
		if len(a.profiles) == 0 {
			return usagef("there is no profile %q: config.toml in the home has no section [profiles.%s]", name, name)
		}
		return usagef("the profile %q is not one of %s", name, strings.Join(a.profiles, ", "))
	}
	f := &a.flags
	to := []*string{&f.region, &f.account, &f.connect, &f.driver, &f.output}
	if f.profile == "" {
		to = []*string{&conf.Region, &conf.Account, &conf.Connect, &conf.Driver, &conf.Output}
	}
	for i, v := range []string{p.Region, p.Account, p.Connect, p.Driver, p.Output} {
		if f.profile == "" {
			*to[i] = cmp.Or(v, *to[i])
		} else {
			*to[i] = cmp.Or(*to[i], v)
		}
	}
	return nil
}

func (a *app) completeProfiles(c *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	a.flags.profile = "" // which is being typed
	if err := a.configure(c, nil); err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return a.profiles, cobra.ShellCompDirectiveNoFileComp
}

func accountsDoc(all []region.AccountUse) any { return map[string]any{"Accounts": nonNil(all)} }

func (a *app) account() *cobra.Command {
	show := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List the accounts that own something in the region", Args: args(0, 0), ValidArgsFunction: cobra.NoFileCompletions,
		Long: `List the accounts that own something in the region, with how much. Any 12 digits
are an account; nothing has to be made for one. Only 000000000000, which keeps
the region, may see them all.`,
		Example: "  kami account list\n  kami --as 111122223333 image list",
		RunE: func(c *cobra.Command, _ []string) error {
			return a.with(c.Context(), func(r *region.Region) error {
				all, err := r.Accounts(c.Context())
				if err != nil {
					return err
				}
				type col = output.Column[region.AccountUse]
				return output.List(a.printer(), accountsDoc(all), all, func(u region.AccountUse) string { return u.AccountID }, []col{
					{Title: "ACCOUNT", Text: func(u region.AccountUse) string { return u.AccountID }},
					{Title: "IMAGES", Text: func(u region.AccountUse) string { return strconv.Itoa(u.Images) }},
					{Title: "SNAPSHOTS", Text: func(u region.AccountUse) string { return strconv.Itoa(u.Snapshots) }},
					{Title: "VOLUMES", Text: func(u region.AccountUse) string { return strconv.Itoa(u.Volumes) }},
					{Title: "INSTANCES", Text: func(u region.AccountUse) string { return strconv.Itoa(u.Instances) }},
					{Title: "KEYS", Text: func(u region.AccountUse) string { return strconv.Itoa(u.KeyPairs) }},
				})
			})
		},
	}
	return group("account", "See who owns what", "  kami account list\n  kami --as 111122223333 image list", show)
}

// completeAccounts offers the accounts that own something.
func (a *app) completeAccounts(c *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	a.flags.account = ami.DefaultAccount // which may see them all
	return a.complete(c, func(r *region.Region) (out []string) {
		all, _ := r.Accounts(c.Context())
		for _, u := range all {
			out = append(out, u.AccountID)
		}
		return out
	})
}
