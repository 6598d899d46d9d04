package guestfs

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"

	"github.com/google/uuid"
)

const (
	superAt   = 1024
	superSize = 1024
	extMagic  = 0xef53
)

// The features that change where things lie.
const (
	compatJournal  = 0x4
	compatSparse2  = 0x200
	roSparse       = 0x1
	inFiletype     = 0x2
	inRecover      = 0x4
	inJournalDev   = 0x8
	inMetaBG       = 0x10
	inExtents      = 0x40
	in64Bit        = 0x80
	inMMP          = 0x100
	inFlexBG       = 0x200
	inEAInode      = 0x400
	inChecksumSeed = 0x2000
	inLargeDir     = 0x4000
	inInlineData   = 0x8000
	inEncrypt      = 0x10000
	inCasefold     = 0x20000

	inKnown = inFiletype | inRecover | inMetaBG | inExtents | in64Bit | inMMP | inFlexBG | inEAInode |
		inChecksumSeed | inLargeDir | inInlineData | inEncrypt | inCasefold
)

// ext is an ext2, ext3 or ext4 filesystem.
type ext struct {
	dev       *device
	blockSize int64
	blocks    uint64
	firstData uint64
	// Inodes and groups.
	inodes, inodesPerGroup, blocksPerGroup uint32
	inodeSize, descSize                    int64
	compat, incompat, roCompat             uint32
	firstMeta                              uint32
	backups                                [2]uint32
	journal                                uint32
	// replayed are the blocks as the journal has them.
	replayed map[uint64]logged
}

func isExt(head []byte) bool {
	return len(head) >= superAt+superSize && le16(head, superAt+0x38) == extMagic
}

func openExt(ctx context.Context, d *device) (*FS, error) {
	b, err := d.metadata(ctx, superAt, superSize)
	if err != nil {
		return nil, err
	}
	e, err := newExt(d, b)
	if err != nil {
		return nil, err
	}
	if e.incompat&inRecover != 0 {
		if e, b, err = e.recover(ctx); err != nil {
			return nil, err
		}
	}
	f := &FS{kind: "ext2", label: text(b[0x78:0x88]), root: func(ctx context.Context) (node, error) { return e.inode(ctx, rootInode) }}
	if id, err := uuid.FromBytes(b[0x68:0x78]); err == nil && id != uuid.Nil {
		f.uuid = id.String()
	}
	switch {
	case e.incompat&(inExtents|in64Bit|inFlexBG|inInlineData) != 0:
		f.kind = "ext4"
	case e.compat&compatJournal != 0:
		f.kind = "ext3"
	}
	root, err := f.root(ctx)
	if err != nil {
		return nil, fmt.Errorf("the root directory of the %s: %w", f.kind, err)
	}
	if root.kind() != directory {
		return nil, fmt.Errorf("%w: the root of the %s is no directory", ErrDamaged, f.kind)
	}
	return f, nil
}

// newExt takes a filesystem's shape from its superblock.
func newExt(d *device, b []byte) (*ext, error) {
	if le16(b, 0x38) != extMagic {
		return nil, fmt.Errorf("%w: no ext superblock", ErrDamaged)
	}
	logSize := le32(b, 0x18)
	if logSize > 6 {
		return nil, fmt.Errorf("%w: ext blocks of 1024<<%d bytes", ErrDamaged, logSize)
	}
	e := &ext{
		dev: d, blockSize: 1024 << logSize, blocks: uint64(le32(b, 0x4)), firstData: uint64(le32(b, 0x14)),
		inodes: le32(b, 0), blocksPerGroup: le32(b, 0x20), inodesPerGroup: le32(b, 0x28), inodeSize: 128, descSize: 32,
		firstMeta: le32(b, 0x104), backups: [2]uint32{le32(b, 0x24c), le32(b, 0x250)}, journal: le32(b, 0xe0),
	}
	if le32(b, 0x4c) > 0 { // of revision 0, all this is fixed
		e.inodeSize = int64(le16(b, 0x58))
		e.compat, e.incompat, e.roCompat = le32(b, 0x5c), le32(b, 0x60), le32(b, 0x64)
	}
	if e.incompat&inJournalDev != 0 {
		return nil, fmt.Errorf("%w: the journal of another ext device", ErrUnsupported)
	}
	if strange := e.incompat &^ inKnown; strange != 0 {
		return nil, fmt.Errorf("%w: ext4 with the incompatible features %#x", ErrUnsupported, strange)
	}
	if e.incompat&in64Bit != 0 {
		e.blocks |= uint64(le32(b, 0x150)) << 32
		e.descSize = int64(le16(b, 0xfe))
	}
	return e, e.check()
}

