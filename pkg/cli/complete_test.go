package cli

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// offered is what a shell is offered for the last of the words.
func offered(t *testing.T, words ...string) []string {
	t.Helper()
	var out []string
	for _, line := range strings.Split(mustKami(t, append([]string{"__complete"}, words...)...), "\n") {
		word, _, _ := strings.Cut(line, "\t")
		if typed := words[len(words)-1]; strings.HasPrefix(word, typed) && !strings.HasPrefix(word, ":") { // as shells do
			out = append(out, word)
		}
	}
	return out
}

// Behind what is asked for first, a shell is left to offer its files.
func TestFilesAreCompleted(t *testing.T) {
	o := furnish(t)
	for _, words := range [][]string{
		{"snapshot", "export", o.snapshot, ""}, {"image", "store", "web-1", ""}, {"image", "export", "web-1", ""}, {"bundle", "unpack", "images/web", ""},
	} {
		if got := mustKami(t, append([]string{"__complete"}, words...)...); strings.TrimSpace(got) != ":0" {
			t.Errorf("%v: got %q, want no more than the shell's own", words, got)
		}
	}
}

func TestCompletion(t *testing.T) {
	o := furnish(t)
	recipes, err := filepath.Abs("../../images")
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("KAMI_RECIPES", recipes)
	all := []string{o.volume, o.blank}
	for _, c := range []struct {
		words string // the last one is what is being typed, "_" for nothing yet
		want  []string
	}{
		{"launch _", []string{o.image, "web-1"}},
		{"launch web", []string{"web-1"}},
		{"launch web-1 _", nil},
		{"image show _", []string{o.image, "web-1"}},
		{"image deregister web-1 _", []string{o.image, "web-1"}},
		{"image tag _", []string{o.image, "web-1"}},
		{"image tag web-1 _", nil},
		{"image list _", nil},
		{"snapshot delete _", []string{o.snapshot}},
		{"snapshot export _", []string{o.snapshot}},
		{"snapshot export " + o.snapshot + " disk.qcow2 --format q", []string{"qcow2"}},
		{"image store _", []string{o.image, "web-1"}},
		{"bundle create ti", []string{"tiny"}},
		{"snapshot create _", all},
		{"volume show _", all},
		{"volume attach _", all},
		{"volume attach " + o.blank + " _", nil}, // there are no instances
		{"volume create --snapshot _", []string{o.snapshot}},
		{"ssh _", nil},
		{"key delete _", []string{"me"}},
		{"key create _", nil},
		{"launch web-1 --key-name _", []string{"me"}},
		{"launch web-1 --wait _", []string{"running", "booted", "ssh"}},
		{"launch web-1 --boot-mode uefi", []string{"uefi", "uefi-preferred"}},
		{"instance wait --for s", []string{"ssh"}},
		{"import x --format v", []string{"vmdk", "vhd", "vhdx"}},
		{"region delete _", []string{"lab-1", "local-1"}},
		{"--region la", []string{"lab-1"}},
		{"--region lab-1 image show _", nil},
		{"-o _", []string{"table", "json", "yaml", "id"}},
		{"build ti", []string{"tiny"}},
		{"help image r", []string{"references", "register", "restore"}},
		{"help image register _", nil},
		{"completion z", []string{"zsh"}},
		{"imag", []string{"image"}},
	} {
		words := strings.Fields(c.words)
		if last := len(words) - 1; words[last] == "_" {
			words[last] = ""
		}
		got := offered(t, words...)
		slices.Sort(got)
		want := slices.Sorted(slices.Values(c.want))
		if !slices.Equal(got, want) {
			t.Errorf("kami %s: got %q, want %q", c.words, got, want)
		}
	}
}

func TestCompletionScripts(t *testing.T) {
	newHome(t)
	for shell, want := range map[string]string{"bash": "complete -o default -F __start_kami kami", "zsh": "#compdef kami", "fish": "complete -c kami", "powershell": "Register-ArgumentCompleter"} {
		if got := mustKami(t, "completion", shell); !strings.Contains(got, want) {
			t.Errorf("%s: got a script without %q", shell, want)
		}
	}
}

// A home that cannot be read offers nothing, and says nothing either.
func TestCompletionOfABrokenHome(t *testing.T) {
	t.Setenv("KAMI_HOME", "/dev/null/home")
	for _, words := range [][]string{{"launch", ""}, {"--region", ""}, {"build", ""}} {
		if got := offered(t, words...); len(got) != 0 {
			t.Errorf("%q: got %q, want nothing", words, got)
		}
	}
}
