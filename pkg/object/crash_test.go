package object_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/kamivm/kami/pkg/object"
	"github.com/kamivm/kami/pkg/object/objecttest"
)

// A child is this test binary again, which changes a store, to be killed on the
// way.
const envTask = "OBJECT_TEST_TASK"

// task says what a child is to do.
type task struct {
	Do, URL string
	SSH     []string
}

const (
	oldText = "the old object"
	newText = "the new object, which is longer"
)

func TestMain(m *testing.M) {
	text := os.Getenv(envTask)
	if text == "" {
		os.Exit(m.Run())
	}
	var do task
	err := json.Unmarshal([]byte(text), &do)
	if err == nil {
		err = do.run()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func (do task) run() error {
	ctx := context.Background()
	s, err := object.Open(ctx, do.URL, object.Options{SSH: do.SSH})
	if err != nil {
		return err
	}
	r, size := strings.NewReader(newText), int64(len(newText))
	switch do.Do {
	case "put":
		err = s.Put(ctx, "a/b/object", r, size)
	case "put new":
		err = s.PutNew(ctx, "a/b/object", r, size)
	case "put too much":
		limit := syscall.Rlimit{Cur: 1 << 20, Max: 1 << 20}
		if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &limit); err != nil {
			return err
		}
		err = s.Put(ctx, "big", bytes.NewReader(make([]byte, 2<<20)), 2<<20)
	case "delete":
		err = s.Delete(ctx, "a/b/object")
	}
	return errors.Join(err, s.Close())
}

func (do task) command(t *testing.T, bin string, env ...string) *exec.Cmd {
	t.Helper()
	text, err := json.Marshal(do)
	must(t, err)
	cmd := exec.CommandContext(t.Context(), bin)
	cmd.Env = append(os.Environ(), append(env, envTask+"="+string(text))...)
	return cmd
}

// Killed at any step, an object is as before or as after, nothing else is listed,
// and what was under way can be done again.
func TestKilledAtEveryStep(t *testing.T) {
	bin := filepath.Join(t.TempDir(), "crash.test")
	cmd := exec.CommandContext(t.Context(), "go", "test", "-c", "-tags", "kamicrash", "-buildvcs=false", "-o", bin, ".")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building the child: %v\n%s", err, out)
	}
	host := objecttest.StartSSH(t)
	for _, tt := range []struct {
		do, before, after string
		kind              string
		steps             int // at least
	}{
		{"put", "", newText, "dir", 9},
		{"put", oldText, newText, "dir", 4},
		{"put new", "", newText, "dir", 9},
		{"delete", oldText, "", "dir", 1},
		{"put", oldText, newText, "sftp", 1},
		{"put new", "", newText, "sftp", 1},
	} {
		t.Run(strings.ReplaceAll(tt.kind+"/"+tt.do+" over "+tt.before, " ", "-"), func(t *testing.T) {
			fresh := func() task {
				do := task{Do: tt.do, URL: filepath.Join(t.TempDir(), "store"), SSH: host.Client}
				if tt.kind == "sftp" {
					do.URL = host.URL(t)
				}
				if tt.before != "" {
					s := do.open(t)
					must(t, s.Put(t.Context(), "a/b/object", strings.NewReader(tt.before), int64(len(tt.before))))
					must(t, s.Close())
				}
				return do
			}
			list := filepath.Join(t.TempDir(), "steps")
			if out, err := fresh().command(t, bin, "KAMI_CRASH_LIST="+list).CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			text, err := os.ReadFile(list)
			must(t, err)
			steps := strings.Fields(string(text))
			if len(steps) < tt.steps {
				t.Errorf("got the steps %q, want %d at least", steps, tt.steps)
			}
			for _, step := range steps {
				do := fresh()
				err := do.command(t, bin, "KAMI_CRASH_AT="+step).Run()
				var exit *exec.ExitError
				if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
					t.Fatalf("%s: got %v, want that it was killed", step, err)
				}
				do.check(t, step, tt.before, tt.after)
			}
		})
	}
}

func (do task) open(t *testing.T) object.Store {
	t.Helper()
	s, err := object.Open(t.Context(), do.URL, object.Options{SSH: do.SSH})
	must(t, err)
	return s
}

func (do task) check(t *testing.T, step, before, after string) {
	t.Helper()
	s := do.open(t)
	defer s.Close()
	got, err := read(t, s, "a/b/object")
	if err != nil && !errors.Is(err, object.ErrNotFound) || string(got) != before && string(got) != after {
		t.Errorf("%s: got %q, %v, want %q or %q", step, got, err, before, after)
	}
	err = s.List(t.Context(), "", func(o object.Info) error {
		if o.Name != "a/b/object" {
			t.Errorf("%s: %s is listed", step, o.Name)
		}
		return nil
	})
	must(t, err)
	must(t, s.Put(t.Context(), "a/b/object", bytes.NewReader([]byte(newText)), int64(len(newText))))
	if dir, ok := s.(*object.Dir); ok {
		left, err := filepath.Glob(filepath.Join(dir.Path(), ".kami", "*"))
		if err != nil || len(left) > 1 { // this one's own
			t.Errorf("%s: %q is left, %v", step, left, err)
		}
	}
}
