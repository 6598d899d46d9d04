package build

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/uuid"

	"github.com/kamivm/kami/pkg/recipe"
)

func TestTailKeepsTheEnd(t *testing.T) {
	var out tail
	for i := range 10_000 {
		fmt.Fprintf(&out, "line %d\n", i)
		if got := len(out.b); got > 4*maxTail {
			t.Fatalf("%d bytes are kept, want at most %d", got, 4*maxTail)
		}
	}
	var want []string
	for i := 9_980; i < 10_000; i++ {
		want = append(want, fmt.Sprintf("line %d", i))
	}
	if got := out.String(); got != strings.Join(want, "\n") {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestTail(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"", ""},
		{"one\n", "one"},
		{"\n\none\ntwo", "one\ntwo"},
		{strings.Repeat("x", 100<<10), strings.Repeat("x", maxTail)},
	} {
		var out tail
		n, err := out.Write([]byte(c.in))
		if n != len(c.in) || err != nil {
			t.Errorf("Write of %d bytes is %d, %v", len(c.in), n, err)
		}
		if got := out.String(); got != c.want {
			t.Errorf("of %.20q got %d bytes, want %d", c.in, len(got), len(c.want))
		}
	}
}

// TestTailOfTwoStreams is for the race detector too.
func TestTailOfTwoStreams(t *testing.T) {
	var out tail
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for range 1000 {
				out.Write([]byte("line\n"))
			}
		})
	}
	wg.Wait()
	if got, want := len(out.b), 2000*len("line\n"); got != want {
		t.Errorf("%d bytes are kept, want %d", got, want)
	}
}

func TestIdentifiersAreFixed(t *testing.T) {
	a, b := recipe.Recipe{Name: "a"}, recipe.Recipe{Name: "b"}
	seen := map[string]string{}
	for _, r := range []recipe.Recipe{a, b} {
		for _, what := range []string{"root", "hash", "disk", "esp", "fat", "root-partition"} {
			got := id(r, what)
			if _, err := uuid.Parse(got); err != nil || got != id(r, what) {
				t.Errorf("the identifier of %s of %s is %q, then %q; %v", what, r.Name, got, id(r, what), err)
			}
			if other, ok := seen[got]; ok {
				t.Errorf("%s of %s has the identifier of %s", what, r.Name, other)
			}
			seen[got] = what + " of " + r.Name
		}
	}
	// Disks that were built stay what they are.
	if got, want := id(a, "root"), "46b25b0b-cf18-55e8-aa2a-5d9f3b6a1cd4"; got != want {
		t.Errorf("the identifier of root of a is %s, want %s", got, want)
	}
}

func TestRun(t *testing.T) {
	o := Options{Tmp: t.TempDir()}
	t.Setenv("KAMI_TEST_SECRET", "secret")
	if err := run(t.Context(), o, "step", "sh", "-c", "env >env; pwd >pwd"); err != nil {
		t.Fatal(err)
	}
	env, err := os.ReadFile(filepath.Join(o.Tmp, "env"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"LC_ALL=C.UTF-8\n", "SOURCE_DATE_EPOCH=" + epoch + "\n", "TMPDIR=" + o.Tmp + "\n"} {
		if !strings.Contains(string(env), want) {
			t.Errorf("the environment has no %q:\n%s", want, env)
		}
	}
	if strings.Contains(string(env), "secret") {
		t.Errorf("the environment was handed on:\n%s", env)
	}
	if pwd, err := os.ReadFile(filepath.Join(o.Tmp, "pwd")); err != nil || strings.TrimSpace(string(pwd)) != o.Tmp {
		t.Errorf("it ran in %q, %v; want %q", pwd, err, o.Tmp)
	}
}

func TestRunTellsWhatFailed(t *testing.T) {
	o := Options{Tmp: t.TempDir()}
	err := run(t.Context(), o, "making things", "sh", "-c", "echo to say; echo also >&2; exit 3")
	var step *StepError
	if !errors.As(err, &step) || step.Step != "making things" || step.Output != "to say\nalso" {
		t.Fatalf("got %#v, want the step and what it printed", err)
	}
	if got, want := err.Error(), "making things: exit status 3"; got != want {
		t.Errorf("got error %q, want %q", got, want)
	}
	err = run(t.Context(), o, "step", "kami-no-such-program")
	if !errors.As(err, &step) || !strings.Contains(err.Error(), "kami-no-such-program is not installed") {
		t.Errorf("got error %v, want one that names the program", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := run(ctx, o, "step", "true"); !errors.Is(err, context.Canceled) {
		t.Errorf("called off: got error %v, want %v", err, context.Canceled)
	}
}

func TestWriteSparse(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := writeSparse(path, 1<<30); err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	// Another user of the build writes into it.
	if st.Size() != 1<<30 || st.Mode().Perm() != 0o600 {
		t.Errorf("the file has %d bytes and mode %v, want %d and %v", st.Size(), st.Mode(), 1<<30, os.FileMode(0o600))
	}
	if err := writeSparse(path, 1); !errors.Is(err, os.ErrExist) {
		t.Errorf("over a file: got error %v, want %v", err, os.ErrExist)
	}
}
