package qcow2

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"maps"
	"slices"

	"github.com/kamivm/kami/pkg/digest"
)

// Blocks are the SHA-256 of every 512 KiB block that a guest sees, EBS direct's
// block checksums. Blocks of zeros are not held, so a large empty disk costs
// nothing. The last block is taken as filled up with zeros.
type Blocks struct {
	n     int64
	pages map[int64]*page
}

const pageBlocks = 128

type page [pageBlocks][sha256.Size]byte // all zero is a block of zeros

var blocksMagic = [8]byte{'k', 'a', 'm', 'i', 'b', 'l', 'k', '1'}

func zeroSum() [sha256.Size]byte { return sha256.Sum256(make([]byte, BlockSize)) }

// NewBlocks returns the blocks of an empty disk of size bytes.
func NewBlocks(size int64) *Blocks {
	return &Blocks{n: (size + BlockSize - 1) / BlockSize, pages: map[int64]*page{}}
}

// resized returns a copy for a disk of another size.
func (b *Blocks) resized(size int64) *Blocks {
	c := NewBlocks(size)
	for at, p := range b.pages {
		if at*pageBlocks < c.n {
			dup := *p
			c.pages[at] = &dup
		}
	}
	return c
}

// Len is how many blocks the disk has.
func (b *Blocks) Len() int64 { return b.n }

// Zero says whether block i is all zeros.
func (b *Blocks) Zero(i int64) bool { return b.raw(i) == [sha256.Size]byte{} }

// Get returns the digest of block i; beyond the end, that of zeros.
func (b *Blocks) Get(i int64) [sha256.Size]byte {
	if s := b.raw(i); s != [sha256.Size]byte{} {
		return s
	}
	return zeroSum()
}

// raw is the digest of block i as held: all zero for a block of zeros.
func (b *Blocks) raw(i int64) [sha256.Size]byte {
	if p := b.pages[i/pageBlocks]; p != nil && i < b.n {
		return p[i%pageBlocks]
	}
	return [sha256.Size]byte{}
}

// Held calls fn with the index and digest of each block that is not all zeros,
// in order, until fn says no.
func (b *Blocks) Held(fn func(i int64, sum [sha256.Size]byte) bool) {
	for _, at := range slices.Sorted(maps.Keys(b.pages)) {
		for j, sum := range b.pages[at] {
			if i := at*pageBlocks + int64(j); sum != [sha256.Size]byte{} && i < b.n && !fn(i, sum) {
				return
			}
		}
	}
}

// Changed returns the indexes, in order, of the blocks in which b and other
// differ. Beyond its end a disk is zeros.
func (b *Blocks) Changed(other *Blocks) []int64 {
	at := map[int64]bool{}
	for i := range b.pages {
		at[i] = true
	}
	for i := range other.pages {
		at[i] = true
	}
	var out []int64
	for _, p := range slices.Sorted(maps.Keys(at)) {
		for i := p * pageBlocks; i < (p+1)*pageBlocks; i++ {
			if b.raw(i) != other.raw(i) {
				out = append(out, i)
			}
		}
	}
	return out
}

func (b *Blocks) set(i int64, sum [sha256.Size]byte) {
	p := b.pages[i/pageBlocks]
	if p == nil {
		if sum == [sha256.Size]byte{} {
			return
		}
		p = &page{}
		b.pages[i/pageBlocks] = p
	}
	p[i%pageBlocks] = sum
}

// Content is the content digest: the SHA-256 over the blocks' SHA-256s in order.
func (b *Blocks) Content() digest.Digest {
	h := sha256.New()
	zero := zeroSum()
	empty := bytes.Repeat(zero[:], pageBlocks)
	for at := int64(0); at*pageBlocks < b.n; at++ {
		n := min(pageBlocks, b.n-at*pageBlocks)
		p := b.pages[at]
		if p == nil {
			h.Write(empty[:n*sha256.Size])
			continue
		}
		for i := range n {
			if p[i] == [sha256.Size]byte{} {
				h.Write(zero[:])
			} else {
				h.Write(p[i][:])
			}
		}
	}
	return digest.FromSum([sha256.Size]byte(h.Sum(nil)))
}

// MarshalBinary writes the digests in version 1 of kami's own form: a magic
// number, the number of blocks, pages of 128 digests behind their index, and
// the SHA-256 of all that.
func (b *Blocks) MarshalBinary() ([]byte, error) {
	out := binary.BigEndian.AppendUint64(slices.Clone(blocksMagic[:]), uint64(b.n))
	for _, at := range slices.Sorted(maps.Keys(b.pages)) {
		if *b.pages[at] == (page{}) {
			continue
		}
		out = binary.BigEndian.AppendUint64(out, uint64(at))
		for _, sum := range b.pages[at] {
			out = append(out, sum[:]...)
		}
	}
	sum := sha256.Sum256(out)
	return append(out, sum[:]...), nil
}

// UnmarshalBinary reads what MarshalBinary wrote. It returns ErrCorrupt.
func (b *Blocks) UnmarshalBinary(data []byte) error {
	const entry = 8 + pageBlocks*sha256.Size
	body := len(data) - sha256.Size
	if body < 16 || (body-16)%entry != 0 || !bytes.Equal(data[:8], blocksMagic[:]) {
		return corrupt("a list of blocks of %d bytes", len(data))
	}
	if sum := sha256.Sum256(data[:body]); !bytes.Equal(sum[:], data[body:]) {
		return corrupt("a list of blocks does not have its digest")
	}
	n := binary.BigEndian.Uint64(data[8:])
	if n > maxVirtualBytes/BlockSize {
		return corrupt("a list of %d blocks", n)
	}
	*b = Blocks{n: int64(n), pages: map[int64]*page{}}
	for rest := data[16:body]; len(rest) > 0; rest = rest[entry:] {
		at := binary.BigEndian.Uint64(rest)
		if at > n/pageBlocks || at*pageBlocks >= n {
			return corrupt("a page of blocks beyond the end")
		}
		p := &page{}
		for i := range p {
			p[i] = [sha256.Size]byte(rest[8+i*sha256.Size:])
		}
		b.pages[int64(at)] = p
	}
	return nil
}
