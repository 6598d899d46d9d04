package qcow2

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
)

// seeds are small sound files of all kinds; a fuzzer makes unsound ones of them.
func seeds(f *testing.F) [][]byte {
	f.Helper()
	dir := f.TempDir()
	raw := filepath.Join(dir, "raw")
	content := make([]byte, 16<<10)
	scribble(content, []byte{0, 1, 2, 100, 2, 1}, 1)
	if err := os.WriteFile(raw, content, 0o600); err != nil {
		f.Fatal(err)
	}
	var out [][]byte
	for _, args := range [][]string{
		{"-o", "cluster_size=512"},
		{"-o", "cluster_size=512,compat=0.10"},
		{"-c", "-o", "cluster_size=512"},
		{"-c", "-o", "cluster_size=1k,compression_type=zstd"},
		{"-o", "cluster_size=4k"},
	} {
		path := filepath.Join(dir, "qcow2")
		qemuImg(f, append(append([]string{"convert", "-f", "raw", "-O", "qcow2"}, args...), raw, path)...)
		b, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		out = append(out, b)
	}
	enc := fewStripes(f)
	encrypted := tiny(enc, content)
	return append(out, plainHeader(f)[:1024], []byte("QFI\xfb"), nil, encrypted, encrypted[:600], encrypted[:4000])
}

// cheap says whether an encrypted file takes little work to unlock, or none.
func cheap(b []byte) bool {
	info, err := Inspect(bytes.NewReader(b), int64(len(b)))
	if err != nil || !info.Encrypted || info.luksOffset == 0 {
		return true
	}
	h, err := parseLUKS(b[info.luksOffset:], info.luksLength)
	return err != nil || cheapHeader(h)
}

func cheapHeader(h luksHeader) bool {
	work := 0
	for _, s := range h.slots {
		work += int(h.iterations) + 2*int(s.iterations)
	}
	return work <= 20*luksIterations
}

// FuzzLUKS takes headers apart, and unlocks those that can be in little time.
func FuzzLUKS(f *testing.F) {
	small := fewStripes(f)
	whole := encryption(f, keyA)
	f.Add(small.header, small.length)
	f.Add(small.header[:luksHeaderSize], small.length)
	f.Add(whole.header[:luksAlign+1000], whole.length)
	f.Add([]byte(luksMagic), int64(0))
	pass := []byte(ring()[keyA])
	f.Fuzz(func(t *testing.T, b []byte, length int64) {
		length = max(0, length%maxLUKSLength)
		h, err := parseLUKS(b, length)
		if err != nil {
			if !ours(err) {
				t.Errorf("got error %v, want one of the package's", err)
			}
			return
		}
		if got := h.used(); got > length || got < luksHeaderSize || len(h.slots) > luksSlots {
			t.Fatalf("of %d bytes %d are used by %d slots", length, got, len(h.slots))
		}
		if !cheapHeader(h) {
			return
		}
		raw := make([]byte, h.used())
		copy(raw, b)
		if _, err := h.unlock(raw, pass); err != nil && !errors.Is(err, ErrWrongKey) {
			t.Errorf("got error %v, want %v", err, ErrWrongKey)
		}
	})
}

// ours says whether an error is one that the package promises.
func ours(err error) bool {
	return errors.Is(err, ErrNotQCOW2) || errors.Is(err, ErrUnsupported) || errors.Is(err, ErrCorrupt) ||
		errors.Is(err, ErrNoKey) || errors.Is(err, ErrWrongKey)
}

func FuzzInspect(f *testing.F) {
	for _, b := range seeds(f) {
		f.Add(b, int64(len(b)))
	}
	f.Fuzz(func(t *testing.T, b []byte, size int64) {
		info, err := Inspect(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			if !ours(err) {
				t.Errorf("got error %v, want one of the package's", err)
			}
		} else if info.Size < 0 || info.Size > maxVirtualBytes || info.l1Entries*8 > len(b) || len(info.BackingName) > maxNameLen || len(info.KeyID) > maxKeyID || info.luksLength > maxLUKSLength {
			t.Errorf("a file of %d bytes was taken with %+v", len(b), info)
		}
		// A size that is not true is no reason to fall over either.
		if _, err := Inspect(bytes.NewReader(b), size); err != nil && !ours(err) && !errors.Is(err, io.EOF) {
			t.Errorf("told of %d bytes: got error %v", size, err)
		}
	})
}

