package guestfs

import (
	"context"
	"fmt"
)

const (
	extentMagic    = 0xf30a
	maxExtentDepth = 5
	// maxRun bounds a run that has no end of its own, in blocks.
	maxRun = 1 << 15
)

// run says where the file's blocks from logical on lie: count blocks from at on,
// or, at being 0, as many that are read as zeros.
func (n *inode) run(ctx context.Context, logical uint64) (at, count uint64, err error) {
	if n.flags&flagExtents != 0 {
		at, count, err = n.extent(ctx, logical)
	} else {
		at, count, err = n.indirect(ctx, logical)
	}
	if err == nil && (at >= n.fs.blocks || count > n.fs.blocks-at && at != 0) {
		err = fmt.Errorf("%w: %d blocks at %d of %d", ErrDamaged, count, at, n.fs.blocks)
	}
	return at, count, err
}

// extent walks the extent tree down. What no extent has is a hole, and one that
// was set aside and never written reads as zeros.
func (n *inode) extent(ctx context.Context, logical uint64) (at, count uint64, err error) {
	b := n.block[:]
	limit := logical + maxRun // where the next extent begins that is known so far
	want := -1
	for range maxExtentDepth + 1 {
		entries, depth := int(le16(b, 2)), int(le16(b, 6))
		if le16(b, 0) != extentMagic || entries > (len(b)-12)/12 || depth > maxExtentDepth || want >= 0 && depth != want {
			return 0, 0, fmt.Errorf("%w: no node of an extent tree", ErrDamaged)
		}
		var found []byte
		for i := range entries {
			e := b[12+12*i:][:12]
			if first := uint64(le32(e, 0)); first > logical {
				limit = min(limit, first)
				break
			}
			found = e
		}
		if found == nil {
			return 0, limit - logical, nil
		}
		if depth == 0 {
			return leaf(found, logical, limit)
		}
		next := uint64(le32(found, 4)) | uint64(le16(found, 8))<<32
		if b, err = n.fs.block(ctx, next); err != nil {
			return 0, 0, err
		}
		want = depth - 1
	}
	return 0, 0, fmt.Errorf("%w: an extent tree without an end", ErrDamaged)
}

func leaf(e []byte, logical, limit uint64) (at, count uint64, err error) {
	const initialised = 1 << 15 // longer than that: not written yet
	first, length := uint64(le32(e, 0)), uint64(le16(e, 4))
	at = uint64(le32(e, 8)) | uint64(le16(e, 6))<<32
	written := true
	if length > initialised {
		length, written = length-initialised, false
	}
	into := logical - first
	switch {
	case length == 0 || at == 0:
		return 0, 0, fmt.Errorf("%w: an empty extent", ErrDamaged)
	case into >= length:
		return 0, limit - logical, nil
	}
	count = min(length-into, limit-logical)
	if !written {
		return 0, count, nil
	}
	return at + into, count, nil
}

// indirect walks the classic map: twelve blocks, then a block of numbers, of
// blocks of numbers, and once more. A 0 on the way is a hole of all beneath.
func (n *inode) indirect(ctx context.Context, logical uint64) (at, count uint64, err error) {
	each := uint64(n.fs.blockSize / 4)
	const direct = 12
	if logical < direct {
		at, count = numbers(n.block[:4*direct], logical)
		return at, count, nil
	}
	rest, span := logical-direct, each
	for level := range 3 {
		if rest >= span {
			rest, span = rest-span, span*each
			continue
		}
		at := uint64(le32(n.block[:], 4*(direct+level)))
		for {
			if at == 0 {
				return 0, min(span-rest, maxRun), nil
			}
			b, err := n.fs.block(ctx, at)
			if err != nil {
				return 0, 0, err
			}
			if span == each {
				at, count = numbers(b, rest)
				return at, count, nil
			}
			span /= each
			at, rest = uint64(le32(b, int(4*(rest/span)))), rest%span
		}
	}
	return 0, 0, fmt.Errorf("%w: longer than blocks can be numbered", ErrDamaged)
}

// numbers counts how many of the block numbers from i on follow each other, or
// are all 0.
func numbers(b []byte, i uint64) (at, count uint64) {
	first := uint64(le32(b, int(4*i)))
	for count = 1; (i+count)*4 < uint64(len(b)); count++ {
		next := uint64(le32(b, int(4*(i+count))))
		if first == 0 && next != 0 || first != 0 && next != first+count {
			break
		}
	}
	return first, count
}
