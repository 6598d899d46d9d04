package bundle

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/build"
	"github.com/kamivm/kami/pkg/disk/ext4"
	"github.com/kamivm/kami/pkg/recipe"
)

// defaultCmdline is the command line of a kernel that is given none.
const defaultCmdline = "console=tty0 console=ttyS0,115200"

const grubPath = "boot/grub/grub.cfg"

// disk makes a whole disk of a staged tree: with the boot loaders that recipes
// get, and a configuration for them where the tree has none.
func (o *packing) disk(ctx context.Context, s *stage) error {
	if o.out.Architecture != ami.ArchX8664 {
		return fmt.Errorf("%w: boot loaders are added for x86_64 alone, and it is of %s", ErrTemplate, o.out.Architecture)
	}
	fs := o.filesystem(s.root, s.limit-s.left+int64(len(s.all))*ext4.Block, len(s.all))
	old := fs.uuid
	fs.uuid = build.RootUUID(o.Name)
	for _, name := range []string{grubPath, "etc/fstab"} {
		text := textOf(s.root, name)
		e := s.paths[name]
		if text == "" || e == nil || e.kind != tar.TypeReg || !strings.Contains(strings.ToLower(text), old) {
			continue
		}
		text = strings.ReplaceAll(strings.ReplaceAll(text, old, fs.uuid), strings.ToUpper(old), fs.uuid)
		if err := s.rewrite(e, text); err != nil {
			return err
		}
	}
	if textOf(s.root, grubPath) == "" {
		text, err := o.grubConfig(s, fs.uuid)
		if err != nil {
			return err
		}
		h := &tar.Header{Name: grubPath, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(text))}
		if err := s.put(h, strings.NewReader(text)); err != nil {
			return err
		}
	}
	step := o.Progress.Step("making a disk with boot loaders", 0)
	raw, err := o.diskOf(ctx, s, fs)
	step.Done(err)
	if err != nil {
		return err
	}
	o.out.BootMode = ami.BootUEFIPreferred
	return o.open(raw, PartitionGPT)
}

func (o *packing) diskOf(ctx context.Context, s *stage, fs filesystem) (string, error) {
	img := o.tmp("root.ext4")
	if err := s.imageFile(ctx, img, fs); err != nil {
		return "", err
	}
	if err := os.RemoveAll(s.root); err != nil {
		return "", err
	}
	raw, err := build.Disk(ctx, build.Options{
		Recipe: recipe.Recipe{Name: o.Name, Bytes: build.DiskSize(fs.size)}, Tmp: o.Tmp, Progress: o.Progress,
	}, img)
	var step *build.StepError
	if errors.As(err, &step) && step.Output != "" {
		err = fmt.Errorf("%w\n%s", err, lastLines(step.Output))
	}
	return raw, errors.Join(err, os.Remove(img))
}

// rewrite gives a file of the tree another content.
func (s *stage) rewrite(e *entry, text string) error {
	if err := os.Remove(s.host(e.path)); err != nil {
		return err
	}
	return s.file(e, int64(len(text)), bytes.NewReader([]byte(text)))
}

// grubConfig starts the newest kernel that the tree has.
func (o *packing) grubConfig(s *stage, uuid string) (string, error) {
	var kernels []string
	for _, e := range s.all {
		if e.kind == tar.TypeReg && filepath.Dir(e.path) == "boot" && strings.HasPrefix(filepath.Base(e.path), "vmlinuz") {
			kernels = append(kernels, filepath.Base(e.path))
		}
	}
	if len(kernels) == 0 {
		return "", fmt.Errorf("%w: it has no kernel (boot/vmlinuz-…) that a boot loader could start; install one in the tree, or pack it without partitions and give a kernel with --kernel", ErrTemplate)
	}
	kernel := slices.MaxFunc(kernels, byVersion)
	if strings.ContainsAny(kernel, "'\"\\$ \t") {
		return "", fmt.Errorf("%w: the kernel %q", ErrTemplate, kernel)
	}
	version := strings.TrimPrefix(kernel, "vmlinuz")
	initrd := ""
	for _, name := range []string{"initrd.img" + version, "initramfs" + version + ".img", "initrd" + version, "initramfs" + version} {
		if e := s.paths["boot/"+name]; e != nil && e.kind == tar.TypeReg {
			initrd = "\tinitrd '/boot/" + name + "'\n"
			break
		}
	}
	cmdline := o.Cmdline
	if cmdline == "" {
		cmdline = defaultCmdline
	}
	for i, w := range strings.Fields(cmdline) {
		if strings.ContainsAny(w, "'") || strings.ContainsFunc(w, control) {
			return "", fmt.Errorf("%w: the kernel's command line has the word %q (%d.)", ErrTemplate, w, i+1)
		}
	}
	root := "UUID=" + uuid
	if initrd == "" { // the kernel alone does not look into filesystems
		root = "/dev/vda3"
	}
	return fmt.Sprintf(`serial --unit=0 --speed=115200
terminal_input serial console
terminal_output serial console
set timeout=0
menuentry '%s' {
	linux '/boot/%s' root=%s ro '%s'
%s}
`, "kami", kernel, root, strings.Join(strings.Fields(cmdline), "' '"), initrd), nil
}

// byVersion compares names with numbers in them: 6.10 is newer than 6.9.
func byVersion(a, b string) int {
	for a != "" && b != "" {
		na, nb := digits(a), digits(b)
		if na > 0 && nb > 0 {
			va, vb := strings.TrimLeft(a[:na], "0"), strings.TrimLeft(b[:nb], "0")
			if len(va) != len(vb) {
				return len(va) - len(vb)
			}
			if c := strings.Compare(va, vb); c != 0 {
				return c
			}
			a, b = a[na:], b[nb:]
			continue
		}
		if a[0] != b[0] {
			return int(a[0]) - int(b[0])
		}
		a, b = a[1:], b[1:]
	}
	return len(a) - len(b)
}

func digits(s string) int {
	n := 0
	for n < len(s) && s[n] >= '0' && s[n] <= '9' {
		n++
	}
	return n
}
