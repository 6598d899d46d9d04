package cli

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// commands returns the whole tree, parents first.
func commands(c *cobra.Command) []*cobra.Command {
	all := []*cobra.Command{c}
	for _, sub := range c.Commands() {
		all = append(all, commands(sub)...)
	}
	return all
}

// tree is the command tree as a run has it.
func tree() *cobra.Command { return (&app{}).root() }

// TestDocs holds docs/cli.md to the commands; with -update it writes the page.
func TestDocs(t *testing.T) {
	golden(t, "../../docs/cli.md", page(tree()))
}

func page(root *cobra.Command) string {
	var b strings.Builder
	fmt.Fprintf(&b, `# Commands

Written from the commands themselves, by %[1]sgo test ./pkg/cli -update%[1]s; %[1]skami COMMAND
--help%[1]s says the same.

An image is called by its id or its name, an instance by its id or its Name tag,
everything else by its id, a key pair and a region by their names. Commands that
make or change something print what came of it: a table on a terminal,
tab-separated lines without a header in a pipe, EC2's field names with %[1]s-o json%[1]s
or %[1]s-o yaml%[1]s, and ids alone with %[1]s-o id%[1]s. %[1]s--query%[1]s picks from the JSON form; with
%[1]s-o id%[1]s what it picks is written as text, a value a line.

The exit status is 0, or 1 when a command failed, 2 for a mistake in its words
(nothing was begun then), 130 after Ctrl-C, and for %[1]skami ssh%[1]s that of the command
run there. [errors.md](errors.md) has the codes.

Flags come first, then environment, then %[1]sconfig.toml%[1]s in the home, whose keys are
%[1]sregion%[1]s, %[1]saccount%[1]s, %[1]sconnect%[1]s, %[1]sdriver%[1]s, %[1]soutput%[1]s, %[1]sobject_store%[1]s (that of bundles, as
%[1]sKAMI_OBJECT_STORE%[1]s) and %[1]srecipes%[1]s (a list of folders to look recipes up in;
%[1]sKAMI_RECIPES%[1]s has colons between them). A section %[1]s[profiles.NAME]%[1]s has any of the first
five, for %[1]s--profile NAME%[1]s; %[1]s[organizations]%[1]s is in [images.md](images.md).

Flags of all commands:

`, "`")
	code(&b, root.PersistentFlags().FlagUsagesWrapped(100))
	b.WriteString("\n| command | |\n| --- | --- |\n")
	var last []*cobra.Command
	for _, c := range commands(root)[1:] {
		if !c.HasSubCommands() && !c.Parent().Hidden {
			fmt.Fprintf(&b, "| [%s](#%s) | %s |\n", c.CommandPath(), strings.ReplaceAll(c.CommandPath(), " ", "-"), c.Short)
			last = append(last, c)
		}
	}
	for _, c := range last {
		describeCommand(&b, c)
	}
	return b.String()
}

func describeCommand(b *strings.Builder, c *cobra.Command) {
	fmt.Fprintf(b, "\n## %s\n\n", c.CommandPath())
	if c.Long != "" {
		b.WriteString(c.Long + "\n\n")
	} else {
		b.WriteString(c.Short + ".\n\n")
	}
	code(b, c.UseLine())
	if len(c.Aliases) > 0 {
		fmt.Fprintf(b, "\nAlso: `%s %s`.\n", c.Parent().CommandPath(), strings.Join(c.Aliases, "`, `"))
	}
	b.WriteString("\nExamples:\n\n")
	for _, line := range strings.Split(c.Example, "\n") {
		code(b, strings.TrimPrefix(line, "  "))
	}
	if c.HasAvailableLocalFlags() {
		if flags := c.LocalNonPersistentFlags().FlagUsagesWrapped(100); flags != "" {
			b.WriteString("\nFlags:\n\n")
			code(b, flags)
		}
	}
}

// code writes text as a block of code.
func code(b *strings.Builder, text string) {
	for _, line := range strings.Split(strings.TrimRight(text, "\n"), "\n") {
		b.WriteString("    " + line + "\n")
	}
}

func TestEveryCommandExplainsItself(t *testing.T) {
	for _, c := range commands(tree()) {
		if c.Short == "" || strings.HasSuffix(c.Short, ".") {
			t.Errorf("%s: Short is %q, want a sentence without its point", c.CommandPath(), c.Short)
		}
		if c.Example == "" {
			t.Errorf("%s has no example", c.CommandPath())
		}
		if c.ValidArgsFunction == nil && len(c.ValidArgs) == 0 && !strings.Contains(c.Use, "FILE") {
			t.Errorf("%s completes its arguments with files", c.CommandPath())
		}
		for _, line := range strings.Split(c.Long, "\n") {
			if len(line) > 82 {
				t.Errorf("%s: %q is wider than a terminal", c.CommandPath(), line)
			}
		}
		c.LocalFlags().VisitAll(func(f *pflag.Flag) {
			value, text := pflag.UnquoteUsage(f)
			if len(text) < 4 || strings.HasSuffix(text, ".") {
				t.Errorf("%s --%s: usage is %q, want a phrase", c.CommandPath(), f.Name, text)
			}
			if f.Value.Type() != "bool" && value != strings.ToUpper(value) {
				t.Errorf("%s --%s takes a %q, want it named in capitals between back quotes", c.CommandPath(), f.Name, value)
			}
		})
	}
}

