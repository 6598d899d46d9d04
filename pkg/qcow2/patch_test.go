package qcow2

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// cutOut are blocks of a disk in memory, by their indexes.
type cutOut struct {
	disk    []byte
	indexes []int64
}

func (c cutOut) Len() int { return len(c.indexes) }

func (c cutOut) bytes(n int) []byte { return at(c.disk, int(c.indexes[n])*BlockSize, BlockSize) }

func (c cutOut) Block(n int) (int64, bool) { return c.indexes[n], isZero(c.bytes(n)) }

func (c cutOut) ReadBlock(p []byte, n int) error {
	if _, zero := c.Block(n); zero || len(p) != BlockSize {
		return fmt.Errorf("asked for block %d into %d bytes, zeros: %v", n, len(p), zero)
	}
	copy(p, c.bytes(n))
	return nil
}

// patchesOf are the blocks in which child differs from parent, and some more.
func patchesOf(parent, child []byte, seed int64) cutOut {
	rng := rand.New(rand.NewSource(seed))
	c := cutOut{disk: child}
	for i := 0; i*BlockSize < len(child); i++ {
		if rng.Intn(4) == 0 || !bytes.Equal(at(parent, i*BlockSize, BlockSize), at(child, i*BlockSize, BlockSize)) {
			c.indexes = append(c.indexes, int64(i))
		}
	}
	return c
}

// A disk that was put together of patches reads as the disk, and its layers are
// those of the disk, over the base and over nothing.
func TestPatchIsTheDisk(t *testing.T) {
	for _, c := range lineages {
		t.Run(fmt.Sprintf("seed %d", c.seed), func(t *testing.T) {
			l := newLineage(t, c.seed, c.size, c.grow, c.parentOps, c.childOps)
			p := Patch(openImage(t, l.parentPath), int64(len(l.child)), patchesOf(l.parent, l.child, c.seed))
			if got := readAll(t, p); !bytes.Equal(got, l.child) {
				t.Errorf("it reads otherwise from byte %d on", firstDifference(got, l.child))
			}
			if got := writeLayer(t, l.dir, p, l.under(t)); got.Layer != l.childRes.Layer || got.Content != l.childRes.Content {
				t.Errorf("over the base: got the layer %s, want %s", got.Layer, l.childRes.Layer)
			}
			whole := writeLayer(t, l.dir, memory{data: l.child}, nil)
			if got := writeLayer(t, l.dir, p.Flat(), nil); got.Layer != whole.Layer {
				t.Errorf("flat: got the layer %s, want %s", got.Layer, whole.Layer)
			}
			bare := Patch(nil, int64(len(l.child)), patchesOf(nil, l.child, c.seed))
			for name, src := range map[string]Source{"bare": bare, "bare and flat": bare.Flat()} {
				if got := writeLayer(t, l.dir, src, nil); got.Layer != whole.Layer {
					t.Errorf("%s: got the layer %s, want %s", name, got.Layer, whole.Layer)
				}
			}
		})
	}
}

// What is asked for in parts comes as it does whole: bytes and extents.
func TestPatchInParts(t *testing.T) {
	l := newLineage(t, 5, 3000, 500, []byte{10, 10, 255, 90, 9, 255}, []byte{0, 10, 255, 130, 2, 255})
	size := int64(len(l.child))
	p := Patch(openImage(t, l.parentPath), size, cutOut{l.child, []int64{0, 2, 3}})
	want := slices.Concat(at(l.child, 0, BlockSize), at(l.parent, BlockSize, BlockSize), l.child[2*BlockSize:])
	whole := extentsOf(t, p, 0, size)
	rng := rand.New(rand.NewSource(1))
	for range 200 {
		off := rng.Int63n(size)
		n := 1 + rng.Int63n(size-off)
		got := make([]byte, n)
		if _, err := p.ReadAt(got, off); err != nil || !bytes.Equal(got, want[off:off+n]) {
			t.Fatalf("reading %d bytes at %d: %v, or not what is there", n, off, err)
		}
		if got := extentsOf(t, p, off, n); !bytes.Equal(got, whole[off/512:][:len(got)]) {
			t.Fatalf("the extents of %d bytes at %d are not those of the whole", n, off)
		}
	}
	if n, err := p.ReadAt(make([]byte, 1024), size-512); n != 512 || !errors.Is(err, io.EOF) {
		t.Errorf("reading over the end: got %d bytes and %v, want 512 and io.EOF", n, err)
	}
	if _, err := p.ReadAt(make([]byte, 1), size); !errors.Is(err, io.EOF) {
		t.Errorf("reading behind the end: got %v, want io.EOF", err)
	}
	if _, err := p.ReadAt(make([]byte, 1), -1); err == nil {
		t.Error("reading before the start: got no error, want one")
	}
}

// extentsOf is the state of each sector of a part, which the extents must cover
// in order.
func extentsOf(t *testing.T, src Source, off, length int64) (out []byte) {
	t.Helper()
	next := off
	err := src.Extents(t.Context(), off, length, func(at, n int64, state ExtentState) error {
		if at != next || n <= 0 {
			return fmt.Errorf("an extent of %d bytes at %d, want one at %d", n, at, next)
		}
		for s := at; s < at+n; s = s/512*512 + 512 {
			if s == off || s%512 == 0 {
				out = append(out, byte(state))
			}
		}
		next = at + n
		return nil
	})
	if err != nil || next != off+length {
		t.Fatalf("the extents end at %d with %v, want %d", next, err, off+length)
	}
	return out
}

// A block that cannot be read fails the layer, as does a context that ended.
func TestPatchFails(t *testing.T) {
	l := newLineage(t, 2, 4000, 0, nil, []byte{0, 2, 255})
	broken := errors.New("broken")
	p := Patch(nil, int64(len(l.child)), failing{patchesOf(nil, l.child, 1), broken})
	w, err := os.Create(filepath.Join(l.dir, "new"))
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if _, err := WriteLayer(t.Context(), w, p, nil, nil, nil); !errors.Is(err, broken) {
		t.Errorf("got %v, want what the block failed with", err)
	}
	if _, err := p.ReadAt(make([]byte, 100), 0); !errors.Is(err, broken) {
		t.Errorf("in part: got %v, want what the block failed with", err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := p.Extents(ended, 0, p.Size(), func(int64, int64, ExtentState) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
	stop := errors.New("enough")
	for off := range int64(2) {
		if err := p.Extents(t.Context(), off*BlockSize, p.Size(), func(int64, int64, ExtentState) error { return stop }); !errors.Is(err, stop) {
			t.Errorf("got %v, want what the caller said", err)
		}
	}
}

type failing struct {
	cutOut
	err error
}

func (f failing) ReadBlock([]byte, int) error { return f.err }
