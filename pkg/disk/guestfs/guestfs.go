// Package guestfs reads files out of a guest's filesystems: ext2, ext3, ext4 and
// FAT, by hand and without mounting anything. An unclean ext4 is read as its
// journal would leave it.
//
// The filesystem is hostile. No number in it is believed before it was held
// against the device and against a limit of ours; a link leads nowhere but into
// the same filesystem; and what is damaged is an error, never a panic.
//
// Sources: "ext4 Data Structures and Algorithms" in the Linux kernel's
// documentation (filesystems/ext4), its include/linux/jbd2.h, and Microsoft's
// "FAT: General Overview of On-Disk Format" 1.03.
package guestfs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"sync"
)

// What reading fails with, besides io/fs.ErrNotExist and the device's own errors.
var (
	ErrUnknown     = errors.New("no filesystem that is known")
	ErrUnsupported = errors.New("unsupported filesystem")
	ErrDamaged     = errors.New("the filesystem is damaged")
	ErrTooLarge    = errors.New("too large")
	ErrNotAFile    = errors.New("not a regular file")
)

const (
	maxPath  = 4096
	maxName  = 255
	maxSteps = 1000 // names looked up for one path, with those of its links
	maxLinks = 40
	// maxDir bounds a directory: bytes and entries.
	maxDir        = 64 << 20
	maxDirEntries = 1 << 20
	// maxMetadata bounds what is read of one filesystem besides files' contents,
	// in bytes. Directories count each time that they are searched.
	maxMetadata = 2 << 30
	// piece is how much of a file is read at once.
	piece = 1 << 20
)

// kind is what a node is.
type kind int

const (
	other kind = iota
	regular
	directory
	symlink
)

// node is a file of any kind in one format's words.
type node interface {
	kind() kind
	size() int64
	// readAt fills p from off on; the caller stays within size.
	readAt(ctx context.Context, p []byte, off int64) error
	// lookup finds a directory's child; fs.ErrNotExist.
	lookup(ctx context.Context, name string) (node, error)
	// names are those of a directory's children, without . and ..
	names(ctx context.Context) ([]string, error)
	// target is where a symbolic link points.
	target(ctx context.Context) (string, error)
}

// FS is a filesystem. Its methods may be called at the same time.
type FS struct {
	mu          sync.Mutex
	kind        string
	uuid, label string
	root        func(context.Context) (node, error)
}

// Open looks for a filesystem at the beginning of r, of size bytes. It fails
// with ErrUnknown where there is none, and with ErrUnsupported, naming it, where
// there is one that is not read here.
func Open(ctx context.Context, r io.ReaderAt, size int64) (*FS, error) {
	d := &device{r: r, size: size, left: maxMetadata, cache: map[int64][]byte{}}
	head := make([]byte, min(size, headSize))
	if err := d.read(ctx, head, 0); err != nil {
		return nil, err
	}
	switch {
	case isExt(head):
		return openExt(ctx, d)
	case isFAT(head):
		return openFAT(ctx, d, head)
	}
	if name := foreign(head); name != "" {
		return nil, fmt.Errorf("%w: %s; ext2, ext3, ext4 and FAT are read", ErrUnsupported, name)
	}
	return nil, ErrUnknown
}

// Kind is the format: ext2, ext3, ext4 or vfat.
func (f *FS) Kind() string { return f.kind }

// UUID identifies the filesystem as GRUB and blkid have it: 36 characters, or
// nine for FAT (1234-ABCD). It may be "".
func (f *FS) UUID() string { return f.uuid }

// Label is the filesystem's name; it may be "".
func (f *FS) Label() string { return f.label }

// Open finds the regular file at path, which is absolute; links are followed
// within the filesystem. fs.ErrNotExist; ErrNotAFile.
func (f *FS) Open(ctx context.Context, path string) (*File, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n, resolved, err := f.walk(ctx, path)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if n.kind() != regular {
		return nil, fmt.Errorf("%s: %w", path, ErrNotAFile)
	}
	return &File{fs: f, node: n, path: resolved}, nil
}

// ReadFile reads a file of at most most bytes; ErrTooLarge.
func (f *FS) ReadFile(ctx context.Context, path string, most int64) ([]byte, error) {
	file, err := f.Open(ctx, path)
	if err != nil {
		return nil, err
	}
	if file.Size() > most {
		return nil, fmt.Errorf("%s: %w: %d bytes, at most %d are read", path, ErrTooLarge, file.Size(), most)
	}
	b := make([]byte, file.Size())
	return b, file.ReadAt(ctx, b, 0)
}

// ReadDir returns the names in the directory at path, in no order.
func (f *FS) ReadDir(ctx context.Context, path string) ([]string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n, _, err := f.walk(ctx, path)
	if err == nil && n.kind() != directory {
		err = fs.ErrNotExist
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	names, err := n.names(ctx)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	// A name that is none would lead elsewhere when it is put behind a path.
	return slices.DeleteFunc(names, func(s string) bool {
		return s == "" || s == "." || s == ".." || strings.ContainsAny(s, "/\x00")
	}), nil
}

// File is a regular file of a filesystem.
type File struct {
	fs   *FS
	node node
	path string
}

// Path is where the file is, with links resolved.
func (f *File) Path() string { return f.path }

// Size is the file's length in bytes.
func (f *File) Size() int64 { return f.node.size() }

// ReadAt fills p with the file's bytes from off on; io.ErrUnexpectedEOF where the
// file ends before.
func (f *File) ReadAt(ctx context.Context, p []byte, off int64) error {
	if off < 0 || off > f.Size() || int64(len(p)) > f.Size()-off {
		return fmt.Errorf("%s: %w", f.path, io.ErrUnexpectedEOF)
	}
	for len(p) > 0 {
		n := min(len(p), piece)
		if err := f.read(ctx, p[:n], off); err != nil {
			return fmt.Errorf("%s: %w", f.path, err)
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

func (f *File) read(ctx context.Context, p []byte, off int64) error {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	return f.node.readAt(ctx, p, off)
}

// CopyTo writes the whole file to w.
func (f *File) CopyTo(ctx context.Context, w io.Writer) (int64, error) {
	buf := make([]byte, min(f.Size(), piece))
	var off int64
	for off < f.Size() {
		p := buf[:min(int64(len(buf)), f.Size()-off)]
		if err := f.ReadAt(ctx, p, off); err != nil {
			return off, err
		}
		n, err := w.Write(p)
		off += int64(n)
		if err != nil {
			return off, fmt.Errorf("%s: %w", f.path, err)
		}
	}
	return off, nil
}
