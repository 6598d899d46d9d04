package cli

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/kamivm/kami/pkg/ami"
)

// usageError is a mistake in the command's words: nothing was begun.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// seeHelp is where a command's words are explained.
func seeHelp(c *cobra.Command) string { return c.CommandPath() + " --help shows what there is" }

// asUsage turns what cobra says of a mistake in the words into our own, and
// leaves every other error as it is.
func asUsage(c *cobra.Command, err error) error {
	if names, ok := strings.CutPrefix(fmt.Sprint(err), "required flag(s) "); ok {
		names = strings.ReplaceAll(strings.TrimSuffix(names, " not set"), `"`, "")
		return usagef("--%s is needed; %s", strings.ReplaceAll(names, ", ", ", --"), seeHelp(c))
	}
	return err
}

// flagError explains a flag that cannot be read.
func flagError(c *cobra.Command, err error) error {
	// Flags are read before the words are: the wrong word is the mistake, and
	// that it has no such flag only follows.
	if c.HasSubCommands() && c.Flags().NArg() > 0 {
		return unknownCommand(c, c.Flags().Arg(0))
	}
	text := err.Error()
	if word, ok := strings.CutPrefix(text, "unknown flag: --"); ok {
		return usagef("there is no flag --%s%s; %s", word, didYouMean("--", flagsLike(c, word)), seeHelp(c))
	}
	if before, _, ok := strings.Cut(text, ": strconv.ParseBool"); ok {
		text = before + ": not true or false"
	} else if before, _, ok := strings.Cut(text, ": strconv."); ok {
		text = before + ": not a whole number"
	} else if strings.Contains(text, ": time: ") {
		before, _, _ := strings.Cut(text, ": time: ")
		text = before + ": not a time such as 90s or 5m"
	}
	return usagef("%s; %s", text, seeHelp(c))
}

// flagsLike are the flags whose names are near a word.
func flagsLike(c *cobra.Command, word string) []string {
	// The names of commands are compared; here they are those of flags.
	names := &cobra.Command{SuggestionsMinimumDistance: 2}
	c.Flags().VisitAll(func(f *pflag.Flag) {
		names.AddCommand(&cobra.Command{Use: f.Name, Run: func(*cobra.Command, []string) {}})
	})
	return names.SuggestionsFor(word)
}

func unknownCommand(c *cobra.Command, word string) error {
	c.SuggestionsMinimumDistance = 2
	return usagef("%s has no command %q%s; %s", c.CommandPath(), word, didYouMean("", c.SuggestionsFor(word)), seeHelp(c))
}

func didYouMean(prefix string, words []string) string {
	if len(words) == 0 {
		return ""
	}
	return " (did you mean " + prefix + strings.Join(words, " or "+prefix) + "?)"
}

// args checks the number of arguments and says what is missing.
func args(least, most int) cobra.PositionalArgs {
	return func(c *cobra.Command, given []string) error {
		use := strings.TrimSuffix(c.UseLine(), " [flags]")
		switch {
		case len(given) < least:
			return usagef("too few arguments; the command is: %s", use)
		case most >= 0 && len(given) > most:
			return usagef("too many arguments, from %q on; the command is: %s", given[most], use)
		}
		return nil
	}
}

// exclusive refuses two flags of which only one makes sense.
func exclusive(c *cobra.Command, one, other string) error {
	if c.Flags().Changed(one) && c.Flags().Changed(other) {
		return usagef("--%s and --%s exclude each other", one, other)
	}
	return nil
}

// oneOf refuses a flag's value that is not one of a few; "" stands for a default.
func oneOf(flag, value string, known ...string) error {
	for _, k := range append(known, "") {
		if value == k {
			return nil
		}
	}
	return usagef("--%s %q is not one of %s", flag, value, strings.Join(known, ", "))
}

// atLeast refuses a flag's number that is too small.
func atLeast(flag string, n, least int64) error {
	if n < least {
		return usagef("--%s %d is less than %d", flag, n, least)
	}
	return nil
}

// asCommandOf makes c a noun whose verbs are the commands under it.
func asCommandOf(c *cobra.Command) *cobra.Command {
	c.Args = func(c *cobra.Command, given []string) error {
		if len(given) > 0 {
			return unknownCommand(c, given[0])
		}
		return nil
	}
	c.RunE = func(c *cobra.Command, _ []string) error { return c.Help() }
	c.ValidArgsFunction = cobra.NoFileCompletions
	return c
}

// unsettled is for commands that work whatever the home and the environment say.
func unsettled(*cobra.Command, []string) error { return nil }

