package durable

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// The crash tests run this test binary again as a child, which does one of jobs
// in a folder and is killed on the way.
const (
	envJob = "DURABLE_TEST_JOB"
	envDir = "DURABLE_TEST_DIR"
)

func TestMain(m *testing.M) {
	job := os.Getenv(envJob)
	if job == "" {
		os.Exit(m.Run())
	}
	if err := jobs()[job](os.Getenv(envDir)); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

const (
	oldText = "the old content"
	newText = "the new content, which is longer"
)

// jobs are what a child can do.
func jobs() map[string]func(dir string) error {
	return map[string]func(dir string) error{
		"write":  func(dir string) error { return WriteFile(filepath.Join(dir, "file"), 0o644, put(newText)) },
		"rename": func(dir string) error { return Rename(filepath.Join(dir, "from"), filepath.Join(dir, "file")) },
		"move": func(dir string) error {
			return Rename(filepath.Join(dir, "sub", "from"), filepath.Join(dir, "file"))
		},
		"remove": func(dir string) error { return Remove(filepath.Join(dir, "file")) },
		"twice": func(dir string) error {
			return errors.Join(WriteFile(filepath.Join(dir, "one"), 0o644, put(newText)), WriteFile(filepath.Join(dir, "two"), 0o644, put(newText)))
		},
		"scratch": jobScratch,
		"hold": func(dir string) error {
			lock, ok, err := TryLock(filepath.Join(dir, "lock"))
			if !ok {
				return fmt.Errorf("the lock is not free: %w", err)
			}
			defer lock.Unlock()
			fmt.Fprintln(os.Stdout, "held")
			_, err = io.Copy(io.Discard, os.Stdin) // until it is killed
			return err
		},
	}
}

// jobScratch makes a file the way that stores do: in a scratch folder, then to
// its place.
func jobScratch(dir string) error {
	s, err := NewScratch(dir, "job")
	if err != nil {
		return err
	}
	if err := WriteFile(s.Path("work"), 0o644, put(newText)); err != nil {
		return err
	}
	Step("job.written")
	if err := Rename(s.Path("work"), filepath.Join(dir, "file")); err != nil {
		return err
	}
	return s.Close()
}

// crashBinary builds this test with the hook that kills it.
func crashBinary(t *testing.T) string {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "crash.test")
	cmd := exec.CommandContext(t.Context(), "go", "test", "-c", "-tags", "kamicrash", "-buildvcs=false", "-o", bin, ".")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building the child: %v\n%s", err, out)
	}
	return bin
}

// child prepares a run of a job.
func child(t *testing.T, bin, job, dir string, env ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), bin)
	cmd.Env = append(os.Environ(), append(env, envJob+"="+job, envDir+"="+dir)...)
	return cmd
}

// killed says whether err is that of a process that SIGKILL ended.
func killed(err error) bool {
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return false
	}
	status, ok := exit.Sys().(syscall.WaitStatus)
	return ok && status.Signaled() && status.Signal() == syscall.SIGKILL
}

// place fills a folder with what a job finds.
func place(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		must(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o700))
		must(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
	}
	return dir
}

// steps runs a job to its end and returns the durable steps that it came by.
func steps(t *testing.T, bin, job, dir string) []string {
	t.Helper()
	list := filepath.Join(t.TempDir(), "steps")
	if out, err := child(t, bin, job, dir, "KAMI_CRASH_LIST="+list).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", job, err, out)
	}
	text, err := os.ReadFile(list)
	if err != nil {
		t.Fatalf("%s lists no steps: %v", job, err)
	}
	return strings.Fields(string(text))
}