func FuzzOpen(f *testing.F) {
	for _, b := range seeds(f) {
		f.Add(b, int64(0))
	}
	f.Fuzz(func(t *testing.T, b []byte, off int64) {
		if !cheap(b) {
			return
		}
		img, err := OpenKeyed(ring().keys, write(t, b))
		if err != nil {
			if !ours(err) {
				t.Errorf("got error %v, want one of the package's", err)
			}
			return
		}
		defer img.Close()
		size := img.Size()
		buf := make([]byte, 100<<10)
		for _, at := range []int64{0, size - 1000, off, size / 2} {
			n, err := img.ReadAt(buf, at)
			switch {
			case err == nil && n != len(buf), n < 0, n > len(buf):
				t.Errorf("reading at %d gave %d bytes and %v", at, n, err)
			case errors.Is(err, io.EOF) && at >= 0 && int64(n) != max(0, size-at):
				t.Errorf("reading at %d of %d ended after %d bytes", at, size, n)
			}
		}
		checkExtents(t, img, max(0, size-1<<20))
		checkExtents(t, img, 0)
		for _, q := range img.files {
			if got := len(q.tables) << q.info.ClusterBits; got > maxTableBytes {
				t.Errorf("%d bytes of tables are kept, want at most %d", got, maxTableBytes)
			}
		}
	})
}

// checkExtents holds that the runs of 1 MiB from start cover it in order, that
// neighbours differ, and that what is called zero reads as zeros.
func checkExtents(t *testing.T, img *Image, start int64) {
	t.Helper()
	end := min(start+1<<20, img.Size())
	next, last := start, ExtentState(-1)
	err := img.Extents(t.Context(), start, end-start, func(off, length int64, state ExtentState) error {
		if off != next || length <= 0 || off+length > end || state == last || state == Unallocated {
			t.Errorf("a run of state %d at %d of %d bytes follows one of state %d that ends at %d", state, off, length, last, next)
		}
		next, last = off+length, state
		if state != Zero {
			return nil
		}
		b := make([]byte, min(length, 64<<10))
		if n, err := img.ReadAt(b, off); err != nil && !errors.Is(err, io.EOF) || !isZero(b[:n]) {
			t.Errorf("the run of zeros at %d reads otherwise, with error %v", off, err)
		}
		return nil
	})
	if err == nil && next != max(end, start) {
		t.Errorf("the runs end at %d, want %d", next, end)
	}
	if err != nil && !ours(err) {
		t.Errorf("got error %v, want one of the package's", err)
	}
}

// FuzzBlocks holds that a list of digests comes back as it was written, and that
// what is taken is written back as it was.
func FuzzBlocks(f *testing.F) {
	for _, n := range []int64{0, 1, BlockSize * 200} {
		blocks := NewBlocks(n)
		if n > 0 {
			blocks.set(0, [32]byte{1})
		}
		b, err := blocks.MarshalBinary()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b[:len(b)-sha256.Size])
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		sum := sha256.Sum256(body) // which a fuzzer would not hit upon
		var blocks Blocks
		if err := blocks.UnmarshalBinary(append(bytes.Clone(body), sum[:]...)); err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Errorf("got error %v, want %v", err, ErrCorrupt)
			}
			return
		}
		out, err := blocks.MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		var again Blocks
		if err := again.UnmarshalBinary(out); err != nil {
			t.Fatalf("what was written is refused: %v", err)
		}
		if blocks.Len() != again.Len() || blocks.Get(0) != again.Get(0) || blocks.Get(blocks.Len()) != zeroSum() {
			t.Errorf("%d blocks come back as %d", blocks.Len(), again.Len())
		}
		if blocks.Len() > 1<<16 { // hashing that many takes a while
			return
		}
		if got, want := again.Content(), blocks.Content(); got != want {
			t.Errorf("the content digest comes back as %s, want %s", got, want)
		}
	})
}
