package qcow2

import (
	"bytes"
	"fmt"
	"math/rand"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/kamivm/kami/pkg/digest"
)

// qemuImg runs qemu-img, the judge of what is written here.
func qemuImg(t testing.TB, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "qemu-img", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("qemu-img %v: %v\n%s", args, err, out)
	}
	return string(out)
}

// disk makes a raw disk with text, noise and holes in it.
func disk(t *testing.T, path string, size int64, seed int64) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	rng := rand.New(rand.NewSource(seed))
	noise, text := make([]byte, 70_000), make([]byte, 200_000)
	rng.Read(noise)
	for i := range text {
		text[i] = "kami "[i%5]
	}
	text[0] = byte(seed)
	for off := int64(0); off+300_000 < size; off += 1 << 20 {
		b := noise
		if rng.Intn(2) == 0 {
			b = text
		}
		if _, err := f.WriteAt(b, off+rng.Int63n(100_000)); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
}

func writeLayer(t *testing.T, dir string, src Source, parent *Parent) LayerResult {
	t.Helper()
	return encryptLayer(t, dir, src, parent, nil)
}

func encryptLayer(t *testing.T, dir string, src Source, parent *Parent, enc *Encryption) LayerResult {
	t.Helper()
	w, err := os.CreateTemp(dir, "w-*")
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	res, err := WriteLayer(t.Context(), w, src, parent, enc, nil)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(w.Name())
	if err != nil {
		t.Fatal(err)
	}
	if got := digest.Of(b); got != res.Layer {
		t.Fatalf("the file's digest is %s, WriteLayer says %s", got, res.Layer)
	}
	if err := os.Rename(w.Name(), filepath.Join(dir, res.Layer.Hex()+".qcow2")); err != nil {
		t.Fatal(err)
	}
	return res
}

func rawFile(t *testing.T, path string) Source {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	src, err := RawSource(f)
	if err != nil {
		t.Fatal(err)
	}
	return src
}

func openImage(t *testing.T, path string, backing ...string) *Image {
	t.Helper()
	img, err := Open(path, backing...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { img.Close() })
	return img
}

func TestLayerReadsBack(t *testing.T) {
	for _, size := range []int64{512, 65536, 1<<20 + 512, 40 << 20, 33<<20 + 4096} {
		dir := t.TempDir()
		raw := filepath.Join(dir, "disk.raw")
		disk(t, raw, size, 1)
		res := writeLayer(t, dir, rawFile(t, raw), nil)
		layer := filepath.Join(dir, res.Layer.Hex()+".qcow2")
		qemuImg(t, "check", "-f", "qcow2", layer)
		qemuImg(t, "compare", "-f", "raw", "-F", "qcow2", raw, layer)
		// Our own reader sees the same, so a layer of the layer is the layer.
		again := writeLayer(t, dir, Flatten(openImage(t, layer)), nil)
		if again.Layer != res.Layer || again.Content != res.Content {
			t.Errorf("size %d: a layer of the layer is %s, want %s", size, again.Layer, res.Layer)
		}
	}
}

// TestReadsNoFurther: nothing is written behind what is read, whatever room is there.
func TestReadsNoFurther(t *testing.T) {
	dir, rng := t.TempDir(), rand.New(rand.NewSource(1))
	var text []byte
	for len(text) < 8*ClusterSize {
		text = append(text, fmt.Sprintf("word %d and ", rng.Intn(500))...)
	}
	raw := filepath.Join(dir, "disk.raw")
	if err := os.WriteFile(raw, text[:8*ClusterSize], 0o600); err != nil {
		t.Fatal(err)
	}
	res := writeLayer(t, dir, rawFile(t, raw), nil)
	img := openImage(t, filepath.Join(dir, res.Layer.Hex()+".qcow2"))
	for name, src := range map[string]Source{"image": img, "patched": Patch(img, img.Size(), cutOut{})} {
		for _, n := range []int{1, 100, ClusterSize, ClusterSize + 1, 8 * ClusterSize} {
			b := bytes.Repeat([]byte{0xee}, n+1000)
			if _, err := src.ReadAt(b[:n], 0); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(b[:n], text[:n]) {
				t.Errorf("%s: other bytes of %d", name, n)
			}
			if bytes.Count(b[n:], []byte{0xee}) != 1000 {
				t.Errorf("%s: a read of %d bytes wrote behind them", name, n)
			}
		}
	}
}

