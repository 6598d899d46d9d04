package qcow2

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// check holds what is true of every layer over a parent.
func (l lineage) check(t *testing.T) {
	t.Helper()
	top := openKeyed(t, l.childPath, l.parentPath)
	if got := readAll(t, top); !bytes.Equal(got, l.child) {
		t.Errorf("the layer over its parent reads otherwise from byte %d on", firstDifference(got, l.child))
	}
	if got, want := l.childRes.Content, contentOf(l.child); got != want {
		t.Errorf("content digest is %s, want %s", got, want)
	}
	hashed, err := HashBlocks(t.Context(), Flatten(top))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := hashed.Content(), l.childRes.Content; got != want {
		t.Errorf("hashed afterwards the content digest is %s, want %s", got, want)
	}
	for _, mood := range []int64{0, 77} { // told more or less, it comes out the same
		again := encryptLayer(t, l.dir, memory{data: l.child, parent: l.parent, mood: mood}, l.under(t), l.enc)
		if again.Layer != l.childRes.Layer {
			t.Errorf("mood %d: the layer is %s, want %s", mood, again.Layer, l.childRes.Layer)
		}
	}
	l.checkAllocation(t, top)
}

// checkAllocation holds that a cluster is stored where, and only where, it
// differs from the parent, and that zeros are never stored as data.
func (l lineage) checkAllocation(t *testing.T, top *Image) {
	t.Helper()
	var data, zero int64
	err := top.Extents(t.Context(), 0, top.Size(), func(off, length int64, got ExtentState) error {
		for end := off + length; off < end; off += ClusterSize {
			want := Data
			part := at(l.child, int(off), ClusterSize)
			switch {
			case bytes.Equal(part, at(l.parent, int(off), ClusterSize)):
				want = Unallocated
			case isZero(part):
				want, zero = Zero, zero+1
			default:
				data++
			}
			if got != want {
				t.Errorf("the cluster at %d has state %d, want %d", off, got, want)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if l.childRes.DataClusters != data || l.childRes.ZeroClusters != zero {
		t.Errorf("got %d data and %d zero clusters, want %d and %d", l.childRes.DataClusters, l.childRes.ZeroClusters, data, zero)
	}
}

// checkSame holds that encryption changes nothing but the file.
func (l lineage) checkSame(t *testing.T, e lineage) {
	t.Helper()
	a, b := l.childRes, e.childRes
	if a.Content != b.Content || a.DataClusters != b.DataClusters || a.ZeroClusters != b.ZeroClusters {
		t.Errorf("encrypted, the layer has the content %s in %d clusters and %d of zeros, want %s in %d and %d",
			b.Content.Short(), b.DataClusters, b.ZeroClusters, a.Content.Short(), a.DataClusters, a.ZeroClusters)
	}
	if a.Layer == b.Layer {
		t.Error("encrypted, the layer is the same file")
	}
}

func firstDifference(a, b []byte) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}

// lineages are sizes and ops that have shown, or could show, an edge: sizes that
// are no multiple of a cluster or a block, growth, nothing changed, all zeroed.
var lineages = []struct {
	seed                int64
	size, grow          uint16
	parentOps, childOps []byte
}{
	{1, 0, 0, nil, nil},
	{2, 127, 1, []byte{0, 1, 255}, []byte{0, 0, 255}},
	{3, 1023, 1025, []byte{0, 2, 255, 100, 9, 200}, []byte{128, 8, 63, 200, 10, 1}},
	{4, 2048, 0, []byte{0, 2, 255, 64, 1, 255}, nil},
	{5, 3000, 500, []byte{10, 10, 255, 90, 9, 255, 200, 2, 3}, []byte{9, 0, 255, 120, 1, 10, 250, 2, 255}},
	{6, 4095, 1099, nil, []byte{255, 2, 255, 0, 2, 0}},
}

func FuzzLayerRoundTrip(f *testing.F) {
	for _, l := range lineages {
		f.Add(l.seed, l.size, l.grow, l.parentOps, l.childOps)
	}
	f.Fuzz(func(t *testing.T, seed int64, size, grow uint16, parentOps, childOps []byte) {
		const most = 60 // twenty writes
		parentOps, childOps = parentOps[:min(most, len(parentOps))], childOps[:min(most, len(childOps))]
		l := newLineage(t, seed, size, grow, parentOps, childOps)
		l.check(t)
		e := encryptLineage(t, encryption(t, keyA), seed, size, grow, parentOps, childOps)
		e.check(t)
		l.checkSame(t, e)
	})
}

// TestQEMUReadsLayers asks the judge what the round trip asks our own reader.
func TestQEMUReadsLayers(t *testing.T) {
	for _, c := range lineages {
		for _, enc := range []*Encryption{nil, encryption(t, keyA)} {
			t.Run(fmt.Sprintf("seed %d encrypted %v", c.seed, enc != nil), func(t *testing.T) {
				l := encryptLineage(t, enc, c.seed, c.size, c.grow, c.parentOps, c.childOps)
				raw := filepath.Join(l.dir, "want.raw")
				if err := os.WriteFile(raw, l.child, 0o600); err != nil {
					t.Fatal(err)
				}
				keyedImg(t, "check", chain(t, l.parentPath))
				keyedImg(t, "check", chain(t, l.childPath, l.parentPath))
				keyedImg(t, "compare", "driver=raw,file.filename="+raw, chain(t, l.childPath, l.parentPath))
			})
		}
	}
}

// TestSourceEncodingDoesNotShow makes the same layer of the same content,
// however the source keeps it.
func TestSourceEncodingDoesNotShow(t *testing.T) {
	l := newLineage(t, 9, 4000, 900, []byte{0, 2, 255, 90, 9, 255}, []byte{50, 0, 200, 130, 10, 255, 200, 1, 90})
	raw := filepath.Join(l.dir, "child.raw")
	if err := os.WriteFile(raw, l.child, 0o600); err != nil {
		t.Fatal(err)
	}
	want := map[bool]LayerResult{true: l.childRes, false: writeLayer(t, l.dir, memory{data: l.child}, nil)}
	sources := map[string]Source{"raw": rawFile(t, raw)}
	for name, args := range map[string][]string{
		"plain":               nil,
		"version 2":           {"-o", "compat=0.10"},
		"zlib":                {"-c"},
		"zstd":                {"-c", "-o", "compression_type=zstd"},
		"clusters of 512 B":   {"-o", "cluster_size=512"},
		"clusters of 2 MiB":   {"-o", "cluster_size=2M"},
		"zstd, small":         {"-c", "-o", "compression_type=zstd,cluster_size=4k"},
		"zlib, large":         {"-c", "-o", "cluster_size=1M"},
		"tables in advance":   {"-o", "preallocation=metadata"},
		"refcounts of 1 byte": {"-o", "refcount_bits=8"},
	} {
		path := filepath.Join(l.dir, name+".qcow2")
		qemuImg(t, append(append([]string{"convert", "-f", "raw", "-O", "qcow2"}, args...), raw, path)...)
		sources[name] = Flatten(openImage(t, path))
	}
	for name, src := range sources {
		for _, parented := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, parent %v", name, parented), func(t *testing.T) {
				var parent *Parent
				if parented {
					parent = l.under(t)
				}
				got := writeLayer(t, l.dir, src, parent)
				if got.Layer != want[parented].Layer || got.Content != want[parented].Content {
					t.Errorf("got layer %s of content %s, want %s of %s", got.Layer.Short(), got.Content.Short(), want[parented].Layer.Short(), want[parented].Content.Short())
				}
			})
		}
	}
}

