package bundle

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kamivm/kami/pkg/qcow2"
)

// The bounds of a tree.
const (
	maxMembers  = 2 << 20
	maxXattrs   = 3500 // bytes of a file's names and values: what one block of ext4 takes
	defaultRoot = int64(16 << 30)
)

// epoch is the time of what has none of its own, in seconds; pkg/build has the
// same.
const epoch = 1_700_000_000

// entry is a file of the tree as the guest will see it.
type entry struct {
	path         string // clean, from the root; "." is the root
	kind         byte   // tar's
	perm         uint32 // with set-user-id and the like
	uid, gid     uint32
	mtime        int64 // seconds
	major, minor uint32
	xattrs       map[string]string
	perms        os.FileMode // what its stand-in has
}

// stage is a tree that is being put together in a folder of this host, from what
// may come from anybody. Nothing in it is made with an owner, a mode that lets
// others in, or a device: each file has a stand-in there, and what it will be is
// kept beside it, to be written into the filesystem's inodes (ext4.go). So the
// same tree becomes the same image, whoever makes it.
//
// Every folder that a path leads through is one that was made here, so that no
// link is ever followed.
type stage struct {
	root   string
	all    []*entry
	paths  map[string]*entry
	filter *filter
	left   int64 // bytes that files may still have
	limit  int64
}

func newStage(dir string, f *filter, limit int64) (*stage, error) {
	if limit <= 0 {
		limit = defaultRoot
	}
	s := &stage{root: dir, paths: map[string]*entry{}, filter: f, left: limit, limit: limit}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	s.note(&entry{path: ".", kind: tar.TypeDir, perm: 0o755, mtime: epoch})
	return s, nil
}

func (s *stage) note(e *entry) {
	s.all = append(s.all, e)
	s.paths[e.path] = e
}

func (s *stage) host(name string) string { return filepath.Join(s.root, filepath.FromSlash(name)) }

// cleanName checks a member's name. It must not lead out, nor begin at a root.
func cleanName(name string) (string, error) {
	bad := func(why string) (string, error) {
		return "", fmt.Errorf("%w: the member %.200q %s", ErrTemplate, name, why)
	}
	switch {
	case strings.HasPrefix(name, "/"):
		return bad("has an absolute path")
	case strings.ContainsRune(name, 0):
		return bad("has a zero byte in its path")
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == ".." {
			return bad("leads out of the tree")
		}
		if len(part) > 255 {
			return bad("has a name of more than 255 bytes")
		}
	}
	return path.Clean(name), nil
}

// kindOf maps the kinds of members to those that a filesystem has; 0 is for what
// is none.
func kindOf(flag byte) byte {
	switch flag {
	case tar.TypeReg, '\x00', tar.TypeCont, tar.TypeGNUSparse:
		return tar.TypeReg
	case tar.TypeLink, tar.TypeSymlink, tar.TypeDir, tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		return flag
	}
	return 0
}

// add puts a member into the tree, unless it is left out.
func (s *stage) add(h *tar.Header, r io.Reader) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	name, err := cleanName(h.Name)
	if err != nil {
		return err
	}
	var head func() ([]byte, error)
	if kindOf(h.Typeflag) == tar.TypeReg {
		head = func() (b []byte, err error) {
			b, r, err = headOf(r)
			return b, err
		}
	}
	if skip, err := s.filter.skips(name, head); err != nil || skip {
		return err
	}
	return s.put(h, r)
}

// put puts a member into the tree.
func (s *stage) put(h *tar.Header, r io.Reader) error {
	name, err := cleanName(h.Name)
	if err != nil {
		return err
	}
	fault := func(format string, args ...any) error {
		return fmt.Errorf("%w: the member %.200q %w", ErrTemplate, h.Name, fmt.Errorf(format, args...))
	}
	kind := kindOf(h.Typeflag)
	if kind == 0 {
		return fault("is of the unknown kind %q", h.Typeflag)
	}
	if len(s.all) >= maxMembers {
		return fmt.Errorf("%w: it has more than %d members", ErrTemplate, maxMembers)
	}
	if name == "." && kind != tar.TypeDir {
		return fault("is the root and no folder")
	}
	e, err := newEntry(name, kind, h)
	if err != nil {
		return fault("%w", err)
	}
	if err := s.clear(e); err != nil {
		return fault("%w", err)
	}
	if err := s.parents(name); err != nil {
		return fault("%w", err)
	}
	switch kind {
	case tar.TypeDir:
		err = s.folder(e)
	case tar.TypeReg:
		err = s.file(e, h.Size, r)
	case tar.TypeSymlink:
		if h.Linkname == "" || len(h.Linkname) > 4095 {
			return fault("links to a path of %d bytes", len(h.Linkname))
		}
		err = os.Symlink(h.Linkname, s.host(name))
	case tar.TypeLink:
		return s.link(e, h.Linkname, fault)
	case tar.TypeFifo:
		err = unix.Mkfifo(s.host(name), 0o600)
	default:
		// A device is made in the filesystem; here is nothing.
	}
	if err == nil && s.paths[name] == nil {
		s.note(e)
	}
	if errors.Is(err, ErrTemplate) {
		return err
	}
	if err != nil {
		return fault("cannot be unpacked: %w", err)
	}
	return nil
}

