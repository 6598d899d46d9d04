package bundle

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// tree is a folder that is to be packed.
type tree struct {
	root  string
	files int
	bytes int64 // of their contents, in whole blocks

	left      int   // how many files the filter leaves out,
	leftBytes int64 // and how much is in them;
	foreign   bool  // whether any of them is of another filesystem, as proc is
}

// What may be left out of a tree for it to be packed as it lies there, and have it
// taken out of the filesystem afterwards: more would be written for nothing.
const (
	fewFiles = 1000
	fewBytes = 4 << 20
)

func (t *tree) few() bool { return !t.foreign && t.left <= fewFiles && t.leftBytes <= fewBytes }

// skipped counts what is left out with one name, until it is too much.
func (t *tree) skipped(host string) error {
	var root unix.Stat_t
	if err := unix.Stat(t.root, &root); err != nil {
		return &os.PathError{Op: "stat", Path: t.root, Err: err}
	}
	return filepath.WalkDir(host, func(host string, _ fs.DirEntry, err error) error {
		var st unix.Stat_t
		if err != nil || unix.Lstat(host, &st) != nil || st.Dev != root.Dev {
			t.foreign = true
		}
		t.left++
		t.leftBytes += st.Blocks * 512
		if !t.few() {
			return filepath.SkipAll
		}
		return nil
	})
}

// visit calls fn with everything under a folder that the filter lets stay: with
// its path from the root, and what lstat says. One filesystem after another is
// walked through, as EC2's tools do not; proc and sys are left out by the filter.
func (t *tree) visit(ctx context.Context, f *filter, fn func(name string, st *syscall.Stat_t) error) error {
	return filepath.WalkDir(t.root, func(host string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		name, err := filepath.Rel(t.root, host)
		if err != nil {
			return err
		}
		info, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil // it went meanwhile
		}
		if err != nil {
			return err
		}
		if name == "." {
			info, err = os.Stat(host)
			if err != nil {
				return err
			}
		}
		var head func() ([]byte, error)
		if info.Mode().IsRegular() {
			head = func() ([]byte, error) { return headOfFile(host) }
		}
		if name != "." {
			skip, err := f.skips(filepath.ToSlash(name), head)
			if err != nil {
				return err
			}
			if skip {
				if t.few() {
					err = t.skipped(host)
				}
				if err == nil && d.IsDir() {
					err = filepath.SkipDir
				}
				return err
			}
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok {
			return fmt.Errorf("what %s is cannot be told", host)
		}
		if t.files++; t.files > maxMembers {
			return fmt.Errorf("%w: it has more than %d files", ErrTemplate, maxMembers)
		}
		if info.Mode().IsRegular() && st.Nlink == 1 {
			t.bytes += min((st.Size+fsBlock-1)/fsBlock*fsBlock, st.Blocks*512+fsBlock)
		} else if info.Mode().IsRegular() {
			t.bytes += st.Blocks * 512 / int64(st.Nlink)
		} else if d.IsDir() {
			t.bytes += fsBlock
		}
		return fn(filepath.ToSlash(name), st)
	})
}

func headOfFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, peeked))
}

// stageFolder copies a folder's files into the stage.
func (s *stage) stageFolder(ctx context.Context, t *tree) error {
	links := map[[2]uint64]string{}
	return t.visit(ctx, s.filter, func(name string, st *syscall.Stat_t) error {
		host := filepath.Join(t.root, filepath.FromSlash(name))
		h := &tar.Header{
			Name: name, Mode: int64(st.Mode & 0o7777), Uid: int(st.Uid), Gid: int(st.Gid), Size: st.Size,
			ModTime: time.Unix(st.Mtim.Sec, 0), Devmajor: int64(unix.Major(st.Rdev)), Devminor: int64(unix.Minor(st.Rdev)),
		}
		var r io.Reader
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFDIR:
			h.Typeflag, h.Size = tar.TypeDir, 0
		case unix.S_IFLNK:
			to, err := os.Readlink(host)
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
			f, err := os.OpenFile(host, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
			if err != nil {
				return err
			}
			defer f.Close()
			r = f
		default: // a socket: nobody listens on it in an image
			return nil
		}
		id := [2]uint64{st.Dev, st.Ino}
		if first, ok := links[id]; ok && st.Mode&unix.S_IFMT != unix.S_IFDIR {
			h.Typeflag, h.Linkname = tar.TypeLink, first
			r = nil
		} else if st.Nlink > 1 {
			links[id] = name
		}
		if h.Typeflag != tar.TypeLink {
			var err error
			if h.PAXRecords, err = xattrsOf(host); err != nil {
				return err
			}
		}
		return s.put(h, r)
	})
}

// xattrsOf reads a file's extended attributes in tar's words.
func xattrsOf(host string) (map[string]string, error) {
	n, err := unix.Llistxattr(host, nil)
	if errors.Is(err, unix.ENOTSUP) || err == nil && n == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, &os.PathError{Op: "listxattr", Path: host, Err: err}
	}
	names := make([]byte, n)
	if n, err = unix.Llistxattr(host, names); err != nil {
		return nil, &os.PathError{Op: "listxattr", Path: host, Err: err}
	}
	all := map[string]string{}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(names[:n]), "\x00"), "\x00") {
		value := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(host, name, value)
		if errors.Is(err, unix.ENODATA) || errors.Is(err, unix.ENOTSUP) {
			continue
		}
		if err != nil {
			return nil, &os.PathError{Op: "getxattr", Path: host, Err: err}
		}
		all["SCHILY.xattr."+name] = string(value[:n])
	}
	return all, nil
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