// group is a noun with its verbs.
func group(use, short, example string, subs ...*cobra.Command) *cobra.Command {
	c := asCommandOf(&cobra.Command{Use: use, Short: short, Example: example})
	c.AddCommand(subs...)
	return c
}

// help is the command that shows what --help does.
func help() *cobra.Command {
	return &cobra.Command{
		Use: "help [COMMAND...]", Short: "Explain a command", PersistentPreRunE: unsettled, Example: "  kami help image create\n  kami image create --help",
		ValidArgsFunction: func(c *cobra.Command, given []string, _ string) (out []string, _ cobra.ShellCompDirective) {
			at, rest, err := c.Root().Find(given)
			if err != nil || len(rest) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			for _, sub := range at.Commands() {
				if sub.IsAvailableCommand() {
					out = append(out, sub.Name()+"\t"+sub.Short)
				}
			}
			return out, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(c *cobra.Command, given []string) error {
			of, rest, err := c.Root().Find(given)
			if err == nil && len(rest) > 0 {
				err = unknownCommand(of, rest[0])
			}
			if err != nil {
				return err
			}
			of.InitDefaultHelpFlag()
			return of.Help()
		},
	}
}

// completion writes what a shell needs to complete kami's commands.
func completion() *cobra.Command {
	shells := []string{"bash", "zsh", "fish", "powershell"}
	return &cobra.Command{
		Use: "completion SHELL", Short: "Write the completion script of a shell",
		Long: `Write the script by which a shell completes kami's commands, flags, and the ids
and names of what a region holds: bash, zsh, fish or powershell. For bash the
package bash-completion has to be installed.`,
		Example: "  source <(kami completion bash)\n  kami completion bash > ~/.local/share/bash-completion/completions/kami\n  kami completion zsh > \"${fpath[1]}/_kami\"",
		Args:    args(1, 1), ValidArgs: shells, PersistentPreRunE: unsettled,
		RunE: func(c *cobra.Command, given []string) error {
			root, out := c.Root(), c.OutOrStdout()
			switch given[0] {
			case "bash":
				return root.GenBashCompletionV2(out, true)
			case "zsh":
				return root.GenZshCompletion(out)
			case "fish":
				return root.GenFishCompletion(out, true)
			case "powershell":
				return root.GenPowerShellCompletionWithDesc(out)
			}
			return usagef("the shell %q is not one of %s", given[0], strings.Join(shells, ", "))
		},
	}
}

// isUsage says whether err is a mistake in the command's words.
func isUsage(err error) bool {
	var usage usageError
	return errors.As(err, &usage)
}

// usageTemplate is what --help shows under a command's description.
const usageTemplate = `Usage:
  {{if .HasAvailableSubCommands}}{{.CommandPath}} COMMAND{{else}}{{.UseLine}}{{end}}{{if .Aliases}}

Also:
  {{.Parent.CommandPath}} {{range $i, $a := .Aliases}}{{if $i}}, {{end}}{{$a}}{{end}}{{end}}{{if .HasExample}}

Examples:
{{.Example}}{{end}}{{$c := .}}{{if .HasAvailableSubCommands}}{{range $g := .Groups}}

{{.Title}}{{range $c.Commands}}{{if and .IsAvailableCommand (eq .GroupID $g.ID)}}
  {{rpad .Name .NamePadding}} {{.Short}}{{end}}{{end}}{{end}}{{if not .Groups}}

Commands:{{range .Commands}}{{if .IsAvailableCommand}}
  {{rpad .Name .NamePadding}} {{.Short}}{{end}}{{end}}{{end}}{{end}}{{if .HasAvailableLocalFlags}}

Flags:
{{.LocalFlags.FlagUsagesWrapped 100 | trimTrailingWhitespaces}}{{end}}{{if .HasAvailableInheritedFlags}}

Flags of all commands:
{{.InheritedFlags.FlagUsagesWrapped 100 | trimTrailingWhitespaces}}{{end}}{{if .HasAvailableSubCommands}}

{{.CommandPath}} COMMAND --help says more of one.{{end}}
`

// allOrNone does something to each of several things once it is known that it
// can be done to all of them.
func allOrNone(given []string, dry bool, do func(ref string, dry bool) error) error {
	var would error
	for _, ref := range given {
		err := do(ref, true)
		if ami.ErrorCode(err) != ami.CodeDryRunOperation {
			return err
		}
		would = errors.Join(would, err)
	}
	if dry {
		return would
	}
	for _, ref := range given {
		if err := do(ref, false); err != nil {
			return err
		}
	}
	return nil
}
