package qcow2

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"testing"
)

// wide is a disk so large that what grows with it is seen.
const wide = int64(1) << 40

// wantAllocated holds that fn allocates at most so many bytes, freed or not.
func wantAllocated(t *testing.T, what string, most uint64, fn func()) {
	t.Helper()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	fn()
	runtime.ReadMemStats(&after)
	if got := after.TotalAlloc - before.TotalAlloc; got > most {
		t.Errorf("%s allocates %d KiB, want at most %d", what, got>>10, most>>10)
	}
}

// thin writes a layer of size bytes that has one cluster of zeros, the nth, in
// each L2 table.
func thin(t *testing.T, size, n int64) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "layer")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	s, err := newStage(f, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	for c := n; c < size/ClusterSize; c += l2Entries {
		if err := s.add([]alloc{{uint32(c), allocZero}}, nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.flush(); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.layOut(t.Context(), f, size, ""); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestTablesAreNotHeld: the L2 tables of this layer take 128 MiB.
func TestTablesAreNotHeld(t *testing.T) {
	var path string
	wantAllocated(t, "a layer with data all over it", 8<<20, func() { path = thin(t, wide, 5) })
	if err := CheckTables(t.Context(), path); err != nil {
		t.Error(err)
	}
}

// TestWhatIsStoredIsNotHeld: the clusters of a large change are listed in a file.
func TestWhatIsStoredIsNotHeld(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "layer"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	s, err := newStage(f, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	const stored = 1 << 20
	one := make([]alloc, 1)
	wantAllocated(t, "staging", 1<<20, func() {
		for c := range uint32(stored) {
			one[0].cluster = c
			if err := s.add(one, nil); err != nil {
				t.Fatal(err)
			}
		}
	})
	if err := s.flush(); err != nil {
		t.Fatal(err)
	}
	n := uint32(0)
	for w := s.index.walk(geometry{}); w.more; w.step() {
		if w.cluster != n || w.packed != allocZero {
			t.Fatalf("the cluster %d comes back as %d of %d bytes", n, w.cluster, w.packed)
		}
		n++
	}
	if n != stored {
		t.Errorf("%d clusters come back, want %d", n, stored)
	}
}

// TestThinBlocksTakeLittle: of a disk with a block in every 64 MiB, little more is
// held than the digests; and a copy shares what it does not change.
func TestThinBlocksTakeLittle(t *testing.T) {
	const step = listBlocks
	b, again := NewBlocks(wide), &Blocks{}
	wantAllocated(t, "the list", 12<<20, func() {
		for i := int64(0); i < b.Len(); i += step {
			b.set(i, [sha256.Size]byte{1, byte(i / step)})
		}
	})
	var c *Blocks
	wantAllocated(t, "a copy with one change", 4<<20, func() {
		c = b.resized(wide)
		c.set(1, [sha256.Size]byte{2})
	})
	if got := c.Changed(b); len(got) != 1 || got[0] != 1 {
		t.Errorf("the blocks %v have changed, want [1]", got)
	}
	wantAllocated(t, "writing and reading the list", 16<<20, func() {
		r, w := io.Pipe()
		go func() {
			_, err := b.WriteTo(w)
			w.CloseWithError(err)
		}()
		if _, err := again.ReadFrom(r); err != nil {
			t.Error(err)
		}
	})
	if got := again.Changed(b); len(got) != 0 || again.Len() != b.Len() {
		t.Errorf("%d blocks come back differently", len(got))
	}
}

// TestListsAreAsEver holds the form of a list on disk, which old stores have.
func TestListsAreAsEver(t *testing.T) {
	b := NewBlocks(300 * BlockSize)
	b.set(9, [sha256.Size]byte{1})
	b.set(299, [sha256.Size]byte{2})
	got, err := b.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	var want bytes.Buffer
	want.WriteString("kamiblk1\x00\x00\x00\x00\x00\x00\x01\x2c")
	for _, e := range []struct{ at, held, sum byte }{{0, 9, 1}, {2, 43, 2}} {
		entry := make([]byte, 8+128*32)
		entry[7], entry[8+int(e.held)*32] = e.at, e.sum
		want.Write(entry)
	}
	sum := sha256.Sum256(want.Bytes())
	want.Write(sum[:])
	if !bytes.Equal(got, want.Bytes()) {
		t.Errorf("a list of %d bytes differs from the one of %d", len(got), want.Len())
	}
}

// TestTablesOfAChainAreBounded: a long chain keeps no more tables than a short one.
func TestTablesOfAChainAreBounded(t *testing.T) {
	const size = 2 * maxTableBytes / ClusterSize * l2Entries * ClusterSize
	for _, files := range []int64{1, 3} {
		t.Run(fmt.Sprint(files), func(t *testing.T) {
			var paths []string
			for n := range files {
				paths = append(paths, thin(t, size, n))
			}
			img := openKeyed(t, paths[0], paths[1:]...)
			one := make([]byte, 1)
			for off := int64(0); off < size; off += l2Entries * ClusterSize / 2 {
				if _, err := img.ReadAt(one, off+files*ClusterSize); err != nil {
					t.Fatal(err)
				}
				kept := int64(0)
				for _, f := range img.files {
					kept += int64(len(f.tables)) * ClusterSize
				}
				if kept == 0 || kept > maxTableBytes+files*ClusterSize || kept != img.files[0].cached.Load() {
					t.Fatalf("%d bytes of tables are kept at %d and %d counted, want at most %d", kept, off, img.files[0].cached.Load(), maxTableBytes)
				}
			}
		})
	}
}