// partZero has data at the beginning of each cluster and says that the rest is
// zeros.
type partZero struct{ memory }

func (p partZero) Extents(_ context.Context, off, length int64, fn func(off, length int64, state ExtentState) error) error {
	for end := off + length; off < end; off += ClusterSize {
		if err := errors.Join(fn(off, grain, Data), fn(off+grain, ClusterSize-grain, Zero)); err != nil {
			return err
		}
	}
	return nil
}

// TestPartsOfAClusterCount: a cluster is not zero because its end is.
func TestPartsOfAClusterCount(t *testing.T) {
	l := newLineage(t, 3, 4095, 0, []byte{0, 2, 255, 100, 2, 255, 200, 2, 255}, nil)
	clear(l.child)
	for off := 0; off < len(l.child); off += ClusterSize {
		copy(l.child[off:], "data")
	}
	l.childRes = writeLayer(t, l.dir, partZero{memory{data: l.child}}, l.under(t))
	l.childPath = filepath.Join(l.dir, l.childRes.Layer.Hex()+".qcow2")
	l.check(t)
}

// TestLayerIsNeverSmallerThanItsParent: the parent's digests would be told of
// a disk that no longer has those blocks.
func TestLayerIsNeverSmallerThanItsParent(t *testing.T) {
	l := newLineage(t, 1, 300, 0, []byte{0, 2, 255}, nil)
	w, err := os.Create(filepath.Join(l.dir, "new"))
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	_, err = WriteLayer(t.Context(), w, memory{data: l.child[:len(l.child)-512]}, l.under(t), nil, nil)
	wantError(t, "a shrunk disk", err, ErrUnsupported)
}

// TestChangedBlocksAreNew holds what a listing of changed blocks needs: a
// block's digest changes where, and only where, its bytes do.
func TestChangedBlocksAreNew(t *testing.T) {
	l := newLineage(t, 4, 4000, 0, []byte{0, 2, 255, 100, 2, 255}, []byte{130, 2, 0, 255, 1, 0})
	for i := range l.childRes.Blocks.Len() {
		off := int(i) * BlockSize
		same := bytes.Equal(at(l.parent, off, BlockSize), at(l.child, off, BlockSize))
		if got := l.parentRes.Blocks.Get(i) == l.childRes.Blocks.Get(i); got != same {
			t.Errorf("block %d: digests equal is %v, bytes equal is %v", i, got, same)
		}
		if got, want := l.childRes.Blocks.Zero(i), isZero(at(l.child, off, BlockSize)); got != want {
			t.Errorf("block %d: zero is %v, want %v", i, got, want)
		}
	}
}
