// Package cli is the command line: each command turns its flags into one call
// of the region and writes what comes back.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"

	"github.com/pelletier/go-toml/v2"
	"github.com/spf13/cobra"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/output"
	"github.com/kamivm/kami/pkg/region"
)

// The exit statuses.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
)

// app is what all commands share.
type app struct {
	args     []string // as given
	in       io.Reader
	out, err io.Writer
	flags    struct {
		home, region, account, profile, connect, driver, output, query string
		quiet                                                          bool
	}
	organizations map[string][]string // accounts by ARN
	profiles      []string            // names of those in config.toml
	recipes       []string
	objects       string // address of the object store for bundles
	progress      *output.Progress
}

// config is the home's optional config.toml.
type config struct {
	Region  string   `toml:"region"`
	Connect string   `toml:"connect"`
	Driver  string   `toml:"driver"`
	Output  string   `toml:"output"`
	Recipes []string `toml:"recipes"`
	Account string   `toml:"account"`
	// The accounts of organisations and of their units, by ARN.
	Organizations map[string][]string `toml:"organizations"`
	Profiles      map[string]profile  `toml:"profiles"`
	Objects       string              `toml:"object_store"`
}

// exitError ends the program with a status and without a message.
type exitError int

func (e exitError) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// Main runs the command line and returns the exit status.
func Main(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	// Most commands are over before it pays to collect anything; the limit has
	// those that go on for long collect all the same.
	debug.SetGCPercent(gcPercent)
	debug.SetMemoryLimit(memoryLimit)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	go func() { // a second interrupt ends the program at once
		<-ctx.Done()
		stop()
	}()
	a := &app{args: args, in: stdin, out: stdout, err: stderr}
	root := a.root()
	root.SetArgs(append([]string{}, args...)) // nil would stand for the process's own
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	c, err := root.ExecuteContextC(ctx)
	if a.progress != nil {
		a.progress.Close()
	}
	return a.report(asUsage(c, err))
}

const (
	gcPercent   = 400
	memoryLimit = 160 << 20 // bytes; soft
)

// report writes an error for a person and returns the exit status.
func (a *app) report(err error) int {
	var exit exitError
	var known *ami.Error
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &exit):
		return int(exit)
	case errors.Is(err, context.Canceled):
		fmt.Fprintln(a.err, "kami: interrupted; what was begun and not finished is undone")
		return 130
	case ami.ErrorCode(err) == ami.CodeDryRunOperation:
		errors.As(err, &known)
		fmt.Fprintln(a.err, "kami: "+known.Message)
		return exitOK
	}
	fmt.Fprintln(a.err, "kami: "+err.Error())
	if errors.As(err, &known) && known.Hint != "" {
		fmt.Fprintln(a.err, known.Hint)
	}
	if isUsage(err) {
		return exitUsage
	}
	return exitFailed
}

func (a *app) root() *cobra.Command {
	root := asCommandOf(&cobra.Command{
		Use:   "kami",
		Short: "Machine images for KVM, the way EC2 has them",
		Long: `kami builds or imports bootable machine images, launches them as KVM/QEMU
guests, and saves a changed guest as the next image. Images cost what changed.`,
		Example: `  kami build tiny --name web-1
  kami key create me
  kami launch web-1 --key-name me --wait ssh
  kami ssh i-0123456789abcdef0
  kami image create i-0123456789abcdef0 --name web-2`,
		SilenceErrors: true, SilenceUsage: true,
		PersistentPreRunE: a.configure,
	})
	f := root.PersistentFlags()
	f.StringVar(&a.flags.home, "home", "", "`FOLDER` that holds everything (KAMI_HOME)")
	f.StringVar(&a.flags.region, "region", "", "`REGION` to work in (KAMI_REGION, default local-1)")
	f.StringVar(&a.flags.account, "as", "", "`ACCOUNT` of 12 digits that asks (KAMI_ACCOUNT, default 000000000000)")
	f.StringVar(&a.flags.profile, "profile", "", "`NAME` of the profile in config.toml to work by (KAMI_PROFILE)")
	f.StringVar(&a.flags.connect, "connect", "", "`URI` of the libvirt to use, such as qemu:///session (KAMI_CONNECT)")
	f.StringVar(&a.flags.driver, "driver", "", "`DRIVER` of new guests: libvirt, or qemu, which needs no libvirt (KAMI_DRIVER, default libvirt where it can be reached)")
	f.StringVarP(&a.flags.output, "output", "o", "", "`FORMAT` of the results: table, json, yaml or id (KAMI_OUTPUT, default table)")
	f.StringVar(&a.flags.query, "query", "", "JMESPath `EXPRESSION` that picks from the JSON form")
	f.BoolVarP(&a.flags.quiet, "quiet", "q", false, "no progress on standard error")
	root.SetFlagErrorFunc(flagError)
	root.SetUsageTemplate(usageTemplate)
	root.CompletionOptions.DisableDefaultCmd = true
	complete := root.RegisterFlagCompletionFunc
	must(complete("output", cobra.FixedCompletions(output.Formats(), cobra.ShellCompDirectiveNoFileComp)))
	must(complete("driver", cobra.FixedCompletions(region.Drivers(), cobra.ShellCompDirectiveNoFileComp)))
	must(complete("region", a.completeRegions))
	must(complete("as", a.completeAccounts))
	must(complete("profile", a.completeProfiles))
	must(complete("home", func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return nil, cobra.ShellCompDirectiveFilterDirs
	}))
	for _, g := range []struct {
		id, title string
		commands  []*cobra.Command
	}{
		{"job", "The main job:", []*cobra.Command{a.build(), a.importImage(), a.launch(), a.ssh(), a.console()}},
		{"nouns", "What a region holds:", []*cobra.Command{a.image(), a.instance(), a.template(), a.group(), a.volume(), a.snapshot(), a.bin(), a.key(), a.kms(), a.kernel(), a.bundle()}},
		{"house", "The house:", []*cobra.Command{a.store(), a.region(), a.account(), a.offer(), a.subscription(), a.bill(), a.doctor(), a.version(), completion(), a.imds()}},
	} {
		root.AddGroup(&cobra.Group{ID: g.id, Title: g.title})
		for _, c := range g.commands {
			c.GroupID = g.id
			root.AddCommand(c)
		}
	}
	h := help()
	h.GroupID = "house"
	root.SetHelpCommand(h)
	return root
}

