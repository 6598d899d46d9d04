// Package pvgrub does on the host what PV-GRUB did inside a paravirtual guest:
// it reads the boot configuration in the guest's own root (menu.lst, grub.cfg,
// Boot Loader Specification entries) and finds the kernel, the initial RAM disks
// and the command line that it names. A guest that upgrades its kernel so boots
// the new one the next time, without anybody telling the host.
//
// Nothing is mounted and nothing of the guest is run. The disk is hostile: a path
// never leads out of the filesystem it was found in, and how much is read, walked
// and kept has limits (Max…), whatever the disk says of itself.
package pvgrub

import (
	"context"
	"errors"
	"io"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/disk/guestfs"
)

// What Find fails with. The messages that wrap these say where was looked and
// what was found lacking there.
var (
	ErrNoFilesystem = errors.New("no filesystem that can be read")
	ErrNoConfig     = errors.New("no boot configuration")
	ErrNoKernel     = errors.New("no kernel that can be booted")
	ErrNotKernel    = errors.New("not a kernel")
	ErrTooLarge     = errors.New("too large")
)

// The limits of what is taken from a disk, in bytes and in numbers.
const (
	MaxKernel  = 256 << 20
	MaxInitrds = 1 << 30 // all initial RAM disks of an entry together
	MaxConfig  = 1 << 20
	MaxEntries = 1000
)

// Config is a disk's boot configuration.
type Config struct {
	// Source is the file that it was read from, in GRUB 2's words:
	// "(hd0,gpt2)/boot/grub/grub.cfg"; a directory for Boot Loader
	// Specification entries.
	Source string
	// Entries are those to be tried, in this order; at least one. All their files
	// were there.
	Entries []Entry
	// Passed says, a sentence each, what was found and not taken: a default entry
	// whose kernel is gone, say.
	Passed []string
}

// Entry is one system that can be booted.
type Entry struct {
	Title   string
	Cmdline string
	Kernel  File
	Initrds []File // to be given to the kernel one behind the other
}

// File is a file in the guest's root. It can be read as long as the disk that
// Find was given is open and unchanged.
type File struct {
	Device string // "(hd0,gpt2)", or "(hd0)" of a disk without partitions
	Path   string // in that device's filesystem, with links resolved; to be shown
	Size   int64  // bytes
	// Of a kernel: what it is (FormatBzImage …), "" of another file; for which
	// machine, "" when it does not say; and whether an ELF one has the entry
	// point that QEMU starts it by.
	Format       string
	Architecture ami.Architecture
	PVH          bool

	file *guestfs.File
}

// String is the file in GRUB's words: "(hd0,gpt2)/boot/vmlinuz".
func (f File) String() string { return f.Device + f.Path }

// WriteTo writes the file's bytes as they lie in the guest's root.
func (f File) WriteTo(w io.Writer) (int64, error) { return f.CopyTo(context.Background(), w) }

// CopyTo is WriteTo that ends when ctx does.
func (f File) CopyTo(ctx context.Context, w io.Writer) (int64, error) {
	if f.file == nil {
		return 0, errors.New("copying a file of no guest: it was not made by Find")
	}
	return f.file.CopyTo(ctx, w)
}

// Find reads the boot configuration of the disk img of size bytes: the entries
// in the order in which they are to be tried, the default one first, then the
// fallback ones. When the files of none of these are there, the others of the
// menu stand in for them in the menu's order.
//
// Find only reads img, and does so until ctx ends. What a configuration asks to
// be written (a saved entry, a counter) is not written.
func Find(ctx context.Context, img io.ReaderAt, size int64) (Config, error) {
	c, err := find(ctx, img, size)
	if err != nil {
		return Config{}, shownError{err}
	}
	return c, nil
}