// TestExamplesAreTrue reads every example as the command line would: it names a
// command, its flags and as many arguments as the command takes.
func TestExamplesAreTrue(t *testing.T) {
	for _, c := range commands(tree()) {
		for _, line := range strings.Split(c.Example, "\n") {
			if !strings.HasPrefix(line, "  ") {
				t.Errorf("%s: the example %q is not indented", c.CommandPath(), line)
			}
			_, words, found := strings.Cut(line, "kami ")
			if !found {
				t.Errorf("%s: the example %q does not run kami", c.CommandPath(), line)
				continue
			}
			err := understood(words)
			if err != nil {
				t.Errorf("%s: the example %q: %v", c.CommandPath(), line, err)
			}
		}
	}
}

// TestPagesAreTrue reads the commands that the pages show, as TestExamplesAreTrue
// does those of the help.
func TestPagesAreTrue(t *testing.T) {
	pages, err := filepath.Glob("../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	read := 0
	for _, page := range append(pages, "../../README.md") {
		b, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		if filepath.Base(page) == "cli.md" { // which is of the examples
			continue
		}
		for _, line := range strings.Split(strings.ReplaceAll(string(b), "\\\n", ""), "\n") {
			words, found := shown(line)
			if !found {
				continue
			}
			read++
			if err := understood(words); err != nil {
				t.Errorf("%s: %q: %v", filepath.Base(page), line, err)
			}
		}
		// In the text a command may be named without what it takes.
		for _, m := range regexp.MustCompile("`kami ([a-z][^`]*)`").FindAllStringSubmatch(string(b), -1) {
			read++
			words := strings.Join(strings.Fields(m[1]), " ")
			if _, err := named(words); err != nil {
				t.Errorf("%s: `kami %s`: %v", filepath.Base(page), words, err)
			}
		}
	}
	if read < 100 {
		t.Errorf("found %d commands in the pages, want all", read)
	}
}

// shown is the command of kami in a line of a page that shows one: what is said of it
// comes after a few spaces, or behind a #.
func shown(line string) (words string, found bool) {
	text, indented := strings.CutPrefix(line, "    ")
	if !indented || strings.HasPrefix(text, " ") {
		return "", false
	}
	before, words, found := strings.Cut(text, "kami ")
	if !found || !regexp.MustCompile(`^((bin/|\$ |[A-Z_]+=\S* |.*\$\())*$`).MatchString(before) {
		return "", false
	}
	words, _, _ = strings.Cut(words, "    ")
	words, _, _ = strings.Cut(words, " #")
	if strings.HasSuffix(before, "$(") {
		words, _, _ = strings.Cut(words, ")")
	}
	return words, true
}

// understood says what the command line does not understand of a command: it has to
// name one, with its flags and as many arguments as that takes.
func understood(words string) error {
	c, err := named(words)
	if err == nil && c.Args != nil && c.RunE != nil && !c.HasSubCommands() {
		err = c.Args(c, c.Flags().Args())
	}
	if err == nil {
		err = c.ValidateRequiredFlags()
	}
	return err
}

// named is the command that the words name, with its flags parsed.
func named(words string) (*cobra.Command, error) {
	words = regexp.MustCompile(`'[^']*'|"[^"]*"`).ReplaceAllString(words, "quoted")
	words = regexp.MustCompile(` [<>|].*| …$|\|[a-z|]+`).ReplaceAllString(strings.TrimRight(words, ")"), "")
	root := tree()
	c, rest, err := root.Find(strings.Fields(words))
	if err == nil {
		err = c.ParseFlags(rest)
	}
	if err == nil && (c == root || c.HasSubCommands() && len(c.Flags().Args()) > 0) && !slices.Contains(rest, "--help") {
		err = errors.New("no command")
	}
	return c, err
}

func TestWhatIsNotUnderstood(t *testing.T) {
	for _, line := range []string{
		"    kami", "    kami imagine list", "    kami image show", "    kami image list --filters name=x", "    x=$(kami launch a b)",
	} {
		words, found := shown(line)
		if err := understood(words); found && err == nil {
			t.Errorf("%q is understood", line)
		}
	}
}