func TestKilledAtEveryStep(t *testing.T) {
	bin := crashBinary(t)
	type step struct {
		at   string
		want string // what the file holds when killed there; "" is no file
	}
	tests := []struct {
		name, job string
		before    map[string]string
		steps     []step
		source    string // what is there besides while the file is not new
		keep      string // what is there besides at any time
	}{
		{
			"write a new file", "write", nil,
			[]step{{"file.written#1", ""}, {"file.synced#1", ""}, {"file.renamed#1", newText}},
			"", "",
		},
		{
			"write over an old file", "write",
			map[string]string{"file": oldText},
			[]step{{"file.written#1", oldText}, {"file.synced#1", oldText}, {"file.renamed#1", newText}},
			"", "",
		},
		{
			"rename over an old file", "rename",
			map[string]string{"file": oldText, "from": newText},
			[]step{{"rename.synced#1", oldText}, {"rename.renamed#1", newText}},
			"from", "",
		},
		{
			"move from another folder", "move",
			map[string]string{"sub/from": newText},
			[]step{{"rename.synced#1", ""}, {"rename.renamed#1", newText}},
			"sub/from", "sub",
		},
		{"remove", "remove", map[string]string{"file": oldText}, []step{{"remove.removed#1", ""}}, "", ""},
		{
			"by way of a scratch folder", "scratch",
			map[string]string{"file": oldText},
			[]step{
				{"scratch.made#1", oldText},
				{"file.written#1", oldText},
				{"file.synced#1", oldText},
				{"file.renamed#1", oldText},
				{"job.written#1", oldText},
				{"rename.synced#1", oldText},
				{"rename.renamed#1", newText},
			},
			"", "",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := place(t, tt.before)
			var want []string
			for _, s := range tt.steps {
				want = append(want, s.at)
			}
			if got := steps(t, bin, tt.job, dir); !slices.Equal(got, want) {
				t.Fatalf("got the steps %q, want %q", got, want)
			}
			for _, s := range tt.steps {
				dir := place(t, tt.before)
				out, err := child(t, bin, tt.job, dir, "KAMI_CRASH_AT="+s.at).CombinedOutput()
				if !killed(err) {
					t.Fatalf("%s: got %v, want it killed\n%s", s.at, err, out)
				}
				t.Log("killed at " + s.at)
				wantFile(t, filepath.Join(dir, "file"), s.want)
				// The next commands: a sweep, and another write in that folder.
				if _, err := SweepScratch(dir); err != nil {
					t.Errorf("%s: sweeping: %v", s.at, err)
				}
				must(t, WriteFile(filepath.Join(dir, "next"), 0o600, put("next")))
				wantFile(t, filepath.Join(dir, "file"), s.want)
				left := []string{"next", tt.keep}
				if s.want != "" {
					left = append(left, "file")
				}
				if s.want != newText {
					left = append(left, tt.source)
				}
				wantTree(t, dir, left...)
				// And the job can be done, unless it was.
				if s.want != newText && tt.job != "remove" {
					if out, err := child(t, bin, tt.job, dir).CombinedOutput(); err != nil {
						t.Errorf("%s: again: %v\n%s", s.at, err, out)
					}
					wantFile(t, filepath.Join(dir, "file"), newText)
				}
			}
		})
	}
}

// wantTree checks what there is under a folder, hidden names too; "" is nothing.
func wantTree(t *testing.T, dir string, want ...string) {
	t.Helper()
	var got []string
	must(t, filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		got = append(got, rel)
		return err
	}))
	want = slices.DeleteFunc(want, func(name string) bool { return name == "" })
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// The hook itself: a step is hit at its N-th time, or its first.
func TestCrashAt(t *testing.T) {
	bin := crashBinary(t)
	tests := []struct {
		at     string
		killed bool
		want   []string // of the two files
	}{
		{"file.renamed", true, []string{"one"}},
		{"file.renamed#1", true, []string{"one"}},
		{"file.renamed#2", true, []string{"one", "two"}},
		{"file.renamed#3", false, []string{"one", "two"}},
		{"file", false, []string{"one", "two"}},
		{"", false, []string{"one", "two"}},
	}
	for _, tt := range tests {
		t.Run(tt.at, func(t *testing.T) {
			dir := t.TempDir()
			err := child(t, bin, "twice", dir, "KAMI_CRASH_AT="+tt.at).Run()
			if got := killed(err); got != tt.killed || !got && err != nil {
				t.Errorf("got %v, want it killed: %v", err, tt.killed)
			}
			wantNames(t, dir, tt.want...)
		})
	}
}

// A lock ends with its process, however that ends.
func TestLockDiesWithItsProcess(t *testing.T) {
	dir := t.TempDir()
	self, err := os.Executable()
	must(t, err)
	cmd := child(t, self, "hold", dir)
	stdin, err := cmd.StdinPipe() // open, or the child would end by itself
	must(t, err)
	defer stdin.Close()
	stdout, err := cmd.StdoutPipe()
	must(t, err)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	must(t, cmd.Start())
	if _, err := stdout.Read(make([]byte, 1)); err != nil {
		t.Errorf("the child does not hold its lock: %v", err)
	}
	path := filepath.Join(dir, "lock")
	lockNow(t, path, false)
	must(t, cmd.Process.Kill())
	if err := cmd.Wait(); !killed(err) {
		t.Errorf("got %v, want it killed\n%s", err, &stderr)
	}
	must(t, lockNow(t, path, true).Unlock())
}
