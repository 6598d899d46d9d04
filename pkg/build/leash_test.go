package build

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kamivm/kami/pkg/recipe"
)

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within 10 s: %s", what)
		}
	}
}

func gone(pidFile string) func() bool {
	return func() bool {
		pid, err := os.ReadFile(pidFile)
		return err == nil && exec.Command("kill", "-0", strings.TrimSpace(string(pid))).Run() != nil
	}
}

func TestRunReturnsTheStatusAndTheOutput(t *testing.T) {
	o := Options{Tmp: t.TempDir(), Recipe: recipe.Recipe{Name: "x"}}
	if err := run(t.Context(), o, "fine", "sh", "-c", "exit 0"); err != nil {
		t.Errorf("run: %v", err)
	}
	err := run(t.Context(), o, "the step", "sh", "-c", "echo out; echo 'to err' >&2; exit 3")
	var step *StepError
	if !errors.As(err, &step) || step.Step != "the step" || step.Output != "out\nto err" {
		t.Fatalf("run: %#v", err)
	}
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 3 {
		t.Errorf("run: %v, want the exit status 3", err)
	}
}

// TestInterruptEndsTheWholeGroup: a program that waits for its child ends with it.
func TestInterruptEndsTheWholeGroup(t *testing.T) {
	o := Options{Tmp: t.TempDir(), Recipe: recipe.Recipe{Name: "x"}}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- run(ctx, o, "sleeping", "sh", "-c", "sh -c 'echo $$ >pid; sleep 600; :'; :") }()
	pid := filepath.Join(o.Tmp, "pid")
	until(t, "the grandchild runs", func() bool { b, _ := os.ReadFile(pid); return len(b) > 0 })
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("run: %v, want context.Canceled", err)
	}
	until(t, "the grandchild has ended", gone(pid))
}

// TestDeathEndsTheWholeGroup closes the leash as the kernel does for a process
// that was killed.
func TestDeathEndsTheWholeGroup(t *testing.T) {
	dir := t.TempDir()
	cmd, done, err := leashed(t.Context(), "sh", "-c", "sh -c 'echo $$ >pid; sleep 600; :'; :")
	if err != nil {
		t.Fatal(err)
	}
	cmd.Dir = dir
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pid := filepath.Join(dir, "pid")
	until(t, "the grandchild runs", func() bool { b, _ := os.ReadFile(pid); return len(b) > 0 })
	done()
	cmd.Wait()
	until(t, "the grandchild has ended", gone(pid))
}