func newEntry(name string, kind byte, h *tar.Header) (*entry, error) {
	e := &entry{path: name, kind: kind, perm: uint32(h.Mode) & 0o7777, mtime: clampTime(h.ModTime), xattrs: map[string]string{}}
	if h.Uid < 0 || h.Gid < 0 || int64(h.Uid) > 1<<32-1 || int64(h.Gid) > 1<<32-1 {
		return nil, fmt.Errorf("has the owner %d:%d", h.Uid, h.Gid)
	}
	e.uid, e.gid = uint32(h.Uid), uint32(h.Gid)
	if kind == tar.TypeChar || kind == tar.TypeBlock {
		if h.Devmajor < 0 || h.Devmajor > 0xfff || h.Devminor < 0 || h.Devminor > 0xfffff {
			return nil, fmt.Errorf("is the device %d:%d", h.Devmajor, h.Devminor)
		}
		e.major, e.minor = uint32(h.Devmajor), uint32(h.Devminor)
	}
	size := 0
	for key, value := range h.PAXRecords {
		attr, ok := strings.CutPrefix(key, "SCHILY.xattr.")
		if !ok || kind == tar.TypeLink {
			continue
		}
		if attr == "" || strings.ContainsFunc(attr, func(c rune) bool { return c <= ' ' || c == '"' || c >= 0x7f }) {
			return nil, fmt.Errorf("has an extended attribute %.40q", attr)
		}
		e.xattrs[attr] = value
		size += len(attr) + len(value) + 32
	}
	if size > maxXattrs {
		return nil, fmt.Errorf("has extended attributes of %d bytes, more than the %d that ext4 keeps", size, maxXattrs)
	}
	return e, nil
}

func clampTime(t time.Time) int64 {
	if t.IsZero() {
		return epoch
	}
	return min(max(t.Unix(), 0), 1<<34-1<<31-1) // what ext4 can say
}

// clear makes room for e where an earlier member has its path.
func (s *stage) clear(e *entry) error {
	old := s.paths[e.path]
	if old == nil {
		return nil
	}
	if old.kind == tar.TypeDir && e.kind == tar.TypeDir { // said better this time
		perms := old.perms
		*old = *e
		old.perms = perms
		return nil
	}
	if old.kind == tar.TypeDir {
		if err := os.Remove(s.host(e.path)); err != nil {
			return errors.New("is where a folder is that is not empty")
		}
	} else if err := os.Remove(s.host(e.path)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	old.kind = 0 // gone
	delete(s.paths, e.path)
	return nil
}

// parents makes the folders above name. Each must be one: what leads through a
// link would be written elsewhere.
func (s *stage) parents(name string) error {
	dir := path.Dir(name)
	if p := s.paths[dir]; p != nil {
		if p.kind != tar.TypeDir {
			return fmt.Errorf("leads through %q, which is no folder", dir)
		}
		return nil
	}
	if err := s.parents(dir); err != nil {
		return err
	}
	e := &entry{path: dir, kind: tar.TypeDir, perm: 0o755, mtime: epoch}
	s.note(e)
	return s.folder(e)
}

// mounts makes the folders that a guest mounts on, or needs to be there.
func (s *stage) mounts() error {
	for _, name := range emptied() {
		if s.paths[name] != nil {
			continue
		}
		e := &entry{path: name, kind: tar.TypeDir, perm: permOf(name), mtime: epoch}
		s.note(e)
		if err := s.folder(e); err != nil {
			return err
		}
	}
	return nil
}

// permOf are the permissions of one of the folders of the root.
func permOf(name string) uint32 {
	if name == "tmp" {
		return 0o1777
	}
	return 0o755
}

func (s *stage) folder(e *entry) error {
	known := s.paths[e.path]
	if known != nil && known.perms != 0 || e.path == "." {
		return nil
	}
	e.perms = 0o700 | os.FileMode(e.perm&0o777)
	if known != nil {
		known.perms = e.perms
	}
	// Its mode last: what comes into it must be let in meanwhile.
	return os.Mkdir(s.host(e.path), 0o700)
}

// file writes a file's content; runs of zeros become holes.
func (s *stage) file(e *entry, size int64, r io.Reader) error {
	if size < 0 || size > s.left {
		return fmt.Errorf("%w: with %.200q it has more than the %d bytes that there is room for", ErrTemplate, e.path, s.limit)
	}
	s.left -= size
	e.perms = 0o600 | os.FileMode(e.perm&0o777)
	f, err := os.OpenFile(s.host(e.path), os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	n, err := copySparse(f, r, size)
	if err == nil && n != size {
		err = fmt.Errorf("%w: it ends after %d of %d bytes: %w", ErrTemplate, n, size, io.ErrUnexpectedEOF)
	}
	if err == nil {
		err = f.Truncate(size)
	}
	return errors.Join(err, f.Close())
}

// copySparse copies at most size bytes but leaves out blocks of zeros.
func copySparse(f *os.File, r io.Reader, size int64) (done int64, err error) {
	buf := make([]byte, min(size, 256<<10))
	for done < size {
		n, err := io.ReadFull(r, buf[:min(int64(len(buf)), size-done)])
		if n > 0 {
			if werr := qcow2.WriteSparse(f, buf[:n], done); werr != nil {
				return done, werr
			}
			done += int64(n)
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return done, nil
		}
		if err != nil {
			return done, err
		}
	}
	return done, nil
}

// link gives a file another name.
func (s *stage) link(e *entry, to string, fault func(string, ...any) error) error {
	target, err := cleanName(to)
	if err != nil {
		return err
	}
	old := s.paths[target]
	switch {
	case old == nil && s.filter.was(target): // the other name of what was left out
		s.filter.left.add(e.path)
		return nil
	case old == nil:
		return fault("is another name of %.200q, which is not there", to)
	case old.kind == tar.TypeDir:
		return fault("is another name of the folder %.200q", to)
	case old.kind == tar.TypeChar || old.kind == tar.TypeBlock:
		same := *old
		same.path = e.path
		s.note(&same)
		return nil
	}
	if err := os.Link(s.host(target), s.host(e.path)); err != nil {
		return fault("cannot be unpacked: %w", err)
	}
	same := *old
	same.path = e.path
	s.note(&same)
	return nil
}
