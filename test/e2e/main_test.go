// Package e2e boots real guests through the kami binary and reads what they say
// over ssh and on their consoles, never only what kami says. One binary, one
// home and one built image are shared by all tests; each test terminates the
// guests that it launched.
//
// Guests run emulated or with KVM as the host allows: as an ordinary user over
// qemu:///session, as root over qemu:///system, by a libvirtd of the tests' own
// (hack/with-libvirt.sh) where none answers. The few parts that only root can
// arrange say so when they are skipped.
package e2e

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
)

const (
	session = "qemu:///session"
	system  = "qemu:///system"
)

// connect is where the guests of the shared home run.
func connect() string {
	if os.Getuid() == 0 {
		return system // libvirt gives root no session
	}
	return session
}

// base is a directory that every user can pass through; the repository may not be.
var base string

func TestMain(m *testing.M) {
	const again = "KAMI_E2E_WITH_LIBVIRT"
	if os.Getuid() == 0 && os.Getenv(again) == "" {
		// Root needs a libvirtd that answers; the script goes on with us.
		err := syscall.Exec("../../hack/with-libvirt.sh", append([]string{"with-libvirt.sh"}, os.Args...), append(os.Environ(), again+"=1"))
		fmt.Fprintln(os.Stderr, "hack/with-libvirt.sh:", err)
		os.Exit(1)
	}
	flag.Parse()
	// All parallel tests are let go at once, to wait for their turns.
	if err := flag.Set("test.parallel", "64"); err != nil {
		panic(err)
	}
	os.Exit(run(m))
}

// turns are those of the tests that run at once: an emulated guest keeps a core busy,
// and waits often enough to leave room for one more than there are.
var turns = make(chan struct{}, runtime.GOMAXPROCS(0)+1)

// parallel lets a test run beside others when it is its turn.
func parallel(t *testing.T) {
	t.Helper()
	t.Parallel()
	turns <- struct{}{}
	t.Cleanup(func() { <-turns })
}

// parallelFirst is parallel for the longest tests. They take their turns while no
// parallel test runs yet, or they would run on alone when all others are over.
func parallelFirst(t *testing.T) {
	t.Helper()
	turns <- struct{}{}
	t.Cleanup(func() { <-turns })
	t.Parallel()
}

func run(m *testing.M) int {
	var err error
	base, err = os.MkdirTemp("/tmp", "kami-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(base)
	if err := prepare(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	code := m.Run()
	// A test that failed half way may have left a guest; nothing outlives us.
	if left := shared.leftGuests(); len(left) > 0 {
		fmt.Fprintln(os.Stderr, "e2e: guests left running:", left)
		shared.try(append([]string{"instance", "terminate"}, left...)...)
		code = max(code, 1)
	}
	return code
}

// prepare builds the binary and copies the recipes to where all users can read.
func prepare() error {
	if err := os.Chmod(base, 0o755); err != nil {
		return err
	}
	if err := compile(filepath.Join(base, "kami"), "libvirt_dlopen"); err != nil {
		return err
	}
	if err := os.CopyFS(filepath.Join(base, "images"), os.DirFS("../../images")); err != nil {
		return fmt.Errorf("copying the recipes: %w", err)
	}
	if out, err := exec.Command("chmod", "-R", "go+rX", filepath.Join(base, "images"), filepath.Join(base, "kami")).CombinedOutput(); err != nil {
		return fmt.Errorf("chmod: %w: %s", err, out)
	}
	// The scripts of a recipe keep their execute bits, which CopyFS may lose.
	if out, err := exec.Command("cp", "-a", "../../images/.", filepath.Join(base, "images")).CombinedOutput(); err != nil {
		return fmt.Errorf("cp: %w: %s", err, out)
	}
	shared = newHouse(filepath.Join(base, "kami"), filepath.Join(base, "home"))
	return nil
}

func compile(out, tags string) error {
	cmd := exec.Command("go", "build", "-tags", tags, "-trimpath", "-buildvcs=false", "-o", out, "../../cmd/kami")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=1")
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("building kami: %w\n%s", err, text)
	}
	return nil
}

// crashBinary is kami with the crash-test hook compiled in.
var crashBinary = sync.OnceValues(func() (string, error) {
	path := filepath.Join(base, "kami-crash")
	return path, compile(path, "libvirt_dlopen,kamicrash")
})

// recipeDir is where the copy of a recipe is.
func recipeDir(name string) string { return filepath.Join(base, "images", name) }

// requireRoot skips what only root can arrange.
func requireRoot(t *testing.T, why string) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skipf("needs root: %s", why)
	}
}

func lines(s string) []string {
	return strings.Fields(strings.TrimSpace(s))
}
