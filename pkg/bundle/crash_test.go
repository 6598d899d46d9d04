package bundle

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/object"
	"github.com/kamivm/kami/pkg/qcow2"
)

// A child is this test binary again, which creates or deletes a bundle, to be
// killed on the way: its environment says what, in which store, of which blob.
const envTask = "BUNDLE_TEST_TASK"

func TestMain(m *testing.M) {
	task := os.Getenv(envTask)
	if task == "" {
		os.Exit(m.Run())
	}
	if err := child(strings.Split(task, "\n")); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func child(task []string) error {
	ctx := context.Background()
	store, err := object.OpenDir(task[1])
	if err != nil {
		return err
	}
	defer store.Close()
	if task[0] == "delete" {
		_, err := Delete(ctx, store, "b/old")
		return err
	}
	f, err := os.Open(task[2])
	if err != nil {
		return err
	}
	src, err := qcow2.RawSource(f)
	if err != nil {
		return err
	}
	key, err := OpenKeyring(filepath.Join(task[1], "..", "keys")).Key(ctx, "")
	if err != nil {
		return err
	}
	_, _, err = Create(ctx, CreateInput{Store: store, Location: "b/new", Source: src, Manifest: testManifest(), Key: key, Progress: ami.NoProgress})
	return err
}

// TestKilledAtEveryStep: a bundle is there as a whole or not at all, the others of
// its bucket stay whole, and what was under way can be done again and leaves
// nothing.
func TestKilledAtEveryStep(t *testing.T) {
	bin := filepath.Join(t.TempDir(), "crash.test")
	cmd := exec.CommandContext(t.Context(), "go", "test", "-c", "-tags", "kamicrash", "-buildvcs=false", "-o", bin, ".")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building the child: %v\n%s", err, out)
	}
	shared := noise(1, 200_000)
	_, oldBlob := sparse(t, 1<<20, map[int64][]byte{0: shared, 300_000: noise(2, 100_000)})
	_, newBlob := sparse(t, 1<<20, map[int64][]byte{0: shared, 400_000: noise(3, 100_000)})
	_, keepBlob := sparse(t, 1<<20, map[int64][]byte{4096: shared})
	for _, do := range []string{"create", "delete"} {
		t.Run(do, func(t *testing.T) {
			fresh := func() (dir string, trust Trust) {
				dir = filepath.Join(t.TempDir(), "objects")
				store, err := object.OpenDir(dir)
				must(t, err)
				defer store.Close()
				ring := OpenKeyring(filepath.Join(dir, "..", "keys"))
				key, err := ring.Key(t.Context(), "")
				must(t, err)
				for location, blob := range map[string]string{"b/keep": keepBlob, "b/old": oldBlob} {
					f, err := os.Open(blob)
					must(t, err)
					defer f.Close()
					src, err := qcow2.RawSource(f)
					must(t, err)
					mustCreate(t, store, location, src, key)
				}
				trust, err = ring.Trust(false)
				must(t, err)
				return dir, trust
			}
			run := func(dir string, env ...string) error {
				cmd := exec.CommandContext(t.Context(), bin)
				cmd.Env = append(os.Environ(), append(env, envTask+"="+strings.Join([]string{do, dir, newBlob}, "\n"))...)
				out, err := cmd.CombinedOutput()
				if err != nil {
					err = fmt.Errorf("%w: %s", err, out)
				}
				return err
			}
			list := filepath.Join(t.TempDir(), "steps")
			dir, _ := fresh()
			must(t, run(dir, "KAMI_CRASH_LIST="+list))
			steps := firstAndLast(strings.Fields(string(readAll(t, list))))
			if len(steps) < 8 {
				t.Fatalf("only the steps %q", steps)
			}
			for _, step := range steps {
				dir, trust := fresh()
				if err := run(dir, "KAMI_CRASH_AT="+step); err == nil || !strings.Contains(err.Error(), "killed") {
					t.Errorf("%s: got %v, want it killed", step, err)
				}
				afterKill(t, step, dir, trust)
				// The lease of the dead counts for an hour.
				must(t, os.RemoveAll(filepath.Join(dir, "b", leasesFolder)))
				if err := run(dir); err != nil && !strings.Contains(err.Error(), ErrNotFound.Error()) && !strings.Contains(err.Error(), ErrExists.Error()) {
					t.Errorf("%s: once more: %v", step, err)
				}
				afterKill(t, step+" and once more", dir, trust)
			}
		})
	}
}

// firstAndLast are the steps, each for the first time and the last.
func firstAndLast(all []string) (some []string) {
	last := map[string]string{}
	for _, s := range all {
		name, _, _ := strings.Cut(s, "#")
		if last[name] == "" {
			some = append(some, s)
		}
		last[name] = s
	}
	for _, s := range last {
		if !slices.Contains(some, s) {
			some = append(some, s)
		}
	}
	return some
}

// afterKill holds that each bundle of a store is whole or not there.
func afterKill(t *testing.T, step, dir string, trust Trust) {
	t.Helper()
	store, err := object.OpenDir(dir)
	must(t, err)
	defer store.Close()
	for _, location := range []string{"b/keep", "b/old", "b/new"} {
		b, err := Open(t.Context(), store, location, trust)
		if location != "b/keep" && (errors.Is(err, ErrNotFound) || errors.Is(err, ErrUnsigned)) {
			continue
		}
		if err != nil {
			t.Errorf("%s: %s: %v", step, location, err)
			continue
		}
		if rep, err := b.Verify(t.Context(), func(int64) {}); err != nil || len(rep.Faults) > 0 {
			t.Errorf("%s: %s: got %+v, %v", step, location, rep, err)
		}
	}
}
