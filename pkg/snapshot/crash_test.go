package snapshot

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/digest"
	"github.com/kamivm/kami/pkg/qcow2"
)

// A child is this test binary again, which does one thing to a store: to be
// killed on the way, or on a disk of its own.
const (
	envTask = "SNAPSHOT_TEST_TASK"
	theHead = ami.VolumeID("vol-0123456789abcdef0")
	oldSize = 8 << 20
	newSize = 16 << 20
)

// task says what a child is to do.
type task struct {
	Job    string
	Root   string
	Disk   string
	Parent digest.Digest
}

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
	if fn, ok := diskJobs[do.Job]; ok {
		return fn(do)
	}
	s, err := Open(do.Root)
	if err != nil {
		return err
	}
	switch do.Job {
	case "write":
		_, err = do.write(s)
	case "create":
		_, err = s.CreateHead(theHead, newSize, do.Parent, "")
	case "replace":
		err = s.ReplaceHead(theHead, newSize, do.Parent, "")
	case "remove":
		err = s.RemoveLayer(do.Parent)
	case "list":
		_, err = s.Blocks(context.Background(), do.Parent)
	case "merge":
		var plan Merge
		if plan, err = s.PlanMerge(do.Parent, none); err == nil {
			_, err = s.MergeLayer(context.Background(), plan, ami.NoProgress.Step("", 0))
		}
	default:
		err = draftJob(s, do.Job)
	}
	return err
}

// write writes the task's disk as a layer.
func (do task) write(s *Store) (Layer, error) {
	f, err := os.Open(do.Disk)
	if err != nil {
		return Layer{}, err
	}
	defer f.Close()
	src, err := qcow2.RawSource(f)
	if err != nil {
		return Layer{}, err
	}
	return s.WriteLayer(context.Background(), src, do.Parent, ami.NoProgress.Step("", 0))
}

// command prepares a child.
func (do task) command(t *testing.T, bin string, env ...string) *exec.Cmd {
	t.Helper()
	text, err := json.Marshal(do)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), bin)
	cmd.Env = append(os.Environ(), append(env, envTask+"="+string(text))...)
	return cmd
}

// noise is a raw disk of so many MiB that cannot be compressed.
func noise(t *testing.T, mib int, seed int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "noise")
	b := make([]byte, mib<<20)
	rand.New(rand.NewSource(seed)).Read(b)
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func lines(t *testing.T, path string) []string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Fields(string(b))
}

