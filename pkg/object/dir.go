package object

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/kamivm/kami/pkg/internal/durable"
)

// Dir is a store in a directory of this host: each object is a file of its name.
// Nothing outside of the directory is read or written, whatever symbolic links
// are in it. It is made with its first object.
type Dir struct {
	path string

	mu      sync.Mutex
	root    *os.Root
	scratch *durable.Scratch // of this process, for objects that are not whole yet
	serial  int              // of the last of them
}

var _ Store = (*Dir)(nil)

// OpenDir opens the store in a directory, which need not be there yet.
func OpenDir(dir string) (*Dir, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	switch st, err := os.Stat(abs); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, dirError(err, abs)
	case !st.IsDir():
		return nil, fmt.Errorf("%s is not a directory", abs)
	}
	return &Dir{path: abs}, nil
}

// URL is the directory's file URL.
func (d *Dir) URL() string { return (&url.URL{Scheme: "file", Path: d.path}).String() }

// Path is the directory.
func (d *Dir) Path() string { return d.path }

// open returns the root, fs.ErrNotExist while there is none.
func (d *Dir) open() (*os.Root, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.openLocked()
}

func (d *Dir) openLocked() (*os.Root, error) {
	if d.root != nil {
		return d.root, nil
	}
	root, err := os.OpenRoot(d.path)
	if err == nil {
		d.root = root
	}
	return root, err
}

// work returns the root and the name of a new file under it to write to.
func (d *Dir) work() (root *os.Root, temp string, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.scratch == nil {
		tmp := filepath.Join(d.path, reserved)
		if err := makeDir(tmp); err != nil {
			return nil, "", err
		}
		durable.SweepScratch(tmp) //nolint:errcheck // what cannot be swept now is for the next one
		if d.scratch, err = durable.NewScratch(tmp, "put"); err != nil {
			return nil, "", err
		}
	}
	root, err = d.openLocked()
	d.serial++
	return root, path.Join(reserved, filepath.Base(d.scratch.Dir()), fmt.Sprint(d.serial)), err
}

// makeDir makes a directory and those above it, so that they stay.
func makeDir(dir string) error {
	if st, err := os.Stat(dir); err == nil && st.IsDir() {
		return nil
	}
	if err := makeDir(filepath.Dir(dir)); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	durable.Step("mkdir.made")
	return durable.SyncDir(filepath.Dir(dir))
}

// Put writes an object.
func (d *Dir) Put(ctx context.Context, name string, r io.ReadSeeker, size int64) error {
	return d.put(ctx, name, r, size, durable.RenameIn)
}

// PutNew writes an object whose name is free.
func (d *Dir) PutNew(ctx context.Context, name string, r io.ReadSeeker, size int64) error {
	return d.put(ctx, name, r, size, durable.LinkIn)
}

func (d *Dir) put(ctx context.Context, name string, r io.ReadSeeker, size int64, place func(root *os.Root, from, to string) error) error {
	if err := CheckName(name); err != nil {
		return err
	}
	root, temp, err := d.work()
	if err != nil {
		return dirError(err, d.path)
	}
	defer func() { _ = root.Remove(temp) }() // most often it has its name by then
	if err := writeFile(ctx, root, temp, r, size); err != nil {
		return dirError(err, name)
	}
	durable.Step("object.written")
	if err := ctx.Err(); err != nil {
		return err
	}
	err = place(root, temp, name)
	// Its folder may go with another object while this one comes.
	for try := 0; errors.Is(err, fs.ErrNotExist) && try < 100; try++ {
		if err = durable.MkdirAllIn(root, path.Dir(name), 0o755); err == nil || errors.Is(err, fs.ErrNotExist) {
			err = place(root, temp, name)
		}
	}
	switch {
	case errors.Is(err, syscall.ENOTDIR), errors.Is(err, syscall.EISDIR), err != nil && isDir(root, name):
		return fmt.Errorf("%w: %q cannot be beside the objects of %s, where a name is a file or a folder", ErrBadName, name, d.path)
	case errors.Is(err, fs.ErrExist):
		return fmt.Errorf("%w: %s in %s", ErrExists, name, d.URL())
	}
	return dirError(err, name)
}

