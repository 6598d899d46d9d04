package bundle

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
)

// ext is an ext2, ext3 or ext4 that comes from a guest, for finding files by name
// and where they lie. No number in it is believed before it was held against the
// device and against a limit.
type ext struct {
	r         io.ReaderAt
	size      int64 // bytes
	block     int64 // bytes
	first     int64 // the first block with data: 1 where blocks are of 1 KiB
	blocks    int64
	perGroup  int64 // blocks
	inodesPer int64
	inodeSize int64
	reserved  int64 // blocks of the group descriptors that are kept for later
	sparse    bool  // copies of the superblock in few groups
	metaBG    bool
	typed     bool // names in folders say what they are of
	groups    []extGroup
}

type extGroup struct {
	blockBitmap, inodeBitmap, table int64 // blocks
	uninit                          bool  // its block bitmap was never written
}

var (
	errExt    = errors.New("the filesystem cannot be read")
	errNotExt = errors.New("it is no ext2, ext3 or ext4")
)

// What may be in a filesystem from which files are taken out, beside what every
// one has.
const (
	superAt       = 1024
	superSize     = 1024
	superMagic    = 0xef53
	rootInode     = 2
	incompat64    = 0x80
	extJournalDev = 0x8 // it is a journal itself
	extMetaBG     = 0x10
	extKnown      = 0x2 | 0x4 | 0x10 | 0x40 | 0x80 | 0x200 | 0x400 | 0x2000 | 0x4000
	extSparse     = 0x1
	maxGroups     = 1 << 20
	maxEntries    = 8 << 20 // of all directories
	maxDepth      = 128
)

// openExt reads the superblock and the group descriptors.
func openExt(r io.ReaderAt, size int64) (*ext, error) {
	bad := func(format string, args ...any) (*ext, error) {
		return nil, fmt.Errorf("%w: %w", errExt, fmt.Errorf(format, args...))
	}
	sb := make([]byte, superSize)
	if size < superAt+superSize {
		return nil, errNotExt
	}
	if _, err := r.ReadAt(sb, superAt); err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	if le.Uint16(sb[0x38:]) != superMagic {
		return nil, errNotExt
	}
	incompat, ro := le.Uint32(sb[0x60:]), le.Uint32(sb[0x64:])
	if unknown := incompat &^ extKnown; unknown != 0 {
		return bad("it has the features %#x", unknown)
	}
	if incompat&extJournalDev != 0 || le.Uint32(sb[0xe4:]) != 0 || le.Uint32(sb[0x5c:])&4 != 0 && le.Uint32(sb[0xe0:]) == 0 {
		return bad("its journal is on another device")
	}
	logBlock := le.Uint32(sb[0x18:])
	x := &ext{
		r: r, size: size, first: int64(le.Uint32(sb[0x14:])), blocks: int64(le.Uint32(sb[0x4:])),
		perGroup: int64(le.Uint32(sb[0x20:])), inodesPer: int64(le.Uint32(sb[0x28:])), inodeSize: 128,
		reserved: int64(le.Uint16(sb[0xce:])), sparse: ro&extSparse != 0, metaBG: incompat&extMetaBG != 0, typed: incompat&2 != 0,
	}
	if logBlock > 6 {
		return bad("blocks of 2^%d KiB", logBlock)
	}
	x.block = 1024 << logBlock
	if le.Uint32(sb[0x4c:]) > 0 {
		x.inodeSize = int64(le.Uint16(sb[0x58:]))
	}
	desc := int64(32)
	if incompat&incompat64 != 0 {
		x.blocks |= int64(le.Uint32(sb[0x150:])) << 32
		desc = int64(le.Uint16(sb[0xfe:]))
	}
	switch {
	case x.blocks < 1 || x.blocks > size/x.block || x.first > 1:
		return bad("it has %d blocks of %d bytes on a device of %d", x.blocks, x.block, size)
	case x.perGroup < 8 || x.perGroup > 8*x.block || x.inodesPer < 1 || x.inodesPer > 8*x.block:
		return bad("groups of %d blocks and %d inodes", x.perGroup, x.inodesPer)
	case x.inodeSize < 128 || x.inodeSize > x.block || x.inodeSize&(x.inodeSize-1) != 0 || desc < 32 || desc > 1024 || desc&(desc-1) != 0:
		return bad("inodes of %d bytes, descriptors of %d", x.inodeSize, desc)
	}
	n := (x.blocks - x.first + x.perGroup - 1) / x.perGroup
	if n > maxGroups {
		return bad("%d groups", n)
	}
	if x.metaBG {
		return bad("its group descriptors are spread (meta_bg)")
	}
	table := make([]byte, n*desc)
	if err := x.read(table, (x.first+1)*x.block); err != nil {
		return nil, err
	}
	for g := range n {
		d := table[g*desc:]
		at := func(low, high int) int64 {
			b := int64(le.Uint32(d[low:]))
			if desc >= 64 {
				b |= int64(le.Uint32(d[high:])) << 32
			}
			return b
		}
		x.groups = append(x.groups, extGroup{at(0, 0x20), at(4, 0x24), at(8, 0x28), desc >= 32 && ro&0x410 != 0 && le.Uint16(d[0x12:])&2 != 0})
	}
	return x, nil
}

