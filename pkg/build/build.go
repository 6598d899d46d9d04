// Package build turns a recipe into a disk: packages become a tree, the tree a
// file system, and the file system with boot loaders a disk that boots by BIOS
// and by UEFI. No step needs root where mmdebstrap can do without, and none
// needs a loop device. The same packages give the same disk, byte for byte:
// identifiers come from the recipe's name, and times are one fixed time.
package build

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"

	"github.com/google/uuid"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/disk"
	"github.com/kamivm/kami/pkg/recipe"
)

// epoch is the time of everything in a built image, in seconds.
const epoch = "1700000000"

// Options say what to build and where.
type Options struct {
	Recipe recipe.Recipe
	// Paravirtual asks for the root file system as the whole disk: no partitions
	// and no boot loader, for a guest that is started with a kernel.
	Paravirtual bool
	// Mirrors are where packages come from, as lines of apt's or URLs; none is
	// Debian's own servers.
	Mirrors  []string
	Tmp      string // work folder, absolute; the disk is left in it
	Progress ami.Progress
}

// Result is a disk and what an image of it says.
type Result struct {
	RawDisk        string // absolute path of a raw, sparse disk
	Architecture   ami.Architecture
	BootMode       ami.BootMode // "" of a paravirtual one
	RootDeviceName string
	DefaultUser    string
}

// StepError is a step that failed, with the last of what it printed.
type StepError struct {
	Step   string
	Output string
	Err    error
}

func (e *StepError) Error() string { return e.Step + ": " + e.Err.Error() }

// Unwrap returns the cause.
func (e *StepError) Unwrap() error { return e.Err }

// id makes a fixed identifier of the recipe's name.
func id(r recipe.Recipe, what string) string {
	return uuid.NewSHA1(uuid.NameSpaceURL, []byte("kami/recipe/"+r.Name+"/"+what)).String()
}

// Build makes the disk of a recipe without From. It returns a *StepError or a
// *PackageError where that is what failed.
func Build(ctx context.Context, o Options) (Result, error) {
	step := o.Progress.Step("installing packages for "+o.Recipe.Name, 0)
	root, err := makeRoot(ctx, o)
	step.Done(err)
	if err != nil {
		return Result{}, err
	}
	user := o.Recipe.User
	if user == "" {
		user = "root"
	}
	if o.Paravirtual {
		return Result{RawDisk: root, Architecture: o.Recipe.Architecture, RootDeviceName: "/dev/sda1", DefaultUser: user}, nil
	}
	step = o.Progress.Step("making the disk of "+o.Recipe.Name, 0)
	raw, err := makeDisk(ctx, o, root)
	step.Done(err)
	if err != nil {
		return Result{}, err
	}
	return Result{
		RawDisk: raw, Architecture: o.Recipe.Architecture, BootMode: bootMode(o.Recipe),
		RootDeviceName: "/dev/sda1", DefaultUser: user,
	}, nil
}

// tail keeps the end of what a step prints. A guest's two streams are copied
// into it at the same time.
type tail struct {
	mu sync.Mutex
	b  []byte
}

const maxTail = 4 << 10

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, p...)
	if len(t.b) > 4*maxTail {
		t.b = append([]byte{}, t.b[len(t.b)-maxTail:]...)
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	lines := strings.Split(strings.TrimSpace(string(t.b)), "\n")
	return strings.Join(lines[max(0, len(lines)-20):], "\n")
}

// run starts a program and waits for it.
func run(ctx context.Context, o Options, step, name string, args ...string) error {
	return runWith(ctx, o, nil, step, name, args...)
}

// runWith is run for a program that is given open files as descriptors 4 and on.
func runWith(ctx context.Context, o Options, files []*os.File, step, name string, args ...string) error {
	path, err := find(name)
	if err != nil {
		return &StepError{Step: step, Err: err}
	}
	cmd, done, err := leashed(ctx, path, args...)
	if err != nil {
		return &StepError{Step: step, Err: err}
	}
	defer done()
	cmd.ExtraFiles = append(cmd.ExtraFiles, files...)
	cmd.Dir = o.Tmp
	cmd.Env = []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8", "HOME=" + o.Tmp, "TMPDIR=" + o.Tmp,
		"SOURCE_DATE_EPOCH=" + epoch, "E2FSPROGS_FAKE_TIME=" + epoch, "MTOOLS_SKIP_CHECK=1",
	}
	var out tail
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return &StepError{step, out.String(), err}
	}
	return nil
}

// rootSize is how many bytes the root file system has.
func rootSize(o Options) int64 {
	if o.Paravirtual {
		return o.Recipe.Bytes
	}
	return layout(o).RootSize()
}

// find looks also where an ordinary user's path does not lead.
func find(name string) (string, error) {
	if path, err := exec.LookPath(name); err == nil {
		return path, nil
	}
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("the program %s is not installed; kami doctor says which package has it", name)
}

// makeDisk puts boot loaders and the root file system on one disk.
func makeDisk(ctx context.Context, o Options, root string) (string, error) {
	l := layout(o)
	var err error
	if bootsByBIOS(o.Recipe) {
		if l.BIOSLoader, err = biosLoader(ctx, o); err != nil {
			return "", err
		}
		if l.BootCode, err = os.ReadFile("/usr/lib/grub/i386-pc/boot.img"); err != nil {
			return "", &StepError{Step: "boot loader", Err: errors.Join(errors.New("install grub-pc-bin"), err)}
		}
	}
	if l.ESP.Path, err = espImage(ctx, o, l.ESPSize); err != nil {
		return "", err
	}
	l.Root.Path = root
	raw := filepath.Join(o.Tmp, "disk.raw")
	return raw, disk.Assemble(ctx, raw, l)
}

// layout is the disk of a recipe, without what is on it.
func layout(o Options) disk.Layout {
	l := disk.Layout{
		GUID: id(o.Recipe, "disk"), Size: o.Recipe.Bytes, ESPSize: espSize,
		ESP: disk.Content{GUID: id(o.Recipe, "esp")}, Root: disk.Content{GUID: id(o.Recipe, "root-partition")},
	}
	if takesSigned(o.Recipe) {
		l.ESPSize = signedESPSize
	}
	return l
}
