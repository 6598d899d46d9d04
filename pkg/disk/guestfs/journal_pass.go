package guestfs

import (
	"context"
	"errors"
	"fmt"
)

// scan is one walk along the log.
type scan struct {
	j       *journal
	last    uint32 // the transaction to end with, when bounded
	bounded bool
	revoked map[uint64]uint32 // block: the last transaction that revoked it
	replay  map[uint64]logged // nil when only looking where the log ends
}

// pass walks the log from its beginning to the last transaction that was
// committed, and returns the number behind that one's.
func (j *journal) pass(ctx context.Context, s scan) (end uint32, err error) {
	at, sequence := j.start, j.sequence
	pending := map[uint64]uint32{} // revoked by the transaction that is being read
	// The ring is walked once around at most.
	for left := int64(j.last - j.first); left > 0; {
		if s.bounded && int32(sequence-s.last) > 0 {
			return sequence, nil
		}
		b, _, err := j.block(ctx, at)
		if err != nil {
			return 0, err
		}
		if be32(b, 0) != journalMagic || be32(b, 8) != sequence {
			return sequence, nil
		}
		n := int64(1)
		switch be32(b, 4) {
		case jbdDescriptor:
			n, err = s.descriptor(ctx, b, at, sequence)
		case jbdRevoke:
			err = s.revoke(b, pending)
		case jbdCommit:
			if j.sums() && !j.sound(b, j.seed, 0x10) {
				return sequence, nil
			}
			for block := range pending {
				s.revoked[block] = sequence
			}
			clear(pending)
			sequence++
		default:
			return sequence, nil
		}
		if errors.Is(err, errLogEnds) {
			return sequence, nil
		}
		if err != nil {
			return 0, err
		}
		left -= n
		at = j.next(at, n)
	}
	return sequence, nil
}

// next is n blocks further along the ring.
func (j *journal) next(at uint32, n int64) uint32 {
	ring := int64(j.last - j.first)
	return j.first + uint32((int64(at-j.first)+n)%ring)
}

// descriptor reads the list of the blocks that follow it, and says how many
// blocks of the log both are.
func (s scan) descriptor(ctx context.Context, b []byte, at, sequence uint32) (int64, error) {
	j := s.j
	size, end := 8, len(b)
	switch {
	case j.features&jbdChecksum3 != 0:
		size = 16
	case j.features&jbdChecksum2 != 0 && j.features&jbd64Bit != 0:
		size = 14
	case j.features&jbdChecksum2 != 0:
		size = 10
	case j.features&jbd64Bit != 0:
		size = 12
	}
	if j.sums() {
		if end -= 4; !j.sound(b, j.seed, end) {
			return 0, errLogEnds
		}
	}
	n := int64(1)
	for tag := 12; tag+size <= end; n++ {
		t := b[tag : tag+size]
		block, flags := uint64(be32(t, 0)), be32(t, 4)&0xffff
		if j.features&jbd64Bit != 0 {
			block |= uint64(be32(t, 8)) << 32
		}
		if s.replay != nil {
			if err := s.keep(ctx, t, block, flags, j.next(at, n), sequence); err != nil {
				return 0, err
			}
		}
		tag += size
		if flags&tagSameUUID == 0 {
			tag += 16
		}
		if flags&tagLast != 0 {
			n++
			break
		}
	}
	return n, nil
}

// keep notes that block is, from now on, what lies at at in the journal.
func (s scan) keep(ctx context.Context, tag []byte, block uint64, flags, at, sequence uint32) error {
	if by, ok := s.revoked[block]; ok && int32(by-sequence) >= 0 {
		return nil // freed since then, and perhaps something else now
	}
	if block >= s.j.fs.blocks {
		return fmt.Errorf("%w: the journal has block %d of %d", ErrDamaged, block, s.j.fs.blocks)
	}
	b, where, err := s.j.block(ctx, at)
	if err != nil {
		return err
	}
	wrong := false
	switch sum := s.j.blockSum(b, sequence); {
	case s.j.features&jbdChecksum3 != 0:
		wrong = sum != be32(tag, 12)
	case s.j.features&jbdChecksum2 != 0:
		wrong = sum&0xffff != be32(tag, 4)>>16
	}
	if wrong {
		return fmt.Errorf("%w: block %d has a wrong checksum in the journal", ErrDamaged, block)
	}
	s.replay[block] = logged{at: where, escaped: flags&tagEscaped != 0}
	if len(s.replay) > maxLogged {
		return fmt.Errorf("%w: more than %d blocks in the journal", ErrTooLarge, maxLogged)
	}
	return nil
}

// revoke reads a list of blocks that must not be taken from earlier transactions.
func (s scan) revoke(b []byte, pending map[uint64]uint32) error {
	size, end := 4, len(b)
	if s.j.features&jbd64Bit != 0 {
		size = 8
	}
	if s.j.sums() {
		if end -= 4; !s.j.sound(b, s.j.seed, end) {
			return errLogEnds
		}
	}
	used := int(be32(b, 12))
	if used < 16 || used > end {
		return fmt.Errorf("%w: a list of %d bytes in the journal", ErrDamaged, used)
	}
	for at := 16; at+size <= used; at += size {
		block := uint64(be32(b, at))
		if size == 8 {
			block = block<<32 | uint64(be32(b, at+4))
		}
		pending[block] = 0
		if len(pending)+len(s.revoked) > maxLogged {
			return fmt.Errorf("%w: more than %d revoked blocks in the journal", ErrTooLarge, maxLogged)
		}
	}
	return nil
}