func isDir(root *os.Root, name string) bool {
	st, err := root.Lstat(name)
	return err == nil && st.IsDir()
}

func writeFile(ctx context.Context, root *os.Root, name string, r io.ReadSeeker, size int64) error {
	if _, err := r.Seek(0, io.SeekStart); err != nil {
		return err
	}
	f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o444)
	if err != nil {
		return err
	}
	n, err := io.CopyBuffer(struct{ io.Writer }{f}, io.LimitReader(patient{ctx, r}, size), make([]byte, min(size+1, 1<<20)))
	if err == nil && n < size {
		err = fmt.Errorf("%d of %d bytes were given: %w", n, size, io.ErrUnexpectedEOF)
	}
	return errors.Join(err, f.Close())
}

// patient is a reader that ends when ctx does.
type patient struct {
	ctx context.Context //nolint:containedctx // that of the one call which reads
	io.Reader
}

func (p patient) Read(b []byte) (int, error) {
	if err := p.ctx.Err(); err != nil {
		return 0, err
	}
	return p.Reader.Read(b)
}

// Get opens an object.
func (d *Dir) Get(ctx context.Context, name string) (io.ReadCloser, Info, error) {
	if _, err := d.Stat(ctx, name); err != nil {
		return nil, Info{}, err
	}
	root, err := d.open()
	if err != nil {
		return nil, Info{}, dirError(err, name)
	}
	f, err := root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, Info{}, d.notFound(err, name)
	}
	st, err := f.Stat()
	if err != nil || !st.Mode().IsRegular() {
		f.Close()
		return nil, Info{}, d.notFound(errors.Join(err, fs.ErrNotExist), name)
	}
	body := struct {
		io.Reader
		io.Closer
	}{whole(patient{ctx, f}, st.Size()), f}
	return body, dirInfo(name, st), nil
}

// Stat describes an object.
func (d *Dir) Stat(ctx context.Context, name string) (Info, error) {
	if err := errors.Join(CheckName(name), ctx.Err()); err != nil {
		return Info{}, err
	}
	root, err := d.open()
	if err != nil {
		return Info{}, d.notFound(err, name)
	}
	st, err := root.Lstat(name)
	if err != nil {
		return Info{}, d.notFound(err, name)
	}
	if !st.Mode().IsRegular() { // a folder, or what is none of ours
		return Info{}, d.notFound(fs.ErrNotExist, name)
	}
	return dirInfo(name, st), nil
}

func dirInfo(name string, st fs.FileInfo) Info {
	return Info{Name: name, Size: st.Size(), Modified: st.ModTime()}
}

// Delete deletes an object, and the folders that it was the last in.
func (d *Dir) Delete(ctx context.Context, name string) error {
	_, err := d.Stat(ctx, name)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	root, oerr := d.open()
	if err := errors.Join(err, oerr); err != nil {
		return dirError(err, name)
	}
	if err := durable.RemoveIn(root, name); err != nil {
		return dirError(err, name)
	}
	for dir := path.Dir(name); dir != "." && root.Remove(dir) == nil; { // fails for one that has more
		dir = path.Dir(dir)
	}
	return nil
}

// Close removes what this process has left unfinished.
func (d *Dir) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	var err error
	if d.scratch != nil {
		err = d.scratch.Close()
		d.scratch = nil
	}
	if d.root != nil {
		err = errors.Join(err, d.root.Close())
		d.root = nil
	}
	return err
}

func (d *Dir) notFound(err error, name string) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return fmt.Errorf("%w: %s in %s", ErrNotFound, name, d.URL())
	}
	return dirError(err, name)
}

// dirError gives what a filesystem says of name the sentinels of this package.
func dirError(err error, name string) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w: %s: %w", ErrDenied, name, err)
	case errors.Is(err, syscall.ENAMETOOLONG):
		return fmt.Errorf("%w: %s: %w", ErrBadName, name, err)
	}
	return fmt.Errorf("object %s: %w", strings.TrimPrefix(name, "/"), err)
}