// tree lists the files under a store.
func tree(t *testing.T, s *Store) (out []string) {
	t.Helper()
	err := filepath.WalkDir(s.root, func(path string, e os.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			rel, _ := filepath.Rel(s.root, path)
			out = append(out, rel)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// crashCase is a job on a store, and what the store may look like when the job
// is killed: as before, or as after.
type crashCase struct {
	name  string
	job   task
	ready func(t *testing.T, s *Store, do *task)         // makes what the job finds
	state func(t *testing.T, s *Store, do task) string   // what can be seen of the outcome; fails on half of one
	want  [2]string                                      // the states before and after
	files func(s *Store, do task, state string) []string // what may be there in that state
	steps []string                                       // some that the job must come by
}

func layerState(t *testing.T, s *Store, d digest.Digest) string {
	t.Helper()
	if _, err := os.Stat(s.layerPath(d)); errors.Is(err, os.ErrNotExist) {
		return "absent"
	}
	if err := s.VerifyLayer(t.Context(), d, ami.NoProgress.Step("", 0)); err != nil {
		t.Errorf("the layer is there and not whole: %v", err)
	}
	return "there"
}

func headState(t *testing.T, s *Store, do task) string {
	t.Helper()
	img, err := s.OpenHead(theHead, do.Parent)
	if errors.Is(err, ErrNotFound) {
		return "absent"
	}
	if err != nil {
		t.Errorf("the head is there and not whole: %v", err)
		return "broken"
	}
	defer img.Close()
	return fmt.Sprint(img.Size())
}

func crashCases(t *testing.T) []crashCase {
	t.Helper()
	disk, changed := noise(t, 2, 1), noise(t, 2, 2)
	// The same content is the same layer everywhere, so its name is known.
	name := func(parent bool) digest.Digest {
		s := open(t)
		do := task{Disk: disk}
		l, err := do.write(s)
		if err == nil && parent {
			do = task{Disk: changed, Parent: l.Digest}
			l, err = do.write(s)
		}
		if err != nil {
			t.Fatal(err)
		}
		return l.Digest
	}
	first, second := name(false), name(true)
	base := func(t *testing.T, s *Store, do *task) {
		t.Helper()
		l, err := task{Disk: disk}.write(s)
		if err != nil {
			t.Fatal(err)
		}
		do.Parent = l.Digest
	}
	layerFiles := func(s *Store, d digest.Digest) []string {
		return []string{"layers/" + filepath.Base(s.layerPath(d)), "layers/" + filepath.Base(s.blocksPath(d))}
	}
	head := "volumes/" + string(theHead) + ".qcow2"
	return []crashCase{
		{
			"write a layer",
			task{Job: "write", Disk: disk},
			func(*testing.T, *Store, *task) {},
			func(t *testing.T, s *Store, _ task) string { return layerState(t, s, first) },
			[2]string{"absent", "there"},
			func(s *Store, _ task, state string) []string {
				if state == "absent" {
					return nil
				}
				return layerFiles(s, first)
			},
			[]string{"layer.written#1", "layer.blocks#1", "rename.renamed#1", "rename.renamed#2"},
		},
		{
			"write a layer on another one",
			task{Job: "write", Disk: changed},
			base,
			func(t *testing.T, s *Store, _ task) string { layerState(t, s, first); return layerState(t, s, second) },
			[2]string{"absent", "there"},
			func(s *Store, _ task, state string) []string {
				if state == "absent" {
					return layerFiles(s, first)
				}
				return append(layerFiles(s, first), layerFiles(s, second)...)
			},
			[]string{"layer.written#1", "layer.blocks#1"},
		},
		{
			"create a head",
			task{Job: "create"},
			base, headState,
			[2]string{"absent", fmt.Sprint(newSize)},
			func(s *Store, _ task, state string) []string {
				if state == "absent" {
					return layerFiles(s, first)
				}
				return append(layerFiles(s, first), head)
			},
			[]string{"head.written#1", "rename.renamed#1"},
		},
		{
			"replace a head",
			task{Job: "replace"},
			func(t *testing.T, s *Store, do *task) {
				base(t, s, do)
				if _, err := s.CreateHead(theHead, oldSize, do.Parent, ""); err != nil {
					t.Fatal(err)
				}
			}, headState,
			[2]string{fmt.Sprint(oldSize), fmt.Sprint(newSize)},
			func(s *Store, _ task, _ string) []string { return append(layerFiles(s, first), head) },
			[]string{"head.written#1", "rename.renamed#1"},
		},
		{
			"remove a layer",
			task{Job: "remove"},
			base,
			func(t *testing.T, s *Store, _ task) string { return layerState(t, s, first) },
			[2]string{"there", "absent"},
			func(s *Store, _ task, state string) []string {
				if state == "absent" {
					return nil
				}
				return layerFiles(s, first)
			},
			[]string{"remove.removed#1", "remove.removed#2"},
		},
		{
			"make a block list again",
			task{Job: "list"},
			func(t *testing.T, s *Store, do *task) {
				base(t, s, do)
				if err := os.Remove(s.blocksPath(do.Parent)); err != nil {
					t.Fatal(err)
				}
			},
			func(t *testing.T, s *Store, do task) string {
				if _, err := os.Stat(s.blocksPath(do.Parent)); err != nil {
					return "absent"
				}
				return layerState(t, s, first)
			},
			[2]string{"absent", "there"},
			func(s *Store, _ task, _ string) []string { return layerFiles(s, first) },
			[]string{"rename.renamed#1"},
		},
		mergeCase(t, layerFiles),
		draftCase("create a draft", "draft create", nil, [2]string{"absent", "empty, <nil>"}, "rename.renamed#1"),
		draftCase("put a block", "draft put", map[int64]int64{1: 1}, [2]string{"1", "2 1"}, "draft.written#1", "draft.block#1", "draft.recorded#1"),
		draftCase("put a block again", "draft put", map[int64]int64{0: 3, 1: 1}, [2]string{"3 1", "2 1"}, "draft.written#1", "draft.recorded#1"),
		draftCase("put a block of zeros", "draft clear", map[int64]int64{0: 3, 1: 1}, [2]string{"3 1", "0 1"}, "draft.recorded#1"),
		draftCase("remove a draft", "draft remove", map[int64]int64{1: 1}, [2]string{"1", "absent"}, "draft.remove#1", "remove.removed#2", "draft.removed#1"),
	}
}

// TestKilledAtEveryStep kills each job at each durable step that it comes by. The
// store is as before or as after; the next command sweeps the rest away and can
// do the job.
func TestKilledAtEveryStep(t *testing.T) {
	bin := filepath.Join(t.TempDir(), "crash.test")
	build := exec.CommandContext(t.Context(), "go", "test", "-c", "-tags", "kamicrash", "-buildvcs=false", "-o", bin, ".")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building the child: %v\n%s", err, out)
	}
	for _, tt := range crashCases(t) {
		t.Run(tt.name, func(t *testing.T) {
			prepare := func() (*Store, task) {
				s, do := open(t), tt.job
				tt.ready(t, s, &do)
				do.Root = s.root
				return s, do
			}
			s, do := prepare()
			list := filepath.Join(t.TempDir(), "steps")
			if out, err := do.command(t, bin, "KAMI_CRASH_LIST="+list).CombinedOutput(); err != nil {
				t.Fatalf("the job fails: %v\n%s", err, out)
			}
			if got := tt.state(t, s, do); got != tt.want[1] {
				t.Fatalf("got %s when the job is done, want %s", got, tt.want[1])
			}
			steps := lines(t, list)
			for _, want := range tt.steps {
				if !slices.Contains(steps, want) {
					t.Errorf("got the steps %q, want %s among them", steps, want)
				}
			}
			seen := map[string]bool{}
			for _, at := range steps {
				s, do := prepare()
				out, err := do.command(t, bin, "KAMI_CRASH_AT="+at).CombinedOutput()
				var exit *exec.ExitError
				if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
					t.Fatalf("%s: got %v, want it killed\n%s", at, err, out)
				}
				state := tt.state(t, s, do)
				if seen[state] = true; !slices.Contains(tt.want[:], state) {
					t.Errorf("%s: got %s, want one of %q", at, state, tt.want)
				}
				if err := s.Sweep(); err != nil {
					t.Errorf("%s: sweeping: %v", at, err)
				}
				if got := tt.state(t, s, do); got != state {
					t.Errorf("%s: got %s after the sweep, want %s as before", at, got, state)
				}
				may := tt.files(s, do, state)
				for _, f := range tree(t, s) {
					if !slices.Contains(may, f) {
						t.Errorf("%s: %s is left", at, f)
					}
				}
				if state == tt.want[0] {
					if out, err := do.command(t, bin).CombinedOutput(); err != nil {
						t.Errorf("%s: again: %v\n%s", at, err, out)
					}
					if got := tt.state(t, s, do); got != tt.want[1] {
						t.Errorf("%s: got %s when it is done again, want %s", at, got, tt.want[1])
					}
				}
			}
			if len(seen) != 2 {
				t.Errorf("killed at %q it is always %v: not every step is there", steps, seen)
			}
		})
	}
}