// read fills p from off on.
func (x *ext) read(p []byte, off int64) error {
	if off < 0 || off > x.size || int64(len(p)) > x.size-off {
		return fmt.Errorf("%w: it points at byte %d, behind the end of its %d", errExt, off, x.size)
	}
	_, err := x.r.ReadAt(p, off)
	return err
}

func (x *ext) readBlock(n int64) ([]byte, error) {
	b := make([]byte, x.block)
	if n <= 0 || n >= x.blocks {
		return nil, fmt.Errorf("%w: it points at block %d of %d", errExt, n, x.blocks)
	}
	return b, x.read(b, n*x.block)
}

// inode reads inode n.
func (x *ext) inode(n uint32) ([]byte, error) {
	g := int64(n-1) / x.inodesPer
	if n == 0 || g >= int64(len(x.groups)) {
		return nil, fmt.Errorf("%w: the inode %d", errExt, n)
	}
	raw := make([]byte, x.inodeSize)
	return raw, x.read(raw, x.groups[g].table*x.block+int64(n-1)%x.inodesPer*x.inodeSize)
}

func inodeMode(raw []byte) uint16  { return binary.LittleEndian.Uint16(raw) & 0xf000 }
func inodeLinks(raw []byte) int    { return int(binary.LittleEndian.Uint16(raw[0x1a:])) }
func inodeFlags(raw []byte) uint32 { return binary.LittleEndian.Uint32(raw[0x20:]) }
func inodeBytes(raw []byte) int64 {
	return int64(uint64(binary.LittleEndian.Uint32(raw[4:])) | uint64(binary.LittleEndian.Uint32(raw[0x6c:]))<<32)
}

const (
	extDir     = 0x4000
	extRegular = 0x8000
	flagExtent = 0x80000
	flagInline = 0x10000000
)

// runs calls fn with the blocks of a file's content, in order: count from physical
// on, at the file's block logical.
func (x *ext) runs(raw []byte, fn func(logical, physical, count int64) error) error {
	if m := inodeMode(raw); m != extDir && m != extRegular || inodeFlags(raw)&flagInline != 0 {
		return nil
	}
	budget := x.blocks // of blocks to look at: no file has more
	if inodeFlags(raw)&flagExtent != 0 {
		return x.tree(raw[0x28:0x64], 5, &budget, fn)
	}
	le := binary.LittleEndian
	at := int64(0)
	for i := range 15 {
		n, depth := int64(le.Uint32(raw[0x28+4*i:])), max(0, i-11)
		if err := x.indirect(n, depth, &at, &budget, fn); err != nil {
			return err
		}
	}
	return nil
}

func (x *ext) spend(budget *int64, n int64) error {
	if *budget -= n; *budget < 0 {
		return fmt.Errorf("%w: a file has more blocks than the filesystem", errExt)
	}
	return nil
}

func (x *ext) tree(node []byte, depth int, budget *int64, fn func(logical, physical, count int64) error) error {
	le := binary.LittleEndian
	entries := int(le.Uint16(node[2:]))
	if le.Uint16(node) != 0xf30a || entries > (len(node)-12)/12 || int(le.Uint16(node[6:])) > depth {
		return fmt.Errorf("%w: the extents of a file", errExt)
	}
	leaf := le.Uint16(node[6:]) == 0
	for i := range entries {
		e := node[12+12*i:]
		logical := int64(le.Uint32(e))
		if !leaf {
			child := int64(le.Uint32(e[4:])) | int64(le.Uint16(e[8:]))<<32
			b, err := x.readBlock(child)
			if err != nil {
				return err
			}
			if err := x.spend(budget, 1); err != nil {
				return err
			}
			if err := x.tree(b, int(le.Uint16(node[6:]))-1, budget, fn); err != nil {
				return err
			}
			continue
		}
		count := int64(le.Uint16(e[4:]))
		if count > 1<<15 { // allocated and not written
			count -= 1 << 15
		}
		start := int64(le.Uint32(e[8:])) | int64(le.Uint16(e[6:]))<<32
		if count == 0 || start <= 0 || start > x.blocks-count {
			return fmt.Errorf("%w: an extent of %d blocks from %d on", errExt, count, start)
		}
		if err := errors.Join(x.spend(budget, count), fn(logical, start, count)); err != nil {
			return err
		}
	}
	return nil
}

