package build

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
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
	// The file is made here and sized to what the partition will have, so that
	// the hook, which may run as another user, only writes into it.
	if err := writeSparse(img, disk.RootSize(r.Bytes)); err != nil {
		return "", err
	}
	args := []string{"--format=null", "--mode=auto", "--architectures=amd64", "--quiet"}
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
	args = append(args, "--aptopt=Acquire::Retries \"3\"", "--"+kind+"-hook="+hook+" \"$1\"", r.Suite)
	if err := openTo(o.Tmp); err != nil {
		return "", err
	}
	return img, run(ctx, o, "mmdebstrap", "mmdebstrap", args...)
}

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

// hookScript is run with the tree's folder. It runs the recipe's own script,
// puts its files in place, and packs the tree into the file system's image.
func hookScript(o Options, img string) string {
	r := o.Recipe
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("#!/bin/sh")
	line("set -eu")
	line("export SOURCE_DATE_EPOCH=%s E2FSPROGS_FAKE_TIME=%s", epoch, epoch)
	if r.Script != "" {
		line("sh '%s' \"$1\"", filepath.Join(r.Dir, r.Script))
	}
	line("tree=\"$1%s\"", r.Tree)
	for i, f := range r.Files {
		source := filepath.Join(r.Dir, f.Source)
		if f.Source == "" {
			source = filepath.Join(o.Tmp, fmt.Sprintf("content-%d", i))
			line("cat >'%s' <<'KAMI_END_OF_FILE'\n%s\nKAMI_END_OF_FILE", source, strings.TrimSuffix(f.Content, "\n"))
		}
		mode := f.Mode
		if mode == "" {
			mode = "0644"
		}
		line("mkdir -p \"$tree%s\"", filepath.Dir(f.Path))
		line("cp '%s' \"$tree%s\"", source, f.Path)
		line("chmod %s \"$tree%s\"", mode, f.Path)
	}
	line("mkdir -p \"$tree/boot/grub\"")
	line("cp '%s' \"$tree/boot/grub/grub.cfg\"", filepath.Join(o.Tmp, "grub.cfg"))
	line("find \"$tree\" -newermt '@%s' -exec touch -h -d '@%s' {} +", epoch, epoch)
	line("/sbin/mke2fs -q -t ext4 -F -L '%.16s' -U %s -E hash_seed=%s,lazy_itable_init=0,root_owner=0:0 -d \"$tree\" '%s'",
		r.Name, id(r, "root"), id(r, "hash"), img)
	// mke2fs takes over the time at which each file of the tree was made.
	line("n=$(/sbin/dumpe2fs -h '%s' 2>/dev/null | awk -F: '/^Inode count/{a=$2} /^Free inodes/{f=$2} END{print a-f}')", img)
	line("{ for i in 2 $(seq 11 $n); do for t in atime ctime mtime crtime; do")
	line("  [ $t = mtime ] || echo \"set_inode_field <$i> $t @%s\"", epoch)
	line("  [ $t = mtime ] || echo \"set_inode_field <$i> ${t}_extra 0\"")
	line("done; done; } >'%s/times'", o.Tmp)
	line("/sbin/debugfs -w -f '%s/times' '%s' >/dev/null 2>&1", o.Tmp, img)
	return b.String()
}

func grubConfig(o Options) string {
	r := o.Recipe
	return fmt.Sprintf(`serial --unit=0 --speed=115200
terminal_input serial console
terminal_output serial console
set timeout=0
menuentry %q {
	linux %s root=UUID=%s ro %s
	initrd %s
}
`, r.Name, r.Kernel, id(r, "root"), r.Cmdline, r.Initrd)
}
