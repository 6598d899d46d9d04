package build

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/kamivm/kami/pkg/recipe"
)

// makeRoot makes the root file system as an image. All of it happens in hooks
// of mmdebstrap's, where the tree's owners are as the guest will see them even
// if an ordinary user builds.
func makeRoot(ctx context.Context, o Options) (string, error) {
	r := o.Recipe
	img := filepath.Join(o.Tmp, "root.ext4")
	hook := filepath.Join(o.Tmp, "customize")
	if err := os.WriteFile(hook, []byte(hookScript(o)), 0o755); err != nil {
		return "", err
	}
	if err := os.WriteFile(filepath.Join(o.Tmp, "grub.cfg"), []byte(grubConfig(o)), 0o644); err != nil {
		return "", err
	}
	if err := writeContents(o); err != nil {
		return "", err
	}
	// The hook, which may run as another user, is given the open file and nothing
	// else that it could write to but a folder for what it needs on the way.
	f, err := os.OpenFile(img, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return "", err
	}
	defer f.Close()
	if err := f.Truncate(rootSize(o)); err != nil {
		return "", err
	}
	files := []*os.File{f}
	if len(signedFiles(o)) > 0 {
		loaders, err := os.OpenFile(signedPath(o), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return "", err
		}
		defer loaders.Close()
		files = append(files, loaders)
	}
	if err := openTo(o); err != nil {
		return "", err
	}
	mode := "--mode=unshare" // an ordinary user is root in a namespace of its own
	if os.Getuid() == 0 {
		mode = "--mode=root"
	}
	args := []string{"--format=null", mode, "--architectures=" + recipe.Debian(architecture(r))}
	if r.Variant != "" {
		args = append(args, "--variant="+r.Variant)
	}
	if packages := packages(o); len(packages) > 0 {
		args = append(args, "--include="+strings.Join(packages, ","))
	}
	kind := "customize"
	if r.Variant == "extract" { // which ends once its packages are unpacked
		kind = "extract"
	}
	args = append(args, "--aptopt=Acquire::Retries \"3\"", "--"+kind+"-hook="+quote(hook)+" \"$1\"", r.Suite)
	if len(o.Mirrors) > 0 {
		args = append(append(args, "-"), o.Mirrors...)
	}
	program := []string{"mmdebstrap"}
	if os.Getuid() == 0 && exec.CommandContext(ctx, alone[0], append(slices.Clone(alone[1:]), "true")...).Run() == nil {
		program = append(slices.Clone(alone[:]), program...)
	}
	err = runWith(ctx, o, files, "mmdebstrap", program[0], append(program[1:], args...)...)
	return img, packageFaults(err, r.Packages, r.Suite+" for "+recipe.Debian(architecture(r)))
}

// alone runs a program in mount and process namespaces of its own: what it
// mounts and starts is gone when it is, whatever ended it. For an ordinary user
// mmdebstrap makes such namespaces itself.
var alone = [...]string{"unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc"}

// scratchPath is where the hook makes its work folder.
func scratchPath(o Options) string { return filepath.Join(o.Tmp, "scratch") }

// openTo lets the users that an unshared build runs as pass through the work
// folder and read what the hook reads. No other user can write to any of it: the
// hook's own folder is sticky, and has a name that nobody can guess. (What the
// hook runs is what the build runs, for root as root.)
func openTo(o Options) error {
	scratch := os.FileMode(0o733) | os.ModeSticky
	if os.Getuid() == 0 {
		scratch = 0o700
	}
	errs := []error{os.Chmod(o.Tmp, 0o711), os.Mkdir(scratchPath(o), 0o700), os.Chmod(scratchPath(o), scratch)}
	for i, f := range o.Recipe.Files {
		if f.Source == "" {
			errs = append(errs, os.Chmod(contentPath(o, i), 0o644))
		}
	}
	errs = append(errs, os.Chmod(filepath.Join(o.Tmp, "grub.cfg"), 0o644), os.Chmod(filepath.Join(o.Tmp, "customize"), 0o755))
	return errors.Join(errs...)
}

func writeSparse(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Truncate(size)
}
