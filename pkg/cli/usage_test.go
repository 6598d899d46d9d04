package cli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestMistakesInWords: each is told in one sentence that says what to do, ends
// with status 2, and nothing was begun: the home is not even made.
func TestMistakesInWords(t *testing.T) {
	home := newHome(t)
	for _, c := range []struct{ args, want string }{
		{"lanch", `kami has no command "lanch" (did you mean launch?); kami --help`},
		{"lanch --name x", `kami has no command "lanch" (did you mean launch?)`},
		{"--quiet imag list", `kami has no command "imag" (did you mean image?)`},
		{"frobnicate", `kami has no command "frobnicate"; kami --help`},
		{"image lst --filter a=b", `kami image has no command "lst" (did you mean list?); kami image --help`},
		{"help image lst", `kami image has no command "lst"`},
		{"help lanch", `kami has no command "lanch" (did you mean launch?)`},
		{"image list --fiter a=b", "there is no flag --fiter (did you mean --filter?); kami image list --help"},
		{"image list -z", "unknown shorthand flag: 'z'"},
		{"image list --filter", "flag needs an argument: --filter"},
		{"image list extra", `too many arguments, from "extra" on; the command is: kami image list`},
		{"image show", "too few arguments; the command is: kami image show IMAGE"},
		{"image tag web-1", "too few arguments; the command is: kami image tag IMAGE KEY=VALUE..."},
		{"image create i-0123456789abcdef0", "--name is needed; kami image create --help"},
		{"image register --name abc --architecture vax", `--architecture "vax" is not one of x86_64, arm64, i386`},
		{"import disk --architecture vax", `--architecture "vax" is not one of`},
		{"launch web --count x", `invalid argument "x" for "--count" flag: not a whole number; kami launch --help`},
		{"launch web --count 0", "--count 0 is less than 1"},
		{"launch web --cpus -1", "--cpus -1 is less than 0"},
		{"launch web --memory -1", "--memory -1 is less than 0"},
		{"launch web --latest=perhaps", "not true or false"},
		{"launch web --wait godot", `--wait "godot" is not one of running, booted, ssh`},
		{"launch web --wait-timeout 5", "not a time such as 90s or 5m"},
		{"launch web --shutdown-behavior explode", `--shutdown-behavior "explode" is not one of stop, terminate`},
		{"instance wait i-0123456789abcdef0 --for godot", `--for "godot" is not one of running, booted, ssh`},
		{"console web --follow --attach", "--follow and --attach exclude each other"},
		{"bill --csv --query Lines", "--csv and --query exclude each other"},
		{"bill --csv -o json", "--csv and --output exclude each other"},
		{"image list -o xml", `the output "xml" is not one of table, json, yaml, id`},
		{"image list --query Images[", "the query cannot be read at its character 8"},
		{"completion tcsh", `the shell "tcsh" is not one of bash`},
	} {
		stdout, stderr, status := kami(t, strings.Fields(c.args)...)
		if status != exitUsage || stdout != "" {
			t.Errorf("kami %s: got exit status %d and %q, want %d and nothing", c.args, status, stdout, exitUsage)
		}
		if !strings.HasPrefix(stderr, "kami: ") || !strings.Contains(stderr, c.want) {
			t.Errorf("kami %s: got %q, want %q in it", c.args, stderr, c.want)
		}
	}
	if _, err := os.Stat(home); err == nil {
		t.Error("a mistake in the words made a home")
	}
}

func TestHelpOfItself(t *testing.T) {
	newHome(t)
	whole := mustKami(t)
	for _, want := range []string{"The main job:", "What a region holds:", "\n  launch ", "\n  snapshot ", "Examples:", "Flags:"} {
		if !strings.Contains(whole, want) {
			t.Errorf("kami alone does not show %q", want)
		}
	}
	if got := mustKami(t, "help"); got != whole {
		t.Errorf("kami help differs from kami alone:\n%s", got)
	}
	if got, want := mustKami(t, "help", "image", "create"), mustKami(t, "image", "create", "--help"); got != want {
		t.Errorf("kami help image create differs from --help:\n%s", got)
	}
	if got := mustKami(t, "image"); !strings.Contains(got, "kami image COMMAND") || !strings.Contains(got, "\n  create ") {
		t.Errorf("kami image alone does not show its commands:\n%s", got)
	}
}

// TestSettings: what is said wins over the environment, that over config.toml.
func TestSettings(t *testing.T) {
	home := newHome(t)
	mustKami(t, "region", "create", "lab-1")
	mustKami(t, "region", "create", "lab-2")
	conf := filepath.Join(home, "config.toml")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("region = \"lab-1\"\noutput = \"json\"\n")
	mustKami(t, "key", "create", "one")
	if got := mustKami(t, "key", "list", "--query", "KeyPairs[].KeyName", "-o", "id"); got != "one" {
		t.Errorf("config.toml's region holds %q, want one", got)
	}
	if got := mustKami(t, "image", "list"); got != "{\n  \"Images\": []\n}" {
		t.Errorf("config.toml's output gave %q, want JSON", got)
	}
	t.Setenv("KAMI_REGION", "lab-2")
	t.Setenv("KAMI_OUTPUT", "yaml")
	if got := mustKami(t, "key", "list"); got != "KeyPairs: []" {
		t.Errorf("the environment gave %q, want lab-2's keys, which are none, as YAML", got)
	}
	if got := mustKami(t, "--region", "lab-1", "-o", "table", "key", "list"); !strings.HasPrefix(got, "one\t") {
		t.Errorf("the flags gave %q, want lab-1's key", got)
	}
	write("region = \"lab-1\"\nreign = 1\n[store]\nx = 2\n")
	if _, stderr, status := kami(t, "key", "list"); status != exitFailed || !strings.Contains(stderr, `line 2: "reign" is no setting`) {
		t.Errorf("an unknown setting: got %d, %q, want it named", status, stderr)
	}
	for _, words := range [][]string{{"version"}, {"help"}, {"completion", "bash"}} {
		if mustKami(t, words...) == "" {
			t.Errorf("kami %q says nothing", words)
		}
	}
}

// TestSavedKey: no key pair is made whose private key could not be saved, and no
// file is left of one that could not be made.
func TestSavedKey(t *testing.T) {
	newHome(t)
	path := filepath.Join(t.TempDir(), "me.pem")
	mustKami(t, "key", "create", "me", "--save", path)
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 || info.Size() == 0 {
		t.Errorf("the private key: got %v, %v, want a file of mode 0600", info, err)
	}
	if _, stderr, status := kami(t, "key", "create", "you", "--save", path); status != exitFailed || !strings.Contains(stderr, "no key pair was made") {
		t.Errorf("saving over a file: got %d, %q, want it refused", status, stderr)
	}
	other := filepath.Join(t.TempDir(), "other.pem")
	if _, stderr, status := kami(t, "key", "create", "me", "--save", other); status != exitFailed || !strings.Contains(stderr, "InvalidKeyPair.Duplicate") {
		t.Errorf("a name in use: got %d, %q, want it refused", status, stderr)
	}
	if _, err := os.Stat(other); err == nil {
		t.Error("a file is left of a key pair that was not made")
	}
	if got := mustKami(t, "key", "list", "--query", "KeyPairs[].KeyName", "-o", "id"); got != "me" {
		t.Errorf("got the key pairs %q, want me", got)
	}
}
