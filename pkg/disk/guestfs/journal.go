package guestfs

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

const (
	journalMagic = 0xc03b3998
	// maxLogged bounds the blocks that a replay keeps in mind.
	maxLogged = 1 << 20

	jbdDescriptor = 1
	jbdCommit     = 2
	jbdSuper1     = 3
	jbdSuper2     = 4
	jbdRevoke     = 5

	jbd64Bit      = 0x2
	jbdChecksum2  = 0x8
	jbdChecksum3  = 0x10
	jbdFastCommit = 0x20
	jbdKnown      = 0x1 | jbd64Bit | 0x4 | jbdChecksum2 | jbdChecksum3 | jbdFastCommit

	tagEscaped  = 0x1
	tagSameUUID = 0x2
	tagLast     = 0x8
)

// logged is where in the journal a block lies, as a block of the filesystem.
// The first four bytes of an escaped one were the journal's magic number.
type logged struct {
	at      uint64
	escaped bool
}

// journal is the log of an ext filesystem: a ring of blocks in a file.
type journal struct {
	fs          *ext
	file        *inode
	first, last uint32 // the ring's blocks
	start       uint32 // where the log begins; 0 when it is empty
	sequence    uint32 // of its first transaction
	features    uint32
	seed        uint32 // of its checksums
}

// errLogEnds is no fault: what is in the journal from here on is of an earlier
// round, or was not written to its end.
var errLogEnds = errors.New("the log ends")

// recover returns the filesystem as it is after a replay of its journal, and its
// superblock. Nothing is written: the blocks are read out of the journal.
func (e *ext) recover(ctx context.Context) (*ext, []byte, error) {
	j, err := e.openJournal(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("the filesystem was not unmounted, and its journal: %w", err)
	}
	replayed := map[uint64]logged{}
	if j.start != 0 {
		revoked := map[uint64]uint32{}
		end, err := j.pass(ctx, scan{j: j, last: j.sequence - 1, revoked: revoked})
		if err != nil {
			return nil, nil, err
		}
		// In the second pass the whole list of revoked blocks is known.
		if _, err := j.pass(ctx, scan{j: j, last: end - 1, bounded: true, revoked: revoked, replay: replayed}); err != nil {
			return nil, nil, err
		}
	}
	after := *e
	after.replayed = replayed
	b, err := after.block(ctx, uint64(superAt/e.blockSize))
	if err != nil {
		return nil, nil, err
	}
	b = b[superAt%e.blockSize:][:superSize]
	out, err := newExt(e.dev, b)
	if err != nil {
		return nil, nil, fmt.Errorf("after the journal's replay: %w", err)
	}
	if out.blockSize != e.blockSize {
		return nil, nil, fmt.Errorf("%w: the journal changes the size of blocks", ErrDamaged)
	}
	out.replayed = replayed
	return out, b, nil
}

func (e *ext) openJournal(ctx context.Context) (*journal, error) {
	if e.compat&compatJournal == 0 || e.journal == 0 {
		return nil, fmt.Errorf("%w: it lies on another device", ErrUnsupported)
	}
	file, err := e.inode(ctx, e.journal)
	if err != nil {
		return nil, err
	}
	j := &journal{fs: e, file: file}
	b, _, err := j.block(ctx, 0)
	if err != nil {
		return nil, err
	}
	kind := be32(b, 4)
	j.last, j.first, j.sequence, j.start = be32(b, 0x10), be32(b, 0x14), be32(b, 0x18), be32(b, 0x1c)
	if be32(b, 0) != journalMagic || kind != jbdSuper1 && kind != jbdSuper2 || int64(be32(b, 0xc)) != e.blockSize {
		return nil, fmt.Errorf("%w: it has no superblock", ErrDamaged)
	}
	if kind == jbdSuper2 {
		j.features = be32(b, 0x28)
	}
	if strange := j.features &^ jbdKnown; strange != 0 {
		return nil, fmt.Errorf("%w: it has the incompatible features %#x", ErrUnsupported, strange)
	}
	if j.sums() {
		j.seed = crc32c(^uint32(0), b[0x30:0x40])
		if !j.sound(b[:superSize], ^uint32(0), 0xfc) {
			return nil, fmt.Errorf("%w: its superblock has a wrong checksum", ErrDamaged)
		}
	}
	if j.features&jbdFastCommit != 0 {
		fast := be32(b, 0x54)
		if fast == 0 {
			fast = 256
		}
		j.last -= min(fast, j.last) // they are not of the log
	}
	if int64(j.last) > file.bytes/e.blockSize || j.first == 0 || j.first >= j.last || j.start != 0 && (j.start < j.first || j.start >= j.last) {
		return nil, fmt.Errorf("%w: its blocks are %d to %d from %d on", ErrDamaged, j.first, j.last, j.start)
	}
	return j, nil
}

// block is the journal's block n, and which of the filesystem's that is.
func (j *journal) block(ctx context.Context, n uint32) ([]byte, uint64, error) {
	at, _, err := j.file.run(ctx, uint64(n))
	if err == nil && at == 0 {
		err = fmt.Errorf("%w: the journal has a hole", ErrDamaged)
	}
	if err != nil {
		return nil, 0, err
	}
	b, err := j.fs.block(ctx, at)
	return b, at, err
}

func (j *journal) sums() bool { return j.features&(jbdChecksum2|jbdChecksum3) != 0 }

// sound says whether b has its checksum, from seed on, big-endian at at.
func (j *journal) sound(b []byte, seed uint32, at int) bool {
	sum := crc32c(seed, b[:at])
	sum = crc32c(sum, []byte{0, 0, 0, 0})
	return crc32c(sum, b[at+4:]) == be32(b, at)
}

// crc32c is the checksum as Linux goes on with it: not inverted at either end.
func crc32c(sum uint32, b []byte) uint32 {
	return ^crc32.Update(^sum, crc32.MakeTable(crc32.Castagnoli), b)
}

// blockSum is a block's in its descriptor: of the transaction's number and it.
func (j *journal) blockSum(b []byte, sequence uint32) uint32 {
	var n [4]byte
	binary.BigEndian.PutUint32(n[:], sequence)
	return crc32c(crc32c(j.seed, n[:]), b)
}