// TestSameContentSameFile holds that neither holes nor the encoding of the
// source show in a layer.
func TestSameContentSameFile(t *testing.T) {
	dir := t.TempDir()
	raw, dense, zlib := filepath.Join(dir, "a"), filepath.Join(dir, "b"), filepath.Join(dir, "c")
	disk(t, raw, 20<<20, 2)
	b, err := os.ReadFile(raw)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dense, b, 0o600); err != nil {
		t.Fatal(err)
	}
	qemuImg(t, "convert", "-c", "-O", "qcow2", "-f", "raw", raw, zlib)
	want := writeLayer(t, dir, rawFile(t, raw), nil).Layer
	for name, src := range map[string]Source{"dense": rawFile(t, dense), "zlib": Flatten(openImage(t, zlib))} {
		if got := writeLayer(t, dir, src, nil).Layer; got != want {
			t.Errorf("%s: got %s, want %s", name, got, want)
		}
	}
}

func TestLayerOverParent(t *testing.T) {
	dir := t.TempDir()
	raw := filepath.Join(dir, "disk.raw")
	disk(t, raw, 16<<20, 3)
	base := writeLayer(t, dir, rawFile(t, raw), nil)
	basePath := filepath.Join(dir, base.Layer.Hex()+".qcow2")
	head := filepath.Join(dir, "head.qcow2")
	if err := CreateHead(head, 16<<20, base.Layer.Hex()+".qcow2", "kami-test", nil); err != nil {
		t.Fatal(err)
	}
	qemuImg(t, "check", "-f", "qcow2", head)
	// One cluster changes, one becomes zero, one is written with what it has.
	qemuIO(t, head, "write -P 7 3M 64k", "write -z 0 1M", "write -P 0 8M 64k")
	qemuImg(t, "check", "-f", "qcow2", head)
	parent := &Parent{Image: openImage(t, basePath), Layer: base.Layer, Blocks: base.Blocks}
	top := openImage(t, head, basePath)
	res := writeLayer(t, dir, top, parent)
	if res.DataClusters != 1 {
		t.Errorf("%d data clusters, want 1", res.DataClusters)
	}
	path := filepath.Join(dir, res.Layer.Hex()+".qcow2")
	qemuImg(t, "check", "-f", "qcow2", path)
	qemuImg(t, "compare", "-f", "qcow2", "-F", "qcow2", head, path)
	// A source that knows nothing of the lineage gives the same layer.
	if got := writeLayer(t, dir, Flatten(top), parent).Layer; got != res.Layer {
		t.Errorf("by comparison: %s, want %s", got, res.Layer)
	}
	whole := writeLayer(t, dir, Flatten(top), nil)
	if whole.Content != res.Content {
		t.Errorf("content of the whole is %s, of the layer %s", whole.Content, res.Content)
	}
	if info := top.Info(); info.BackingFormat != "qcow2" {
		t.Errorf("backing format %q, want qcow2", info.BackingFormat)
	}
}

func qemuIO(t *testing.T, path string, cmds ...string) {
	t.Helper()
	args := []string{"-f", "qcow2"}
	for _, c := range cmds {
		args = append(args, "-c", c)
	}
	if out, err := exec.CommandContext(t.Context(), "qemu-io", append(args, path)...).CombinedOutput(); err != nil {
		t.Fatalf("qemu-io: %v\n%s", err, out)
	}
}

func TestHeadOfALargeDiskIsSmall(t *testing.T) {
	path := filepath.Join(t.TempDir(), "head.qcow2")
	if err := CreateHead(path, 1<<40, "", "kami-blank", nil); err != nil {
		t.Fatal(err)
	}
	qemuImg(t, "check", "-f", "qcow2", path)
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Size() > 512<<10 {
		t.Errorf("the head of a disk of 1 TiB has %d bytes, want at most 512 KiB", info.Size())
	}
}
