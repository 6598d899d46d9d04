package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kamivm/kami/pkg/ami"
)

// commandLimit bounds any one command; a hang is a failure with its output.
const commandLimit = 15 * time.Minute

// house is one kami home and the binary that works in it.
type house struct {
	bin, home string
	wrap      []string // put before the command: another user, another namespace
	env       []string
}

// shared is the home that most tests use.
var shared *house

func newHouse(bin, home string) *house {
	return &house{bin: bin, home: home, env: []string{"KAMI_HOME=" + home, "KAMI_CONNECT=" + connect()}}
}

type result struct {
	stdout, stderr string
	code           int // -1: killed by a signal
	took           time.Duration
}

// try runs kami and returns what happened, also when it failed.
func (h *house) try(args ...string) result {
	return h.tryInput("", args...)
}

func (h *house) tryInput(input string, args ...string) result {
	ctx, cancel := context.WithTimeout(context.Background(), commandLimit)
	defer cancel()
	argv := append(append([]string{}, h.wrap...), append([]string{h.bin}, args...)...)
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(input), &stdout, &stderr
	cmd.Env = append(os.Environ(), h.env...)
	// A guest that inherited our pipes must not keep us waiting.
	cmd.WaitDelay = 5 * time.Second
	start := time.Now()
	err := cmd.Run()
	r := result{stdout: stdout.String(), stderr: stderr.String(), took: time.Since(start)}
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		r.code = exit.ExitCode()
	case err != nil:
		r.code, r.stderr = -1, r.stderr+"\n"+err.Error()
	}
	return r
}

// kami runs a command that has to succeed and returns its trimmed output.
func (h *house) kami(t *testing.T, args ...string) string {
	t.Helper()
	r := h.try(args...)
	if r.code != 0 {
		t.Fatalf("kami %s: exit status %d after %v\nstdout:\n%s\nstderr:\n%s", strings.Join(args, " "), r.code, r.took, r.stdout, r.stderr)
	}
	t.Logf("kami %s (%.2f s)", strings.Join(args, " "), r.took.Seconds())
	return strings.TrimSpace(r.stdout)
}

// refuse runs a command that has to fail with an EC2 code, and returns what it
// said.
func (h *house) refuse(t *testing.T, code ami.Code, args ...string) string {
	t.Helper()
	r := h.try(args...)
	if r.code == 0 {
		t.Fatalf("kami %s succeeded, want %s\nstdout:\n%s", strings.Join(args, " "), code, r.stdout)
	}
	if r.code < 0 {
		t.Fatalf("kami %s was killed: %s", strings.Join(args, " "), r.stderr)
	}
	if !strings.Contains(r.stderr, string(code)) {
		t.Errorf("kami %s: stderr has no %s:\n%s", strings.Join(args, " "), code, r.stderr)
	}
	return r.stderr
}

// launch starts one instance, terminated when the test ends, and returns its id.
func (h *house) launch(t *testing.T, image string, args ...string) string {
	t.Helper()
	out := h.kami(t, append([]string{"launch", image, "-o", "id"}, args...)...)
	ids := lines(out)
	if len(ids) != 1 || !strings.HasPrefix(ids[0], "i-") {
		t.Fatalf("kami launch -o id printed %q, want one instance id", out)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("console of %s:\n%s", ids[0], tail(h.console(ids[0]), 40))
		}
		if r := h.try("instance", "terminate", ids[0]); r.code != 0 {
			t.Errorf("terminating %s: %s", ids[0], r.stderr)
		}
	})
	return ids[0]
}

// ssh runs a command in the guest and returns its trimmed output.
func (h *house) ssh(t *testing.T, id, command string) string {
	t.Helper()
	return h.kami(t, "ssh", id, "--", command)
}

// console is all that the guest has written, "" when there is none.
func (h *house) console(id string) string {
	b, err := os.ReadFile(filepath.Join(h.home, "regions", "local-1", "instances", id, "console.log"))
	if err != nil {
		return ""
	}
	return string(b)
}

// waitConsole waits until the console contains text.
func (h *house) waitConsole(t *testing.T, id, text string, limit time.Duration) {
	t.Helper()
	eventually(t, limit, "console of "+id+" shows "+text, func() bool {
		return strings.Contains(h.console(id), text)
	})
}

func eventually(t *testing.T, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(limit); !ok(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", limit, what)
		}
	}
}

// show returns one object as kami shows it.
func show[T any](t *testing.T, h *house, noun, id string) T {
	t.Helper()
	all := objects[T](t, h, noun, "show", id)
	if len(all) != 1 {
		t.Fatalf("%s show %s shows %d objects, want one", noun, id, len(all))
	}
	return all[0]
}

// objects are those in EC2's answer, in which a list is all that a command prints.
func objects[T any](t *testing.T, h *house, args ...string) []T {
	t.Helper()
	out := h.kami(t, append(args, "-o", "json")...)
	var answer map[string][]T
	if err := json.Unmarshal([]byte(out), &answer); err != nil || len(answer) != 1 {
		t.Fatalf("kami %s printed %s, want one list: %v", strings.Join(args, " "), out, err)
	}
	for _, list := range answer {
		return list
	}
	return nil
}

func (h *house) state(t *testing.T, id string) ami.InstanceState {
	t.Helper()
	return show[ami.Instance](t, h, "instance", id).State.Name
}

func (h *house) waitState(t *testing.T, id string, want ami.InstanceState, limit time.Duration) {
	t.Helper()
	var got ami.InstanceState
	eventually(t, limit, id+" is "+string(want), func() bool {
		got = h.state(t, id)
		return got == want
	})
}

// leftGuests are the instances of the home that are not terminated.
func (h *house) leftGuests() []string {
	return lines(h.try("instance", "list", "--filter", "instance-state-name=pending,running,stopping,stopped,shutting-down", "-o", "id").stdout)
}

// files are the names in a directory of the region.
func (h *house) files(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(h.home, "regions", "local-1", dir))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func tail(s string, n int) string {
	all := strings.Split(strings.TrimRight(s, "\n"), "\n")
	return strings.Join(all[max(0, len(all)-n):], "\n")
}

// tiny builds images/tiny and a key pair once for all tests of the shared home.
var tinyOnce = sync.OnceValue(func() result {
	if r := shared.try("key", "create", "e2e"); r.code != 0 {
		return r
	}
	return shared.try("build", recipeDir("tiny"), "--name", "tiny", "-o", "id")
})

// tiny returns the id of the image tiny in the shared home.
func tiny(t *testing.T) string {
	t.Helper()
	r := tinyOnce()
	if r.code != 0 {
		t.Fatalf("building tiny: exit status %d\n%s%s", r.code, r.stdout, r.stderr)
	}
	return strings.TrimSpace(r.stdout)
}

func contains(s, part string) bool { return strings.Contains(s, part) }
