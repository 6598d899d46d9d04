package bundle

import (
	"archive/tar"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// expose gives the stand-ins the permissions that a script expects to see.
func (s *stage) expose() error {
	for _, e := range s.all {
		if e.kind == tar.TypeReg || e.kind == tar.TypeDir && e.path != "." {
			if err := os.Chmod(s.host(e.path), e.perms); err != nil {
				return err
			}
		}
	}
	return nil
}

// adopt takes over what a script has made of the tree: what is new is root's, what
// is another file than before keeps its owner, and what is gone is gone.
func (s *stage) adopt() error {
	there := map[string]bool{}
	err := filepath.WalkDir(s.root, func(host string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(s.root, host)
		if err != nil || name == "." {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(host, &st); err != nil {
			return err
		}
		kind := map[uint32]byte{
			unix.S_IFREG: tar.TypeReg, unix.S_IFDIR: tar.TypeDir, unix.S_IFLNK: tar.TypeSymlink, unix.S_IFIFO: tar.TypeFifo,
		}[st.Mode&unix.S_IFMT]
		if kind == 0 {
			return fmt.Errorf("%w: the script has made /%s, which is no file, folder or link", ErrTemplate, name)
		}
		there[name] = true
		perm := os.FileMode(st.Mode & 0o777)
		old := s.paths[name]
		switch {
		case old == nil || old.kind != kind:
			if old != nil {
				old.kind = 0
				delete(s.paths, name)
			}
			s.note(&entry{path: name, kind: kind, perm: st.Mode & 0o7777, mtime: st.Mtim.Sec, perms: perm})
		case kind != tar.TypeSymlink && perm != old.perms:
			old.perm = old.perm&^0o777 | uint32(perm)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, e := range s.all {
		device := e.kind == tar.TypeChar || e.kind == tar.TypeBlock
		if e.path != "." && !device && !there[e.path] {
			e.kind = 0
			delete(s.paths, e.path)
		}
		if device { // whose folder may be gone
			if p := s.paths[filepath.Dir(e.path)]; p == nil || p.kind != tar.TypeDir {
				e.kind = 0
				delete(s.paths, e.path)
			}
		}
	}
	return nil
}