// must is for what can only fail by a mistake in this package.
func must(err error) {
	if err != nil {
		panic(err)
	}
}

// configure settles the flags: what is said, else the environment, else the
// home's config.toml, else a default.
func (a *app) configure(cmd *cobra.Command, _ []string) error {
	if strings.HasPrefix(cmd.Name(), cobra.ShellCompRequestCmd) {
		return nil // the command whose words are completed settles them
	}
	first := func(values ...string) string {
		i := slices.IndexFunc(values, func(s string) bool { return s != "" })
		if i < 0 {
			return ""
		}
		return values[i]
	}
	home, err := filepath.Abs(first(a.flags.home, os.Getenv("KAMI_HOME"), defaultHome()))
	if err != nil {
		return err
	}
	a.flags.home = home
	var conf config
	data, err := os.ReadFile(filepath.Join(home, "config.toml"))
	if err == nil {
		d := toml.NewDecoder(strings.NewReader(string(data)))
		if err := d.DisallowUnknownFields().Decode(&conf); err != nil {
			return fmt.Errorf("%s: %w", filepath.Join(home, "config.toml"), explainConfig(err))
		}
	} else if !errors.Is(err, os.ErrNotExist) && !errors.Is(err, syscall.ENOTDIR) { // what is wrong with the home is told by who needs it
		return fmt.Errorf("the settings cannot be read: %w", err)
	}
	if err := a.settleProfile(&conf); err != nil {
		return err
	}
	a.flags.region = first(a.flags.region, os.Getenv("KAMI_REGION"), conf.Region, region.DefaultRegion)
	if err := errors.Join(a.settleDriver(conf), a.settleAccount(conf)); err != nil {
		return err
	}
	a.flags.output = first(a.flags.output, os.Getenv("KAMI_OUTPUT"), conf.Output, string(output.Table))
	if !slices.Contains(output.Formats(), a.flags.output) {
		return usagef("the output %q is not one of %s", a.flags.output, strings.Join(output.Formats(), ", "))
	}
	if err := output.CheckQuery(a.flags.query); err != nil {
		return usageError{err}
	}
	a.recipes, a.objects = conf.Recipes, first(os.Getenv("KAMI_OBJECT_STORE"), conf.Objects)
	if dirs := os.Getenv("KAMI_RECIPES"); dirs != "" {
		a.recipes = filepath.SplitList(dirs)
	}
	a.recipes = append(a.recipes, defaultRecipes()...)
	if !a.flags.quiet {
		a.progress = output.NewProgress(a.err)
	}
	return nil
}

// explainConfig says which keys are not known and where they are.
func explainConfig(err error) error {
	var strict *toml.StrictMissingError
	if !errors.As(err, &strict) {
		return err
	}
	faults := make([]error, len(strict.Errors))
	for i, e := range strict.Errors {
		line, _ := e.Position()
		faults[i] = fmt.Errorf("line %d: %q is no setting; those are region, account, organizations, profiles, connect, driver, output, recipes and object_store", line, strings.Join(e.Key(), "."))
	}
	return errors.Join(faults...)
}

func defaultHome() string {
	if dir := os.Getenv("XDG_DATA_HOME"); dir != "" {
		return filepath.Join(dir, "kami")
	}
	if os.Getuid() == 0 {
		return "/var/lib/kami"
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return ".kami"
	}
	return filepath.Join(home, ".local", "share", "kami")
}

// defaultRecipes are the folders in which recipes have names: beside the
// program, as a checkout has them, and where a package puts them.
func defaultRecipes() []string {
	dirs := []string{"images"}
	if exe, err := os.Executable(); err == nil {
		dirs = append(dirs, filepath.Join(filepath.Dir(exe), "..", "images"))
	}
	return append(dirs, "/usr/share/kami/images")
}

func (a *app) options() region.Options {
	o := region.Options{Home: a.flags.home, Name: a.flags.region, Account: a.flags.account, Organizations: a.organizations, Connect: a.flags.connect, Driver: a.flags.driver, RecipesDirs: a.recipes, ObjectStore: a.objects, Program: program()}
	if a.progress != nil {
		o.Progress = a.progress
	}
	return o
}

// with opens the region for one call.
func (a *app) with(ctx context.Context, fn func(*region.Region) error) (err error) {
	r, err := region.Open(ctx, a.options())
	if err != nil {
		return err
	}
	defer func() {
		due := err == nil && r.MergeDue()
		if cerr := r.Close(); err == nil {
			err = cerr
		}
		if due {
			a.mergeLater()
		}
	}()
	return fn(r)
}

func (a *app) printer() output.Printer {
	if a.progress != nil {
		a.progress.Close()
	}
	return output.Printer{Out: a.out, Format: output.Format(a.flags.output), Query: a.flags.query}
}
