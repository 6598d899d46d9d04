package bundle

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kamivm/kami/pkg/disk/ext4"
)

// tree is a folder that is to be packed.
type tree struct {
	root  string
	files int
	bytes int64              // of their contents, in whole blocks
	named map[[2]uint64]bool // files of several names that are counted
}

// visit calls fn with everything under a folder that the filter lets stay. One
// filesystem after another is walked through, as EC2's tools do not; proc and sys
// are left out by the filter.
func (t *tree) visit(ctx context.Context, f *filter, fn func(*place) error) error {
	return walk(t.root, func(p *place) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		kind, st := p.kind(), &p.st
		var head func() ([]byte, error)
		if kind == unix.S_IFREG {
			head = p.head
		}
		if p.name != "." {
			if skip, err := f.skips(p.name, head); err != nil {
				return err
			} else if skip {
				return errSkipped
			}
		}
		if t.files++; t.files > maxMembers {
			return fmt.Errorf("%w: it has more than %d files", ErrTemplate, maxMembers)
		}
		switch {
		case kind == unix.S_IFREG && t.first(st):
			t.bytes += min((st.Size+ext4.Block-1)/ext4.Block*ext4.Block, st.Blocks*512+ext4.Block)
		case kind == unix.S_IFDIR:
			t.bytes += ext4.Block
		}
		return fn(p)
	})
}

// first says whether a file was not seen under another of its names; of those some may
// be outside of the tree.
func (t *tree) first(st *unix.Stat_t) bool {
	id := [2]uint64{st.Dev, st.Ino}
	if st.Nlink == 1 {
		return true
	}
	if t.named == nil {
		t.named = map[[2]uint64]bool{}
	}
	seen := t.named[id]
	t.named[id] = true
	return !seen
}

// plant makes the tree of a filesystem out of the folder. What is in its files is
// read from in when it is wanted. The root is the system's, whoever has the folder.
func (t *tree) plant(ctx context.Context, f *filter, in *folders) (*ext4.File, error) {
	root := &ext4.File{Mode: unix.S_IFDIR | 0o755, Time: epoch}
	dirs := map[string]*ext4.File{".": root}
	links := map[[2]uint64]*ext4.File{}
	err := t.visit(ctx, f, func(p *place) error {
		kind, st := p.kind(), &p.st
		if p.name == "." || kind == unix.S_IFSOCK { // on which nobody listens in an image
			return nil
		}
		id := [2]uint64{st.Dev, st.Ino}
		file := links[id]
		if file == nil {
			var err error
			if file, err = p.plant(in); err != nil {
				return err
			}
			if kind == unix.S_IFDIR {
				dirs[p.name] = file
			} else if st.Nlink > 1 {
				links[id] = file
			}
		}
		above := dirs[path.Dir(p.name)]
		above.Entries = append(above.Entries, ext4.Entry{Name: p.base, File: file})
		return nil
	})
	return root, err
}

// plant makes a file of a filesystem.
func (p *place) plant(in *folders) (f *ext4.File, err error) {
	st := &p.st
	f = &ext4.File{
		Mode: st.Mode, UID: st.Uid, GID: st.Gid, Time: clampTime(time.Unix(st.Mtim.Sec, 0)),
		Major: unix.Major(st.Rdev), Minor: unix.Minor(st.Rdev),
	}
	switch p.kind() {
	case unix.S_IFLNK:
		f.Target, err = p.target()
	case unix.S_IFREG:
		c := newContent(in, p.name, st)
		f.Size, f.Content = st.Size, c
		f.Runs, err = c.runs(st)
	}
	if err == nil {
		f.Xattrs, err = p.xattrs()
	}
	return f, err
}

// stageFolder copies a folder's files into the stage.
func (s *stage) stageFolder(ctx context.Context, t *tree) error {
	links := map[[2]uint64]string{}
	return t.visit(ctx, s.filter, func(p *place) error {
		st := &p.st
		h := &tar.Header{
			Name: p.name, Mode: int64(st.Mode & 0o7777), Uid: int(st.Uid), Gid: int(st.Gid), Size: st.Size,
			ModTime: time.Unix(st.Mtim.Sec, 0), Devmajor: int64(unix.Major(st.Rdev)), Devminor: int64(unix.Minor(st.Rdev)),
		}
		var r io.Reader
		switch p.kind() {
		case unix.S_IFDIR:
			h.Typeflag, h.Size = tar.TypeDir, 0
		case unix.S_IFLNK:
			to, err := p.target()
			if err != nil {
				return err
			}
			h.Typeflag, h.Linkname, h.Size = tar.TypeSymlink, to, 0
		case unix.S_IFCHR:
			h.Typeflag = tar.TypeChar
		case unix.S_IFBLK:
			h.Typeflag = tar.TypeBlock
		case unix.S_IFIFO:
			h.Typeflag = tar.TypeFifo
		case unix.S_IFREG:
			h.Typeflag = tar.TypeReg
			f, err := p.open(unix.O_NONBLOCK)
			if err != nil {
				return err
			}
			defer f.Close()
			r = f
		default: // a socket: nobody listens on it in an image
			return nil
		}
		id := [2]uint64{st.Dev, st.Ino}
		if first, ok := links[id]; ok && p.kind() != unix.S_IFDIR {
			h.Typeflag, h.Linkname = tar.TypeLink, first
			r = nil
		} else if st.Nlink > 1 {
			links[id] = p.name
		}
		if h.Typeflag != tar.TypeLink {
			xattrs, err := p.xattrs()
			if err != nil {
				return err
			}
			h.PAXRecords = map[string]string{}
			for name, value := range xattrs {
				h.PAXRecords["SCHILY.xattr."+name] = value
			}
		}
		return s.put(h, r)
	})
}

// stageTar unpacks a tar into the stage. The stream may be no longer than what its
// files may have and headers need.
func (s *stage) stageTar(ctx context.Context, r io.Reader) error {
	limited := &io.LimitedReader{R: r, N: 2*s.limit + 4<<30}
	t := tar.NewReader(limited)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			err = s.add(h, t)
		}
		if limited.N <= 0 {
			return fmt.Errorf("%w: unpacked it is longer than %d bytes", ErrTemplate, 2*s.limit+4<<30)
		}
		if errors.Is(err, ErrTemplate) {
			return err
		}
		if err != nil {
			return fmt.Errorf("%w: the tar cannot be read: %w", ErrTemplate, err)
		}
	}
}

// text reads a small file out of the stage; "" when it is not there. Links are
// followed within the tree alone.
func textOf(dir, name string) string {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return ""
	}
	defer root.Close()
	for range 10 {
		st, err := root.Lstat(name)
		if err != nil {
			return ""
		}
		if st.Mode().IsRegular() {
			break
		}
		to, err := root.Readlink(name)
		if err != nil {
			return ""
		}
		if path.IsAbs(to) {
			name = strings.TrimPrefix(path.Clean(to), "/")
		} else {
			name = path.Join(path.Dir(name), to)
		}
	}
	f, err := root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return ""
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return ""
	}
	b, err := io.ReadAll(io.LimitReader(f, 1<<20))
	if err != nil {
		return ""
	}
	return string(b)
}