func (x *ext) indirect(n int64, depth int, at, budget *int64, fn func(logical, physical, count int64) error) error {
	span := int64(1)
	for range depth {
		span *= x.block / 4
	}
	if n == 0 {
		*at += span
		return nil
	}
	if err := x.spend(budget, 1); err != nil {
		return err
	}
	if depth == 0 {
		if n >= x.blocks {
			return fmt.Errorf("%w: it points at block %d of %d", errExt, n, x.blocks)
		}
		*at++
		return fn(*at-1, n, 1)
	}
	b, err := x.readBlock(n)
	if err != nil {
		return err
	}
	for i := int64(0); i < x.block/4; i++ {
		if err := x.indirect(int64(binary.LittleEndian.Uint32(b[4*i:])), depth-1, at, budget, fn); err != nil {
			return err
		}
	}
	return nil
}

// found is a name in the tree.
type found struct {
	path  string // clean, from the root
	inode uint32
	kind  uint16 // extDir, extRegular or another
	raw   []byte // its inode; nil where nobody has needed it
}

// load reads the inode of what was found.
func (x *ext) load(f *found) (err error) {
	if f.raw == nil {
		if f.raw, err = x.inode(f.inode); err == nil {
			f.kind = inodeMode(f.raw)
		}
	}
	return err
}

// walk calls fn with every name in the tree, folders before what is in them. Where
// fn returns true for a folder, what is in it is told to all instead.
func (x *ext) walk(ctx context.Context, fn func(*found) (bool, error), all func(*found) error) error {
	w := extWalk{x: x, seen: map[uint32]bool{}, left: maxEntries}
	root, err := x.inode(rootInode)
	if err != nil {
		return err
	}
	return w.dir(ctx, found{".", rootInode, extDir, root}, 0, fn, all)
}

type extWalk struct {
	x    *ext
	seen map[uint32]bool // folders: each is in one place
	left int
}

func (w *extWalk) dir(ctx context.Context, d found, depth int, fn func(*found) (bool, error), all func(*found) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if w.seen[d.inode] || depth > maxDepth {
		return fmt.Errorf("%w: the folder /%.100s is in itself, or too deep", errExt, d.path)
	}
	w.seen[d.inode] = true
	if inodeFlags(d.raw)&flagInline != 0 {
		return fmt.Errorf("%w: the folder /%.100s lies in its inode", errExt, d.path)
	}
	size := inodeBytes(d.raw)
	return w.x.runs(d.raw, func(logical, physical, count int64) error {
		for i := range count {
			if (logical+i)*w.x.block >= size || logical > math.MaxInt32 {
				return nil
			}
			b, err := w.x.readBlock(physical + i)
			if err != nil {
				return err
			}
			if err := w.entries(ctx, d, b, depth, fn, all); err != nil {
				return err
			}
		}
		return nil
	})
}

// entries reads one block of a folder.
func (w *extWalk) entries(ctx context.Context, d found, b []byte, depth int, fn func(*found) (bool, error), all func(*found) error) error {
	le := binary.LittleEndian
	for at := 0; at+8 <= len(b); {
		ino, rec, n := le.Uint32(b[at:]), int(le.Uint16(b[at+4:])), int(b[at+6])
		if rec == 0 || rec == 0xffff { // of blocks of 64 KiB
			rec = 1 << 16
		}
		if rec < 8 || at+rec > len(b) || 8+n > rec {
			return fmt.Errorf("%w: the folder /%.100s", errExt, d.path)
		}
		name, kind := string(b[at+8:at+8+n]), b[at+7]
		at += rec
		if ino == 0 || n == 0 || name == "." || name == ".." {
			continue
		}
		if w.left--; w.left < 0 {
			return fmt.Errorf("%w: it has more than %d files", errExt, maxEntries)
		}
		f := &found{path: name, inode: ino}
		if d.path != "." {
			f.path = d.path + "/" + name
		}
		var err error
		switch {
		case w.x.typed && kind == 1:
			f.kind = extRegular
		case !w.x.typed || kind < 1 || kind == 2 || kind > 7:
			err = w.x.load(f)
		}
		below := fn
		if err == nil && fn == nil {
			err = all(f)
		} else if err == nil {
			var whole bool
			if whole, err = fn(f); whole {
				below = nil
			}
		}
		if err == nil && f.kind == extDir {
			err = w.dir(ctx, *f, depth+1, below, all)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
