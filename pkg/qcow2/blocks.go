package qcow2

import (
	"bytes"
	"crypto/sha256"
	"maps"
	"slices"

	"github.com/kamivm/kami/pkg/digest"
)

// Blocks are the SHA-256 of every 512 KiB block that a guest sees, EBS direct's
// block checksums. Blocks of zeros are not held, so a large empty disk costs
// nothing. The last block is taken as filled up with zeros.
type Blocks struct {
	n     int64
	pages map[int64]*page // never written to, so that copies share them
}

const pageBlocks = 8 // 4 MiB: data that is thinly spread costs not much more

type page [pageBlocks][sha256.Size]byte // all zero is a block of zeros

// zeroSum is the digest of a block of zeros. It is asked for block by block.
func zeroSum() [sha256.Size]byte {
	return [sha256.Size]byte{
		0x07, 0x85, 0x4d, 0x2f, 0xef, 0x29, 0x7a, 0x06, 0xba, 0x81, 0x68, 0x5e, 0x66, 0x0c, 0x33, 0x2d,
		0xe3, 0x6d, 0x5d, 0x18, 0xd5, 0x46, 0x92, 0x7d, 0x30, 0xda, 0xad, 0x6d, 0x7f, 0xda, 0x15, 0x41,
	}
}

// NewBlocks returns the blocks of an empty disk of size bytes.
func NewBlocks(size int64) *Blocks {
	return &Blocks{n: (size + BlockSize - 1) / BlockSize, pages: map[int64]*page{}}
}

// resized returns a copy for a disk of another size.
func (b *Blocks) resized(size int64) *Blocks {
	c := NewBlocks(size)
	for at, p := range b.pages {
		if at*pageBlocks < c.n {
			c.pages[at] = p
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
	if b.raw(i) == sum {
		return
	}
	p := page{}
	if old := b.pages[i/pageBlocks]; old != nil {
		p = *old
	}
	p[i%pageBlocks] = sum
	b.put(i/pageBlocks, p)
}

// put holds a page, unless it is all zeros.
func (b *Blocks) put(at int64, p page) {
	if p == (page{}) {
		delete(b.pages, at)
		return
	}
	held := p // on the heap only here
	b.pages[at] = &held
}

// Content is the content digest: the SHA-256 over the blocks' SHA-256s in order.
func (b *Blocks) Content() digest.Digest {
	h := sha256.New()
	zero := zeroSum()
	empty := bytes.Repeat(zero[:], pageBlocks)
	var full [pageBlocks * sha256.Size]byte
	for at := int64(0); at*pageBlocks < b.n; at++ {
		n := min(pageBlocks, b.n-at*pageBlocks)
		p := b.pages[at]
		if p == nil {
			h.Write(empty[:n*sha256.Size])
			continue
		}
		for i := range n {
			sum := p[i]
			if sum == [sha256.Size]byte{} {
				sum = zero
			}
			copy(full[i*sha256.Size:], sum[:])
		}
		h.Write(full[:n*sha256.Size])
	}
	return digest.FromSum([sha256.Size]byte(h.Sum(nil)))
}