func (e *ext) check() error {
	var faults []error
	fault := func(format string, args ...any) {
		faults = append(faults, fmt.Errorf("%w: ext superblock: "+format, append([]any{ErrDamaged}, args...)...))
	}
	powerOfTwo := func(n int64) bool { return n > 0 && bits.OnesCount64(uint64(n)) == 1 }
	if e.blocks == 0 || e.blocks > 1<<48 || e.firstData > 1 {
		fault("%d blocks from %d on", e.blocks, e.firstData)
	}
	if e.inodesPerGroup == 0 || e.blocksPerGroup == 0 || e.inodes < rootInode {
		fault("%d inodes, %d and %d blocks in a group", e.inodes, e.inodesPerGroup, e.blocksPerGroup)
	}
	if !powerOfTwo(e.inodeSize) || e.inodeSize < 128 || e.inodeSize > e.blockSize {
		fault("inodes of %d bytes", e.inodeSize)
	}
	if !powerOfTwo(e.descSize) || e.descSize < 32 || e.descSize > 1024 || e.incompat&in64Bit != 0 && e.descSize < 64 {
		fault("group descriptors of %d bytes", e.descSize)
	}
	return errors.Join(faults...)
}

// block is the block n as it is after a replay of the journal.
func (e *ext) block(ctx context.Context, n uint64) ([]byte, error) {
	if n >= e.blocks {
		return nil, fmt.Errorf("%w: block %d of %d", ErrDamaged, n, e.blocks)
	}
	l, ok := e.replayed[n]
	if !ok {
		return e.dev.metadata(ctx, int64(n)*e.blockSize, int(e.blockSize))
	}
	b, err := e.dev.metadata(ctx, int64(l.at)*e.blockSize, int(e.blockSize))
	if err != nil || !l.escaped {
		return b, err
	}
	whole := append([]byte{}, b...)
	binary.BigEndian.PutUint32(whole, journalMagic)
	return whole, nil
}

// blocksAt fills p, of whole blocks or the beginning of the last, from skip bytes
// into block n on.
func (e *ext) blocksAt(ctx context.Context, p []byte, n uint64, skip int64) error {
	if len(e.replayed) == 0 {
		return e.dev.read(ctx, p, int64(n)*e.blockSize+skip)
	}
	for len(p) > 0 {
		part := p[:min(int64(len(p)), e.blockSize-skip)]
		if _, ok := e.replayed[n]; ok {
			b, err := e.block(ctx, n)
			if err != nil {
				return err
			}
			copy(part, b[skip:])
		} else if err := e.dev.read(ctx, part, int64(n)*e.blockSize+skip); err != nil {
			return err
		}
		p, n, skip = p[len(part):], n+1, 0
	}
	return nil
}

// descriptor is the group descriptor g.
func (e *ext) descriptor(ctx context.Context, g uint32) ([]byte, error) {
	each := uint32(e.blockSize / e.descSize)
	i := uint64(g / each)
	first := e.firstData
	if first == 0 && e.blockSize == superAt {
		first = 1 // the boot block has a block of its own, with clusters too
	}
	at := first + 1 + i
	if e.incompat&inMetaBG != 0 && i >= uint64(e.firstMeta) {
		group := i * uint64(each)
		at = e.firstData + group*uint64(e.blocksPerGroup)
		if e.hasSuper(group) {
			at++
		}
	}
	b, err := e.block(ctx, at)
	if err != nil {
		return nil, fmt.Errorf("descriptor of group %d: %w", g, err)
	}
	return b[int64(g%each)*e.descSize:][:e.descSize], nil
}

// hasSuper says whether a group begins with a copy of the superblock.
func (e *ext) hasSuper(group uint64) bool {
	switch {
	case group == 0:
		return true
	case e.compat&compatSparse2 != 0:
		return group == uint64(e.backups[0]) || group == uint64(e.backups[1])
	case e.roCompat&roSparse == 0 || group == 1:
		return true
	}
	for _, base := range []uint64{3, 5, 7} {
		n := base
		for n < group {
			n *= base
		}
		if n == group {
			return true
		}
	}
	return false
}
