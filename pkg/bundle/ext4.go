package bundle

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// filesystem is an ext4 to make.
type filesystem struct {
	size  int64 // bytes
	uuid  string
	label string
	files int // about
}

const (
	fsBlock = 4096
	// features are said one by one: the same tree is to become the same image with
	// any version of e2fsprogs, and no guest's kernel or boot loader must be too
	// old for it.
	features = "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,huge_file,dir_nlink,extra_isize,metadata_csum"
)

// sizeFor is the size of a filesystem that has so much in it and room for more.
func sizeFor(content int64) int64 {
	const step = 64 << 20
	return (content + content/4 + 128<<20 + step - 1) / step * step
}

// makeExt4 packs the folder dir into a new filesystem at img, where nothing is or
// an empty file.
func makeExt4(ctx context.Context, dir, img string, fs filesystem) error {
	f, err := os.OpenFile(img, os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	err = errors.Join(f.Truncate(fs.size), f.Close())
	if err != nil {
		return err
	}
	ratio := min(max(fs.size/int64(2*fs.files+1024), fsBlock), 16384)
	// The file is new and all zeros: no journal and no tables need be written.
	out, err := tool(ctx, nil, "mke2fs", "-q", "-t", "ext4", "-F", "-b", fmt.Sprint(fsBlock), "-I", "256", "-i", fmt.Sprint(ratio),
		"-O", features, "-U", fs.uuid, "-L", label(fs.label), "-E", "hash_seed="+fs.uuid+",lazy_itable_init=0,lazy_journal_init=1,root_owner=0:0", "-d", dir, img)
	if err != nil && (strings.Contains(out, "Could not allocate block") || strings.Contains(out, "allocate inode") || strings.Contains(out, "No space left") || strings.Contains(out, "Not enough space")) {
		return fmt.Errorf("%w: it does not fit into %d bytes; say more with --size", ErrTemplate, fs.size)
	}
	return err
}

// label is a name as ext4 takes it: 16 bytes.
func label(name string) string {
	if len(name) > 16 {
		name = strings.ToValidUTF8(name[:16], "")
	}
	return name
}

// tool runs one of e2fsprogs and returns what it printed. What it finds wrong
// without saying so by its status is an error too.
func tool(ctx context.Context, stdin []byte, name string, args ...string) (string, error) {
	program := programPath(name)
	if program == "" {
		return "", fmt.Errorf("the program %s is not installed; kami doctor says which package has it", name)
	}
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8", "MKE2FS_CONFIG=/dev/null",
		fmt.Sprintf("E2FSPROGS_FAKE_TIME=%d", epoch),
	}
	cmd.Stdin = bytes.NewReader(stdin)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if ctx.Err() != nil {
		return "", ctx.Err()
	}
	text := strings.TrimSpace(errs.String())
	if name == "debugfs" || strings.Contains(strings.Join(args[:min(len(args), 6)], " "), "/debugfs") { // which begins with its version
		_, text, _ = strings.Cut(text, "\n")
		if err == nil && text != "" {
			err = errors.New("it failed")
		}
	}
	if err != nil {
		return text, fmt.Errorf("%s: %w: %.500s", name, err, text)
	}
	return out.String(), nil
}

// programPath finds a program, also where an ordinary user's path does not lead;
// "" is for none.
func programPath(name string) string {
	for _, dir := range []string{"", "/usr/sbin", "/sbin"} {
		if p, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return p
		}
	}
	return ""
}

// keyBase is the time of the first file's stand-in. A stand-in's time says in the
// filesystem whose inode it has become.
const keyBase = 1 << 30

// image makes the filesystem of a staged tree: of the stand-ins by mke2fs, then
// the devices, the attributes and the owners, all without being root.
func (s *stage) image(ctx context.Context, img string, fs filesystem) error {
	for i, e := range s.all {
		if e.kind == 0 || e.kind == tar.TypeChar || e.kind == tar.TypeBlock {
			continue
		}
		key := unix.Timespec{Sec: keyBase + int64(i)}
		if err := unix.UtimesNanoAt(unix.AT_FDCWD, s.host(e.path), []unix.Timespec{key, key}, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return &os.PathError{Op: "utimes", Path: e.path, Err: err}
		}
	}
	fs.files = len(s.all)
	if err := makeExt4(ctx, s.root, img, fs); err != nil {
		return err
	}
	if err := s.devices(ctx, img); err != nil {
		return err
	}
	f, err := os.OpenFile(img, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	in, err := openInodes(f)
	if err != nil {
		return err
	}
	attributed := map[uint32]*entry{}
	err = in.each(func(ino uint32, raw []byte) bool {
		if e := s.of(ino, raw); e != nil && len(e.xattrs) > 0 {
			attributed[ino] = e
		}
		return false
	})
	if err != nil {
		return err
	}
	if err := s.attributes(ctx, img, attributed); err != nil {
		return err
	}
	return in.each(func(ino uint32, raw []byte) bool {
		e := s.of(ino, raw)
		if e == nil {
			return false
		}
		perm := e.perm
		if binary.LittleEndian.Uint16(raw)&0xf000 == 0xa000 { // a link has no permissions
			perm = 0o777
		}
		setOwner(raw, perm, e.uid, e.gid)
		setTimes(raw, e.mtime)
		if e.kind == tar.TypeChar || e.kind == tar.TypeBlock {
			setDevice(raw, e.major, e.minor)
		}
		return true
	})
}

// of is the entry that an inode has become of.
func (s *stage) of(ino uint32, raw []byte) *entry {
	if ino == rootInode {
		return s.paths["."]
	}
	if i := int64(mtimeOf(raw)) - keyBase; i >= 0 && i < int64(len(s.all)) {
		return s.all[i]
	}
	return nil
}

// devices makes the device nodes; which ones they are is written later.
func (s *stage) devices(ctx context.Context, img string) error {
	var script strings.Builder
	for i, e := range s.all {
		kind := map[byte]string{tar.TypeChar: "c", tar.TypeBlock: "b"}[e.kind]
		if kind == "" {
			continue
		}
		fmt.Fprintf(&script, "cd \"/%s\"\nmknod \"%s\" %s 0 0\nset_inode_field \"./%[2]s\" mtime @%[4]d\n",
			strings.TrimPrefix(path.Dir(e.path), "."), path.Base(e.path), kind, keyBase+i)
	}
	return debugfs(ctx, img, script.String())
}

func (s *stage) attributes(ctx context.Context, img string, all map[uint32]*entry) error {
	if len(all) == 0 {
		return nil
	}
	dir, err := os.MkdirTemp(filepath.Dir(s.root), "xattr-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	var script strings.Builder
	values := map[string]string{} // files, by what is in them
	for ino, e := range all {
		for name, value := range e.xattrs {
			file, ok := values[value]
			if !ok {
				file = filepath.Join(dir, fmt.Sprint(len(values)))
				values[value] = file
				if err := os.WriteFile(file, []byte(value), 0o600); err != nil {
					return err
				}
			}
			fmt.Fprintf(&script, "ea_set -f \"%s\" <%d> \"%s\"\n", file, ino, name)
		}
	}
	return debugfs(ctx, img, script.String())
}

// debugfs runs commands on a filesystem that was made here.
func debugfs(ctx context.Context, img, script string) error {
	if script == "" {
		return nil
	}
	_, err := tool(ctx, []byte(script), "debugfs", "-w", "-f", "-", img)
	return err
}
