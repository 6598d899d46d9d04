package build

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// quote makes one word of a shell's of s, whatever is in it.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// contentPath is where the content of the recipe's file i waits for the hook.
func contentPath(o Options, i int) string {
	return filepath.Join(o.Tmp, fmt.Sprintf("content-%d", i))
}

// writeContents puts the contents that stand in the recipe itself where the hook
// takes them from; in the script they could end it.
func writeContents(o Options) error {
	for i, f := range o.Recipe.Files {
		if f.Source != "" {
			continue
		}
		if err := os.WriteFile(contentPath(o, i), []byte(strings.TrimSuffix(f.Content, "\n")+"\n"), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// hookScript is run with the tree's folder. It runs the recipe's own script,
// puts its files in place, and packs the tree into a file system's image, which
// it writes to descriptor 4.
func hookScript(o Options) string {
	r := o.Recipe
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("#!/bin/sh")
	line("set -eu")
	line("export SOURCE_DATE_EPOCH=%s E2FSPROGS_FAKE_TIME=%s", epoch, epoch)
	if loaders := signedFiles(o); len(loaders) > 0 {
		line("tar -C \"$1\" -cf - %s >&5", strings.Join(loaders, " "))
	}
	if r.Script != "" {
		line("sh %s \"$1\"", quote(filepath.Join(r.Dir, r.Script)))
	}
	line("tree=\"$1\"%s", quote(r.Tree))
	for i, f := range r.Files {
		source := filepath.Join(r.Dir, f.Source)
		if f.Source == "" {
			source = contentPath(o, i)
		}
		mode := f.Mode
		if mode == "" {
			mode = "0644"
		}
		line("mkdir -p \"$tree\"%s", quote(filepath.Dir(f.Path)))
		line("cp %s \"$tree\"%s", quote(source), quote(f.Path))
		line("chmod %s \"$tree\"%s", mode, quote(f.Path))
	}
	line("mkdir -p \"$tree/boot/grub\"")
	line("cp %s \"$tree/boot/grub/grub.cfg\"", quote(filepath.Join(o.Tmp, "grub.cfg")))
	line("work=$(mktemp -d %s/XXXXXXXXXXXX)", quote(scratchPath(o)))
	// A view of the tree without what is mounted in it for the time of the build.
	line("mkdir \"$work/plain\"")
	line("mount --bind \"$1\" \"$work/plain\"")
	line("trap 'umount \"$work/plain\"; rm -rf --one-file-system \"$work\"' EXIT")
	line("plain=\"$work/plain\" img=\"$work/root.ext4\"")
	line("tree=\"$plain\"%s", quote(r.Tree))
	// What the build itself mounted on cannot go, and is not seen by a guest.
	line("rm -rf \"$tree\"/dev/* \"$tree\"/run/* 2>/dev/null || true")
	line("find \"$tree\" -newermt '@%s' -exec touch -h -d '@%s' {} +", epoch, epoch)
	line("truncate -s %d \"$img\"", rootSize(o))
	line("/sbin/mke2fs -q -t ext4 -F -L '%.16s' -U %s -E hash_seed=%s,lazy_itable_init=0,root_owner=0:0 -d \"$tree\" \"$img\"",
		r.Name, id(r, "root"), id(r, "hash"))
	// mke2fs takes over the time at which each file of the tree was made.
	line("n=$(/sbin/dumpe2fs -h \"$img\" 2>/dev/null | awk -F: '/^Inode count/{a=$2} /^Free inodes/{f=$2} END{print a-f}')")
	line("{ for i in 2 $(seq 11 $n); do for t in atime ctime mtime crtime; do")
	line("  [ $t = mtime ] || echo \"set_inode_field <$i> $t @%s\"", epoch)
	line("  [ $t = mtime ] || echo \"set_inode_field <$i> ${t}_extra 0\"")
	line("done; done; } >\"$work/times\"")
	line("/sbin/debugfs -w -f \"$work/times\" \"$img\" >/dev/null 2>&1")
	line("dd if=\"$img\" bs=64k conv=sparse,notrunc status=none >&4")
	return b.String()
}

func grubConfig(o Options) string {
	r := o.Recipe
	words := strings.Fields(r.CmdlineFor(architecture(r)))
	for i, w := range words {
		words[i] = grubWord(w)
	}
	terminal := "serial --unit=0 --speed=115200\nterminal_input serial console\nterminal_output serial console\n"
	if takesSigned(r) { // whose console is the firmware's, which goes to the serial port
		terminal = ""
	}
	return terminal + fmt.Sprintf(`set timeout=0
menuentry %q {
	linux %s root=UUID=%s ro %s
	initrd %s
}
`, r.Name, grubWord(r.Kernel), id(r, "root"), strings.Join(words, " "), grubWord(r.Initrd))
}

// grubWord quotes a word that GRUB's script language would take apart, such as
// ds=nocloud;s=/seed/. Quotes themselves are in no recipe.
func grubWord(w string) string {
	plain := func(c rune) bool {
		return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.ContainsRune("-_./,:=+@%", c)
	}
	if strings.TrimLeftFunc(w, plain) == "" {
		return w
	}
	return "'" + w + "'"
}
