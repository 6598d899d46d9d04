package qcow2

import (
	"cmp"
	"context"
	"errors"
	"io"
	"sort"
)

// Patches are blocks that take the place of what a disk has there.
type Patches interface {
	// Len is how many there are.
	Len() int
	// Block is the index on the disk of the nth, and whether it is all zeros.
	// Indexes rise with n, and none comes twice.
	Block(n int) (index int64, zero bool)
	// ReadBlock fills p, BlockSize bytes, with the nth. It is safe for
	// concurrent use.
	ReadBlock(p []byte, n int) error
}

// Patched is a disk with some blocks new and the rest as in its base.
type Patched struct {
	base    *Image // nil for zeros
	size    int64
	patches Patches
}

// Patch returns a source of size bytes that reads as base (nil for zeros, and
// shorter than size is filled up with them), but for the patches. Its extents
// say what is new; Flat has them say all that there is.
func Patch(base *Image, size int64, patches Patches) *Patched {
	return &Patched{base, size, patches}
}

// Size is the virtual size in bytes.
func (p *Patched) Size() int64 { return p.size }

// find returns the first patch that is not before a block, and whether it is
// that block's.
func (p *Patched) find(index int64) (n int, found bool) {
	return sort.Find(p.patches.Len(), func(n int) int {
		i, _ := p.patches.Block(n)
		return cmp.Compare(index, i)
	})
}

// ReadAt reads the patches and, between them, the base.
func (p *Patched) ReadAt(b []byte, off int64) (int, error) {
	if off < 0 {
		return 0, errors.New("negative offset")
	}
	if off >= p.size {
		return 0, io.EOF
	}
	want := len(b)
	b = b[:min(int64(len(b)), p.size-off)]
	for done := 0; done < len(b); {
		at := off + int64(done)
		part := b[done:min(int64(len(b)), int64(done)+BlockSize-at%BlockSize)]
		if err := p.readPart(part, at); err != nil {
			return done, err
		}
		done += len(part)
	}
	if len(b) < want {
		return len(b), io.EOF
	}
	return len(b), nil
}

// readPart reads what lies in one block.
func (p *Patched) readPart(part []byte, at int64) error {
	n, found := p.find(at / BlockSize)
	if !found {
		if p.base == nil {
			clear(part)
			return nil
		}
		return readPadded(p.base, part[:len(part):len(part)], at)
	}
	if _, zero := p.patches.Block(n); zero {
		clear(part)
		return nil
	}
	if len(part) == BlockSize {
		return p.patches.ReadBlock(part, n)
	}
	block := make([]byte, BlockSize)
	if err := p.patches.ReadBlock(block, n); err != nil {
		return err
	}
	copy(part, block[at%BlockSize:])
	return nil
}

// Extents says what is new; the rest is unallocated, or zero without a base.
func (p *Patched) Extents(ctx context.Context, off, length int64, fn func(off, length int64, state ExtentState) error) error {
	rest := Unallocated
	if p.base == nil {
		rest = Zero
	}
	return p.extents(ctx, off, length, fn, func(off, length int64) error { return fn(off, length, rest) })
}

// extents calls fn with each patch and rest with what is between them.
func (p *Patched) extents(ctx context.Context, off, length int64, fn func(off, length int64, state ExtentState) error, rest func(off, length int64) error) error {
	end := min(off+length, p.size)
	n, _ := p.find(off / BlockSize)
	for ; off < end; n++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		start, stop, state := end, end, Data
		if n < p.patches.Len() {
			index, zero := p.patches.Block(n)
			if zero {
				state = Zero
			}
			start, stop = min(end, index*BlockSize), min(end, (index+1)*BlockSize)
		}
		if off < start {
			if err := rest(off, start-off); err != nil {
				return err
			}
			off = start
		}
		if off < stop {
			if err := fn(off, stop-off, state); err != nil {
				return err
			}
			off = stop
		}
	}
	return nil
}

// Flat is the whole disk as one source, for a layer that stands on nothing.
func (p *Patched) Flat() Source { return flatPatched{p} }

type flatPatched struct{ *Patched }

func (p flatPatched) Extents(ctx context.Context, off, length int64, fn func(off, length int64, state ExtentState) error) error {
	return p.extents(ctx, off, length, fn, func(off, length int64) error {
		if p.base != nil && off < p.base.Size() {
			n := min(length, p.base.Size()-off)
			if err := Flatten(p.base).Extents(ctx, off, n, fn); err != nil {
				return err
			}
			off, length = off+n, length-n
		}
		if length == 0 {
			return nil
		}
		return fn(off, length, Zero)
	})
}
