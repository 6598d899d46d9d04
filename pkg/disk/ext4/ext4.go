// Package ext4 makes ext4 filesystems out of trees of files without writing them
// anywhere: New plans where everything goes, and the image that it returns makes
// each block as it is read. Files' contents are read from the files themselves.
//
// The image is a function of the tree and the options alone: the same ones give
// the same bytes on every host. Metadata comes first - the superblock, bitmaps,
// inode tables, folders - then the files' contents in the order of the tree, so
// that trees that are alike become images that are alike; the journal and what is
// free are behind them.
//
// Source: "ext4 Data Structures and Algorithms" in the Linux kernel's documentation
// (filesystems/ext4); for the inode that reserves room for growing, which it does
// not tell of, e2fsprogs' lib/ext2fs/res_gdt.c.
package ext4

import (
	"errors"
	"hash/crc32"
	"io"
)

// Block is the size of a block, in bytes.
const Block = 4096

// What New fails with.
var (
	// ErrNoRoom is returned for a tree that does not fit into the filesystem.
	ErrNoRoom = errors.New("it does not fit into the filesystem")
	// ErrUnfit is returned for a file that ext4 cannot have.
	ErrUnfit = errors.New("ext4 cannot have it")
)

// Options are what a filesystem has beside its files.
type Options struct {
	Size     int64 // bytes; what is behind the last whole block is zeros
	UUID     [16]byte
	HashSeed [16]byte // of the folders' indexes that guests make
	Label    string   // at most 16 bytes of it are taken
	Time     int64    // seconds since 1970: when it was made
	// BytesPerInode is for how many bytes there is an inode; there are always
	// enough for the tree. 0 is 16384.
	BytesPerInode int64
}

// The kinds of files, as in Mode.
const (
	kindMask = 0o170000
	fifo     = 0o010000
	char     = 0o020000
	folder   = 0o040000
	block    = 0o060000
	regular  = 0o100000
	symlink  = 0o120000
	socket   = 0o140000
)

// File is a file of any kind. The same File under several names is one with hard
// links.
type File struct {
	Mode         uint32 // the kind and the permissions, as stat(2) has them
	UID, GID     uint32
	Time         int64 // seconds since 1970, of its last change and everything else
	Xattrs       map[string]string
	Major, Minor uint32 // of a device
	Target       string // of a symbolic link
	Size         int64  // of a regular file, in bytes
	Runs         []Run  // of a regular file: where its data is, in order; all else is a hole
	Content      Content
	Entries      []Entry // of a folder, in the order that they are to have

	ino, links, parent uint32
	pass               int   // the last walk that has seen it
	least              int64 // blocks that a folder has at least
	extents            []extent
	nodes              int64 // blocks of its tree of extents
	head               [60]byte
	inBody             []byte // extended attributes
	attrBlock          int64
	starts             []int32 // a folder's blocks: with which entry each begins
}

// Entry is a file in a folder.
type Entry struct {
	Name string
	File *File
}

// Run is a part of a file, in bytes.
type Run struct{ Off, Len int64 }

// Content is what a regular file has in it.
type Content interface {
	// Open opens it; it is closed before the next one is opened. It fails, naming
	// the file, if it is not what it was when the tree was looked through.
	Open() (Reader, error)
}

// Reader reads an open file. A read that comes short fails, and so does Close if the
// file was changed meanwhile; both name it.
type Reader interface {
	io.ReaderAt
	io.Closer
}

func (f *File) kind() uint32 { return f.Mode & kindMask }

// castagnoli is CRC-32C without the inversions, as ext4 has it.
func castagnoli(crc uint32, p []byte) uint32 {
	return ^crc32.Update(^crc, crc32.MakeTable(crc32.Castagnoli), p)
}

func blocksOf(size int64) int64 { return (size + Block - 1) / Block }
