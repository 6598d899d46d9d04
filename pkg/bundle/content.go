package bundle

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/kamivm/kami/pkg/disk/ext4"
)

// errChanged is for a file that was changed while it was packed.
var errChanged = errors.New("it has changed while it was packed")

// content is what is in a regular file of a tree, as the walk has seen it.
type content struct {
	in           *folders
	name         string
	dev, ino     uint64
	size         int64
	mtime, ctime unix.Timespec
}

func newContent(in *folders, name string, st *unix.Stat_t) *content {
	return &content{in, name, st.Dev, st.Ino, st.Size, st.Mtim, st.Ctim}
}

func (c *content) fault(op string, err error) error {
	return fmt.Errorf("%w: %w", ErrTemplate, &os.PathError{Op: op, Path: filepath.Join(c.in.root, filepath.FromSlash(c.name)), Err: err})
}

// Open opens the file, which must be the one that was seen.
func (c *content) Open() (ext4.Reader, error) {
	fd, err := c.in.open(c.name)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENOTDIR) {
		err = fmt.Errorf("%w: %w", errChanged, err)
	}
	if err != nil {
		return nil, c.fault("open", err)
	}
	r := &contentReader{c, fd}
	if err := r.check(); err != nil {
		unix.Close(fd) // nothing was written
		return nil, err
	}
	return r, nil
}

// runs finds where the file has data. One that takes as much room as it has bytes
// has no holes.
func (c *content) runs(st *unix.Stat_t) ([]ext4.Run, error) {
	if st.Size == 0 {
		return nil, nil
	}
	all := []ext4.Run{{Len: st.Size}}
	if st.Blocks*512 >= st.Size {
		return all, nil
	}
	r, err := c.Open()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	fd, out := r.(*contentReader).fd, []ext4.Run(nil)
	for at := int64(0); at < st.Size; {
		data, err := unix.Seek(fd, at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break // zeros to the end
		}
		if errors.Is(err, unix.EINVAL) { // a filesystem that knows no holes
			return all, nil
		}
		if err != nil {
			return nil, c.fault("seek", err)
		}
		hole, err := unix.Seek(fd, data, unix.SEEK_HOLE)
		if err != nil {
			return nil, c.fault("seek", err)
		}
		if at = min(hole, st.Size); at <= data {
			return nil, c.fault("seek", errChanged)
		}
		out = append(out, ext4.Run{Off: data, Len: at - data})
	}
	return out, r.Close()
}

// contentReader is such a file, open.
type contentReader struct {
	*content
	fd int
}

// ReadAt reads the file, which must not have become shorter.
func (r *contentReader) ReadAt(p []byte, off int64) (done int, err error) {
	for done < len(p) {
		n, err := unix.Pread(r.fd, p[done:], off+int64(done))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err == nil && n == 0 {
			err = errChanged
		}
		if err != nil {
			return done, r.fault("read", err)
		}
		done += n
	}
	return done, nil
}

func (r *contentReader) check() error {
	var st unix.Stat_t
	if err := unix.Fstat(r.fd, &st); err != nil {
		return r.fault("stat", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || *newContent(r.in, r.name, &st) != *r.content {
		return r.fault("read", errChanged)
	}
	return nil
}

// Close closes the file, which must not have been changed meanwhile.
func (r *contentReader) Close() error {
	if r.fd < 0 {
		return nil
	}
	err := r.check()
	unix.Close(r.fd) // nothing was written
	r.fd = -1
	return err
}
