package object

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/kamivm/kami/pkg/internal/durable"
)

// Batch is many small objects for a Dir, such as a bundle's chunks, that become
// there with Commit: before it none is, and after it all of them last. To make
// each last by itself would take longer than everything else. It is safe for
// concurrent use.
type Batch struct {
	dir *Dir

	mu      sync.Mutex
	scratch *os.File          // the folder with what is not there yet
	temps   map[string]string // in it, by the object's name

	placing sync.Mutex // held by Commit
	shelves map[string]*shelf
}

// Batch begins a batch. The caller ends it with Discard, also after Commit.
func (d *Dir) Batch() *Batch {
	return &Batch{dir: d, temps: map[string]string{}, shelves: map[string]*shelf{}}
}

// open returns the folder to write to, and a name in it.
func (b *Batch) open() (scratch *os.File, temp string, err error) {
	_, name, err := b.dir.work()
	if err != nil {
		return nil, "", err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.scratch == nil {
		b.scratch, err = os.Open(filepath.Join(b.dir.path, path.Dir(name)))
	}
	return b.scratch, path.Base(name), err
}

// Put writes an object; the last one of a name counts.
func (b *Batch) Put(ctx context.Context, name string, data []byte) error {
	if err := errors.Join(CheckName(name), ctx.Err()); err != nil {
		return err
	}
	scratch, temp, err := b.open()
	if err != nil {
		return dirError(err, b.dir.path)
	}
	fd, err := unix.Openat(int(scratch.Fd()), temp, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o444)
	if err != nil {
		return dirError(&os.PathError{Op: "open", Path: temp, Err: err}, name)
	}
	for err == nil && len(data) > 0 {
		var n int
		if n, err = unix.Write(fd, data); errors.Is(err, unix.EINTR) {
			err = nil
		}
		data = data[max(n, 0):]
	}
	if err = errors.Join(err, unix.Close(fd)); err != nil {
		return dirError(&os.PathError{Op: "write", Path: temp, Err: err}, name) // what was written goes with its folder
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.temps[name] = temp
	return nil
}

// Commit makes all objects that were put before be there, and last. Killed in
// between, each is there as a whole or not at all. Others can be put meanwhile.
func (b *Batch) Commit(ctx context.Context) error {
	b.placing.Lock()
	defer b.placing.Unlock()
	b.mu.Lock()
	temps := b.temps
	b.temps = map[string]string{}
	b.mu.Unlock()
	if len(temps) == 0 {
		return nil
	}
	durable.Step("batch.written")
	if err := b.sync(); err != nil {
		return err
	}
	durable.Step("batch.synced")
	for name, temp := range temps {
		if err := ctx.Err(); err != nil {
			return err // what is left goes with its folder
		}
		if err := b.place(temp, name); err != nil {
			return dirError(err, name)
		}
	}
	durable.Step("batch.renamed")
	return b.sync()
}

// place gives a file its name. No link on the way is followed out of the store.
func (b *Batch) place(temp, name string) error {
	above, folder, base := onShelf(name)
	var err error
	// Its folder, or the shelf, may go with another object while this one comes.
	for range 100 {
		var s *shelf
		if s, err = b.shelf(above, true); err != nil {
			return err
		}
		if err = s.place(b.scratch, temp, folder, base); !errors.Is(err, fs.ErrNotExist) {
			break
		}
		b.drop(above)
	}
	if err != nil {
		return fmt.Errorf("placing it: %w", err)
	}
	return nil
}

// shelf opens a folder of the store once, and makes it where create says so.
func (b *Batch) shelf(name string, create bool) (*shelf, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if s := b.shelves[name]; s != nil {
		return s, nil
	}
	root, err := b.dir.open()
	if err != nil {
		return nil, err
	}
	if create {
		if err := root.MkdirAll(name, 0o755); err != nil {
			return nil, err
		}
	}
	s, err := openShelf(root, name)
	if err == nil {
		b.shelves[name] = s
	}
	return s, err
}

func (b *Batch) drop(name string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.shelves[name].dir.Close()
	delete(b.shelves, name)
}

// Stat is the store's, but for what is in no folder that was there when the batch
// has first looked: that is not found, though another may have put it there since.
func (b *Batch) Stat(ctx context.Context, name string) (Info, error) {
	if err := errors.Join(CheckName(name), ctx.Err()); err != nil {
		return Info{}, err
	}
	above, folder, _ := onShelf(name)
	s, err := b.shelf(above, false)
	if err != nil {
		return Info{}, b.dir.notFound(err, name)
	}
	if !s.has(folder) {
		return Info{}, b.dir.notFound(fs.ErrNotExist, name)
	}
	return b.dir.Stat(ctx, name)
}

// sync writes out the whole filesystem: once is cheaper than each file by itself.
func (b *Batch) sync() error { return dirError(unix.Syncfs(int(b.scratch.Fd())), b.dir.path) }

// Discard forgets what was not committed.
func (b *Batch) Discard() {
	b.placing.Lock()
	defer b.placing.Unlock()
	b.mu.Lock()
	defer b.mu.Unlock()
	for name, temp := range b.temps {
		_ = unix.Unlinkat(int(b.scratch.Fd()), temp, 0) // goes with its folder at the latest
		delete(b.temps, name)
	}
	if b.scratch != nil {
		b.scratch.Close()
		b.scratch = nil
	}
	for name, s := range b.shelves {
		s.dir.Close()
		delete(b.shelves, name)
	}
}
