package region

import (
	"bytes"
	"slices"
	"testing"

	"github.com/kamivm/kami/pkg/qcow2"
)

func TestRuns(t *testing.T) {
	t.Parallel()
	runs := []run{{0, 512, 0}, {1024, 1536, -1}, {1 << 40, 1 << 20, 512}}
	got, err := decodeRuns(encodeRuns(runs), 1<<41, 512+1<<20)
	if err != nil || !slices.Equal(got, runs) {
		t.Errorf("got %v (%v), want %v", got, err, runs)
	}
	for name, b := range map[string][]byte{
		"beyond the disk":  encodeRuns([]run{{0, 4096, 0}}),
		"cut off":          {0x80},
		"half a run":       {0},
		"an empty run":     {0, 0},
		"too much":         {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 2},
		"more than a blob": encodeRuns([]run{{0, 1024, 0}}),
	} {
		if got, err := decodeRuns(b, 2048, 512); err == nil {
			t.Errorf("%s: got %v, want an error", name, got)
		}
	}
}

func FuzzRuns(f *testing.F) {
	f.Add(encodeRuns([]run{{0, 512, 0}, {1024, 1536, -1}}), int64(4096), int64(512))
	f.Fuzz(func(t *testing.T, b []byte, size, blob int64) {
		runs, err := decodeRuns(b, size, blob)
		if err != nil {
			return
		}
		again, err := decodeRuns(encodeRuns(runs), size, blob)
		if err != nil || !slices.Equal(again, runs) {
			t.Errorf("got %v (%v), want %v", again, err, runs)
		}
	})
}

// A layer that was taken apart reads as it did.
func TestLayerBytes(t *testing.T) {
	t.Parallel()
	r, _ := open(t)
	_, child := twoLayers(t, r)
	img := get(r.layers.OpenLayer(described(t, r, rootSnapshot(child)).Layer))(t)
	defer img.Close()
	under := get(r.layers.OpenLayer(get(r.layers.Layer(described(t, r, rootSnapshot(child)).Layer))(t).Parent))(t)
	defer under.Close()
	runs, size, err := runsOf(t.Context(), img, false)
	must(t, err)
	blob := layerBytes{img, dataRuns(runs), size}
	disk := layerDisk{size: img.Size(), runs: get(decodeRuns(encodeRuns(runs), img.Size(), size))(t), blob: blob, parent: under}
	for _, at := range []struct{ off, n int64 }{{0, 1 << 20}, {BlockSize - 3, 7}, {BlockSize, BlockSize}, {3 * BlockSize, 6 * BlockSize}, {img.Size() - 5, 5}} {
		got, want := make([]byte, at.n), make([]byte, at.n)
		get(disk.ReadAt(got, at.off))(t)
		get(img.ReadAt(want, at.off))(t)
		if !bytes.Equal(got, want) {
			t.Errorf("%d bytes at %d are others", at.n, at.off)
		}
	}
	flat := stacked{disks: []layerDisk{disk, mustBase(t, under)}}
	a, b := get(qcow2.HashBlocks(t.Context(), flat))(t), get(qcow2.HashBlocks(t.Context(), qcow2.Flatten(img)))(t)
	if a.Content() != b.Content() {
		t.Errorf("the whole has the content %s, want %s", a.Content(), b.Content())
	}
}

func mustBase(t *testing.T, img *qcow2.Image) layerDisk {
	t.Helper()
	runs, size, err := runsOf(t.Context(), img, true)
	must(t, err)
	return layerDisk{size: img.Size(), runs: runs, blob: layerBytes{img, dataRuns(runs), size}}
}
