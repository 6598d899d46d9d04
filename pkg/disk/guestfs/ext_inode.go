package guestfs

import (
	"context"
	"fmt"
)

const (
	rootInode = 2

	flagEncrypt  = 0x800
	flagExtents  = 0x80000
	flagInline   = 0x10000000
	flagCasefold = 0x40000000
)

// inode is a node of an ext filesystem.
type inode struct {
	fs    *ext
	num   uint32
	mode  uint16
	flags uint32
	bytes int64
	block [60]byte
	raw   []byte // all of it, for the attributes that inline data lie in
}

func (e *ext) inode(ctx context.Context, num uint32) (*inode, error) {
	if num == 0 || num > e.inodes {
		return nil, fmt.Errorf("%w: inode %d of %d", ErrDamaged, num, e.inodes)
	}
	d, err := e.descriptor(ctx, (num-1)/e.inodesPerGroup)
	if err != nil {
		return nil, err
	}
	table := uint64(le32(d, 0x8))
	if e.descSize >= 64 {
		table |= uint64(le32(d, 0x28)) << 32
	}
	off := int64((num-1)%e.inodesPerGroup) * e.inodeSize
	b, err := e.block(ctx, table+uint64(off/e.blockSize))
	if err != nil {
		return nil, fmt.Errorf("inode %d: %w", num, err)
	}
	b = b[off%e.blockSize:][:e.inodeSize]
	n := &inode{
		fs: e, num: num, mode: le16(b, 0), flags: le32(b, 0x20), bytes: int64(le32(b, 0x4)),
		block: [60]byte(b[0x28:0x64]), raw: append([]byte{}, b...),
	}
	if k := n.kind(); k == regular || k == directory && e.incompat&inLargeDir != 0 {
		if high := le32(b, 0x6c); high < 1<<31 {
			n.bytes |= int64(high) << 32
		} else {
			return nil, fmt.Errorf("%w: inode %d is too long", ErrDamaged, num)
		}
	}
	return n, nil
}

func (n *inode) kind() kind {
	switch n.mode & 0xf000 {
	case 0x8000:
		return regular
	case 0x4000:
		return directory
	case 0xa000:
		return symlink
	}
	return other
}

func (n *inode) size() int64 { return n.bytes }

func (n *inode) readAt(ctx context.Context, p []byte, off int64) error {
	if n.flags&flagEncrypt != 0 {
		return fmt.Errorf("%w: the file is encrypted (inode %d)", ErrUnsupported, n.num)
	}
	if n.flags&flagInline != 0 {
		return n.readInline(p, off)
	}
	for len(p) > 0 {
		at, count, err := n.run(ctx, uint64(off/n.fs.blockSize))
		if err != nil {
			return fmt.Errorf("inode %d: %w", n.num, err)
		}
		skip := off % n.fs.blockSize
		have := min(int64(len(p)), int64(count)*n.fs.blockSize-skip)
		if at == 0 {
			clear(p[:have])
		} else if err := n.fs.blocksAt(ctx, p[:have], at, skip); err != nil {
			return fmt.Errorf("inode %d: %w", n.num, err)
		}
		p, off = p[have:], off+have
	}
	return nil
}

func (n *inode) target(ctx context.Context) (string, error) {
	if n.bytes == 0 || n.bytes > maxPath {
		return "", fmt.Errorf("%w: a symbolic link of %d characters (inode %d)", ErrDamaged, n.bytes, n.num)
	}
	if n.flags&flagEncrypt != 0 {
		return "", fmt.Errorf("%w: the symbolic link is encrypted (inode %d)", ErrUnsupported, n.num)
	}
	// A fast one has its target where others have their map.
	if n.bytes < int64(len(n.block)) && n.flags&(flagExtents|flagInline) == 0 {
		return text(n.block[:n.bytes]), nil
	}
	b := make([]byte, n.bytes)
	if err := n.readAt(ctx, b, 0); err != nil {
		return "", err
	}
	return text(b), nil
}
