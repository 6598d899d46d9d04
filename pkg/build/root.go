package build

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/kamivm/kami/pkg/disk"
)

// makeRoot makes the root file system as an image. All of it happens in hooks
// of mmdebstrap's, where the tree's owners are as the guest will see them even
// if an ordinary user builds.
func makeRoot(ctx context.Context, o Options) (string, error) {
	r := o.Recipe
	img := filepath.Join(o.Tmp, "root.ext4")
	hook := filepath.Join(o.Tmp, "customize")
	if err := os.WriteFile(hook, []byte(hookScript(o, img)), 0o755); err != nil {
		return "", err
	}
	if err := os.WriteFile(filepath.Join(o.Tmp, "grub.cfg"), []byte(grubConfig(o)), 0o644); err != nil {
		return "", err
	}
	if err := writeContents(o); err != nil {
		return "", err
	}
	// The file is made here and sized to what the partition will have, so that
	// the hook, which may run as another user, only writes into it.
	if err := writeSparse(img, disk.RootSize(r.Bytes)); err != nil {
		return "", err
	}
	mode := "--mode=unshare" // an ordinary user is root in a namespace of its own
	if os.Getuid() == 0 {
		mode = "--mode=root"
	}
	args := []string{"--format=null", mode, "--architectures=amd64", "--quiet"}
	if r.Variant != "" {
		args = append(args, "--variant="+r.Variant)
	}
	if len(r.Packages) > 0 {
		args = append(args, "--include="+strings.Join(r.Packages, ","))
	}
	kind := "customize"
	if r.Variant == "extract" { // which ends once its packages are unpacked
		kind = "extract"
	}
	args = append(args, "--aptopt=Acquire::Retries \"3\"", "--"+kind+"-hook="+quote(hook)+" \"$1\"", r.Suite)
	if err := openTo(o.Tmp); err != nil {
		return "", err
	}
	program := []string{"mmdebstrap"}
	if os.Getuid() == 0 && exec.CommandContext(ctx, alone[0], append(slices.Clone(alone[1:]), "true")...).Run() == nil {
		program = append(slices.Clone(alone[:]), program...)
	}
	return img, run(ctx, o, "mmdebstrap", program[0], append(program[1:], args...)...)
}

// alone runs a program in mount and process namespaces of its own: what it
// mounts and starts is gone when it is, whatever ended it. For an ordinary user
// mmdebstrap makes such namespaces itself.
var alone = [...]string{"unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc"}

// openTo lets the users that an unshared build runs as into the work folder and
// those above it that are ours.
func openTo(dir string) error { return os.Chmod(dir, 0o777) }

func writeSparse(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Chmod(0o666); err != nil {
		return err
	}
	return f.Truncate(size)
}
