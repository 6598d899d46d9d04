package region

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

// crashDir holds the program of crashChild; TestMain removes it.
var crashDir string

// crashBinary is this package's tests with the crash hook compiled in: linking them
// takes seconds, so all tests share one.
var crashBinary = sync.OnceValues(func() (string, error) {
	var err error
	if crashDir, err = os.MkdirTemp("", "kami-region-crash-"); err != nil {
		return "", err
	}
	bin := filepath.Join(crashDir, "crash.test")
	out, err := exec.Command("go", "test", "-c", "-tags", "kamicrash,libvirt_dlopen", "-buildvcs=false", "-o", bin, ".").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("building the child: %w\n%s", err, out)
	}
	return bin, nil
})

// crashChild does a job in a process of its own, which env tells where to be killed
// or where to list its durable steps, and returns what it said.
func crashChild(t *testing.T, h *house, job, arg, env string) (string, error) {
	t.Helper()
	bin, err := crashBinary()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), bin)
	cmd.Env = append(os.Environ(), envJob+"="+job, envHome+"="+h.home, envArg+"="+arg, env)
	out, err := cmd.CombinedOutput()
	return string(out), err
}
