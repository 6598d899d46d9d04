// Package script runs the stories of this folder: each .txtar file tells, in
// commands that a person could type, one thing that kami does, and holds kami to
// it. Guests are real ones of a single boot sector, which says a line on its
// serial console and halts: they are up at once, and do not mind being cut off.
//
// Beside testscript's own commands a story has
//
//	sector FILE [TEXT]      write a raw disk of 4 MiB whose guest says TEXT
//	status N COMMAND...     run a command that has to end with that exit status
//	keep NAME               keep what the last command printed as $NAME
//	says INSTANCE TEXT      wait until a guest's console shows a text
//	home [DIR]              go on with another home, or back with the first
//	garble FILE             change one byte of a file, as a bad disk would
package script

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/kamivm/kami/pkg/cli"
	"github.com/kamivm/kami/pkg/hypervisor/hypervisortest"
)

// workRoot is where stories work: the user that runs the guests has to come
// through to their disks, which it would not under a private folder.
var workRoot string

// stories gives the tests a folder of their own.
type stories struct{ *testing.M }

func (s stories) Run() int {
	var err error
	if workRoot, err = os.MkdirTemp("/tmp", "kami-script-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(workRoot)
	if err := os.Chmod(workRoot, 0o755); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return s.M.Run()
}

func TestMain(m *testing.M) {
	testscript.Main(stories{m}, map[string]func(){
		"kami": func() { os.Exit(cli.Main(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) },
	})
}

func TestStories(t *testing.T) {
	recipes, err := filepath.Abs("../../images")
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir:                ".",
		WorkdirRoot:        workRoot,
		RequireUniqueNames: true,
		Setup:              func(env *testscript.Env) error { return setup(env, recipes) },
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"sector": sector, "status": status, "keep": keep, "says": says, "home": home, "garble": garble,
		},
	})
}

// setup gives a story a home and nothing else of the one who runs the tests.
func setup(env *testscript.Env, recipes string) error {
	if err := os.Chmod(env.WorkDir, 0o755); err != nil {
		return err
	}
	first := filepath.Join(env.WorkDir, "home")
	for _, name := range []string{"KAMI_CONNECT", "KAMI_DRIVER", "KAMI_REGION", "KAMI_OUTPUT", "KAMI_ACCOUNT", "KAMI_PROFILE"} {
		env.Setenv(name, "")
	}
	env.Setenv("KAMI_HOME", first)
	env.Setenv("KAMI_RECIPES", recipes)
	// An ordinary user's libvirt lives in these.
	for _, name := range []string{"HOME", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"} {
		if v, ok := os.LookupEnv(name); ok {
			env.Setenv(name, v)
		}
	}
	env.Defer(func() { endGuests(env) })
	return nil
}

// endGuests terminates what a story left in its homes, also one that failed half way.
func endGuests(env *testscript.Env) {
	self, err := os.Executable()
	if err != nil {
		panic(err)
	}
	catalogs, _ := filepath.Glob(filepath.Join(env.WorkDir, "*", "regions", "*", "catalog.db"))
	for _, path := range catalogs {
		region := filepath.Dir(path)
		kami := func(args ...string) []string {
			cmd := exec.Command(self, append([]string{"--region", filepath.Base(region)}, args...)...)
			cmd.Args[0] = "kami" // by which the test's binary knows what it is to be
			cmd.Env = append(os.Environ(), "KAMI_HOME="+filepath.Dir(filepath.Dir(region)), "KAMI_CONNECT=", "KAMI_OUTPUT=", "KAMI_REGION=")
			out, _ := cmd.Output()
			return strings.Fields(string(out))
		}
		left := kami("instance", "list", "-o", "id", "--filter", "instance-state-name=pending,running,stopping,stopped")
		if len(left) == 0 {
			continue
		}
		kami(append([]string{"instance", "stop", "--force"}, left...)...)
		kami(append([]string{"instance", "terminate"}, left...)...)
	}
}

// sector writes the raw disk of a guest.
func sector(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 || len(args) > 2 {
		ts.Fatalf("usage: sector FILE [TEXT]")
	}
	text := "hello: ready" // what kami takes for a guest that is up
	if len(args) == 2 {
		text = args[1]
	}
	f, err := os.Create(ts.MkAbs(args[0]))
	ts.Check(err)
	defer f.Close()
	_, err = f.Write(hypervisortest.BootSector(text))
	ts.Check(errors.Join(err, f.Truncate(4<<20)))
}

// status runs a command and looks at its exit status.
func status(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: status N COMMAND...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	got := 0
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		got = exit.ExitCode()
	case err != nil:
		ts.Fatalf("%s: %v", args[1], err)
	}
	if got != want {
		ts.Fatalf("%s ended with exit status %d, want %d", strings.Join(args[1:], " "), got, want)
	}
}

// keep keeps the last output as a variable.
func keep(ts *testscript.TestScript, neg bool, args []string) {
	text := strings.TrimSpace(ts.ReadFile("stdout"))
	if neg || len(args) != 1 || text == "" {
		ts.Fatalf("usage: keep NAME, after a command that printed something")
	}
	ts.Setenv(args[0], text)
}

// patience bounds how long a guest may take to say a thing. It is up in less
// than a second, but not where a host is busy.
const patience = 2 * time.Minute

// says waits until a guest has said a thing on its console.
func says(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: says INSTANCE TEXT")
	}
	for end := time.Now().Add(patience); ; time.Sleep(100 * time.Millisecond) {
		ts.Check(ts.Exec("kami", "console", args[0]))
		said := ts.ReadFile("stdout")
		if strings.Contains(said, args[1]) {
			return
		}
		if time.Now().After(end) {
			ts.Fatalf("the guest %s does not say %q, but:\n%s", args[0], args[1], said)
		}
	}
}

// home goes on with another home.
func home(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) > 1 {
		ts.Fatalf("usage: home [DIR]")
	}
	ts.Setenv("KAMI_HOME", ts.MkAbs(filepath.Join(ts.Getenv("WORK"), append(args, "home")[0])))
}

// garble changes a byte in the middle of a file.
func garble(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: garble FILE")
	}
	path := ts.MkAbs(args[0])
	ts.Check(os.Chmod(path, 0o644))
	b, err := os.ReadFile(path)
	ts.Check(err)
	b[len(b)/2] ^= 0xff
	ts.Check(os.WriteFile(path, b, 0o644))
}
