package bundle

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/object"
	"github.com/kamivm/kami/pkg/qcow2"
)

// chunkFiles are the chunks of a bucket.
func chunkFiles(t *testing.T, store *object.Dir, bucket string) []string {
	t.Helper()
	all, err := filepath.Glob(filepath.Join(store.Path(), bucket, "chunks", "*", "*.cacnk"))
	must(t, err)
	return all
}

func TestReaderAt(t *testing.T) {
	src, path := sparse(t, 40<<20, pieces())
	want := readAll(t, path)
	store, key := newStore(t), newKey(t)
	mustCreate(t, store, "b/x", src, key)
	b, err := Open(t.Context(), store, "b/x", trusting(key))
	must(t, err)
	r := b.ReaderAt(t.Context())
	var wg sync.WaitGroup
	for _, at := range []struct{ off, n int64 }{{0, 512}, {299_000, 2000}, {5 << 20, 1 << 20}, {1 << 20, 3 << 20}, {39 << 20, 1 << 20}, {0, 40 << 20}} {
		wg.Go(func() {
			got := make([]byte, at.n)
			if _, err := r.ReadAt(got, at.off); err != nil || !bytes.Equal(got, want[at.off:at.off+at.n]) {
				t.Errorf("%d bytes at %d: got %v or other bytes", at.n, at.off, err)
			}
		})
	}
	wg.Wait()
	if n, err := r.ReadAt(make([]byte, 100), 40<<20-50); n != 50 || !errors.Is(err, io.EOF) {
		t.Errorf("at the end: got %d, %v", n, err)
	}
	if _, err := r.ReadAt(make([]byte, 1), 40<<20); !errors.Is(err, io.EOF) {
		t.Errorf("behind the end: got %v", err)
	}
	if r.kept > cacheSize {
		t.Errorf("it keeps %d bytes", r.kept)
	}
	next, data := int64(0), int64(0)
	must(t, r.Extents(t.Context(), 0, r.Size(), func(off, n int64, state qcow2.ExtentState) error {
		if off != next || n <= 0 {
			t.Errorf("a run of %d at %d, want it at %d", n, off, next)
		}
		if state == qcow2.Zero && !bytes.Equal(want[off:off+n], make([]byte, n)) {
			t.Errorf("%d+%d is not zero", off, n)
		}
		if state == qcow2.Data {
			data += n
		}
		next = off + n
		return nil
	}))
	if next != r.Size() || data > 8<<20 {
		t.Errorf("the runs end at %d and have %d bytes of data", next, data)
	}
}

// TestSharedChunks: an equal chunk is stored once in a bucket, also where the rest
// has shifted, and goes with the last bundle that needs it.
func TestSharedChunks(t *testing.T) {
	store, key := newStore(t), newKey(t)
	data := noise(7, 4<<20)
	a, _ := sparse(t, 8<<20, map[int64][]byte{0: data})
	shifted, _ := sparse(t, 8<<20, map[int64][]byte{0: noise(8, 12345), 12345: data})
	mustCreate(t, store, "b/a", a, key)
	before := len(chunkFiles(t, store, "b"))
	_, p := mustCreate(t, store, "b/shifted", shifted, key)
	if p.NewChunks*4 > before {
		t.Errorf("%d of %d chunks are new for a shift", p.NewChunks, p.Chunks)
	}
	_, p = mustCreate(t, store, "b/again", a, key)
	if p.NewChunks != 0 || p.StoredBytes != 0 {
		t.Errorf("got %+v for the same once more", p)
	}
	all, err := List(t.Context(), store, "b", trusting(key))
	must(t, err)
	if len(all) != 3 || all[0].Location != "b/a.manifest" || !all[0].Trusted || all[0].Problem != "" {
		t.Errorf("got %+v", all)
	}
	swept, err := Delete(t.Context(), store, "b/a")
	if err != nil || swept.Chunks != 0 || swept.Left != "" {
		t.Errorf("got %+v, %v though another bundle has the same", swept, err)
	}
	for _, left := range []string{"b/again", "b/shifted"} {
		b, err := Open(t.Context(), store, left, trusting(key))
		must(t, err)
		if rep, err := b.Verify(t.Context(), func(int64) {}); err != nil || len(rep.Faults) > 0 {
			t.Errorf("%s: got %+v, %v", left, rep, err)
		}
		if _, err := Delete(t.Context(), store, left); err != nil {
			t.Error(err)
		}
	}
	if left := chunkFiles(t, store, "b"); len(left) > 0 {
		t.Errorf("%d chunks are left of nothing", len(left))
	}
	if _, err := Delete(t.Context(), store, "b/a"); !errors.Is(err, ErrNotFound) {
		t.Errorf("got %v for one that is gone", err)
	}
}

func TestVerifyNamesTheChunks(t *testing.T) {
	store, key := newStore(t), newKey(t)
	src, _ := sparse(t, 8<<20, map[int64][]byte{0: noise(1, 2<<20)})
	mustCreate(t, store, "b/x", src, key)
	all := chunkFiles(t, store, "b")
	must(t, os.Remove(all[0]))
	must(t, os.Chmod(all[1], 0o600))
	must(t, os.WriteFile(all[1], []byte("rotten"), 0o600))
	other := readAll(t, all[3])
	must(t, os.Chmod(all[2], 0o600))
	must(t, os.WriteFile(all[2], other, 0o600))
	b, err := Open(t.Context(), store, "b/x", trusting(key))
	must(t, err)
	rep, err := b.Verify(t.Context(), func(int64) {})
	must(t, err)
	var got, want []string
	for _, f := range rep.Faults {
		got = append(got, f.Chunk)
	}
	for _, path := range all[:3] {
		want = append(want, strings.TrimSuffix(filepath.Base(path), ".cacnk"))
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if err := b.Assemble(t.Context(), discard{}, func(int64) {}); !errors.Is(err, ErrChunk) {
		t.Errorf("assembling: got %v, want ErrChunk", err)
	}
	if _, err := b.ReaderAt(t.Context()).ReadAt(make([]byte, 2<<20), 0); !errors.Is(err, ErrChunk) {
		t.Errorf("reading: got %v, want ErrChunk", err)
	}
}

type discard struct{}

func (discard) WriteAt(p []byte, _ int64) (int, error) { return len(p), nil }

// TestOpenFindsForgeries: nothing that is changed under a signature is taken.
func TestOpenFindsForgeries(t *testing.T) {
	key := newKey(t)
	src, _ := sparse(t, 1<<20, map[int64][]byte{0: noise(1, 300_000)})
	for name, c := range map[string]struct {
		file   string
		change func(b []byte) []byte
		want   error
	}{
		"manifest":        {"b/x.manifest", func(b []byte) []byte { return bytes.Replace(b, []byte("x86_64"), []byte("arm64"), 1) }, ErrSignature},
		"white space":     {"b/x.manifest", func(b []byte) []byte { return append(b, '\n') }, ErrSignature},
		"truncated":       {"b/x.manifest", func(b []byte) []byte { return b[:100] }, ErrSignature},
		"signature":       {"b/x.manifest.sig", func(b []byte) []byte { return b[:50] }, ErrSignature},
		"index":           {"b/x.caibx", func(b []byte) []byte { b[100]++; return b }, ErrIndex},
		"truncated index": {"b/x.caibx", func(b []byte) []byte { return b[:len(b)-tableItem] }, ErrIndex},
		"longer index":    {"b/x.caibx", func(b []byte) []byte { return append(b, 0) }, nil},
		"no index":        {"b/x.caibx", nil, ErrIndex},
	} {
		store := newStore(t)
		mustCreate(t, store, "b/x", src, key)
		path := filepath.Join(store.Path(), c.file)
		b := readAll(t, path)
		must(t, os.Remove(path))
		if c.change != nil {
			must(t, os.WriteFile(path, c.change(b), 0o600))
		}
		_, err := Open(t.Context(), store, "b/x", trusting(key))
		if err == nil || c.want != nil && !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", name, err, c.want)
		}
	}
}

func TestCreateRefuses(t *testing.T) {
	store, key := newStore(t), newKey(t)
	src, _ := sparse(t, 1<<20, nil)
	mustCreate(t, store, "b/x", src, key)
	try := func(change func(*CreateInput)) error {
		in := CreateInput{Store: store, Location: "b/y", Source: src, Manifest: testManifest(), Key: key, Progress: ami.NoProgress}
		change(&in)
		_, _, err := Create(t.Context(), in)
		return err
	}
	for name, c := range map[string]struct {
		change func(*CreateInput)
		want   error
	}{
		"exists":      {func(in *CreateInput) { in.Location = "b/x" }, ErrExists},
		"location":    {func(in *CreateInput) { in.Location = "x" }, ErrBadAddress},
		"own folder":  {func(in *CreateInput) { in.Location = "b/chunks/x" }, ErrBadAddress},
		"chunk sizes": {func(in *CreateInput) { in.ChunkSizes = ChunkSizes{1, 2, 3} }, ErrTemplate},
		"manifest":    {func(in *CreateInput) { in.Manifest.Architecture = "vax" }, ErrManifest},
	} {
		if err := try(c.change); !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", name, err, c.want)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := Create(ctx, CreateInput{Store: store, Location: "b/z", Source: src, Manifest: testManifest(), Progress: ami.NoProgress}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
	if all, err := filepath.Glob(filepath.Join(store.Path(), "b", leasesFolder, "*")); err != nil || len(all) > 0 {
		t.Errorf("leases are left: %q, %v", all, err)
	}
}

// TestNobodyTakesAwayWhatIsBeingMade: while a bundle is created no chunk goes, and
// while chunks go no bundle is begun.
func TestNobodyTakesAwayWhatIsBeingMade(t *testing.T) {
	store, key := newStore(t), newKey(t)
	src, _ := sparse(t, 2<<20, map[int64][]byte{0: noise(1, 1<<20)})
	mustCreate(t, store, "b/x", src, key)
	making, err := create(t.Context(), store, "b", ami.NoProgress)
	must(t, err)
	swept, err := Delete(t.Context(), store, "b/x")
	if err != nil || swept.Chunks != 0 || !strings.Contains(swept.Left, "being created") {
		t.Errorf("got %+v, %v", swept, err)
	}
	making.release(t.Context())
	sweep, err := sweeping(t.Context(), store, "b")
	must(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := create(ctx, store, "b", ami.NoProgress); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want it to wait", err)
	}
	if _, err := sweeping(t.Context(), store, "b"); !errors.Is(err, ErrInUse) {
		t.Errorf("got %v for two who sweep", err)
	}
	sweep.release(t.Context())
	// What killed commands have left counts for some time, and no longer.
	for _, name := range []string{"create-dead", sweepLease} {
		must(t, object.WriteSmall(t.Context(), store, leases("b")+"/"+name, []byte("x")))
		old := time.Now().Add(-2 * leaseTime)
		must(t, os.Chtimes(filepath.Join(store.Path(), leases("b"), name), old, old))
	}
	swept, err = Sweep(t.Context(), store, "b")
	if err != nil || swept.Chunks == 0 || swept.Left != "" {
		t.Errorf("got %+v, %v", swept, err)
	}
	mustCreate(t, store, "b/x", src, key)
}

// TestSweepKeepsWhatItCannotRead: an index that is damaged may need any chunk; one
// that a killed command has left needs none.
func TestSweepKeepsWhatItCannotRead(t *testing.T) {
	store, key := newStore(t), newKey(t)
	src, _ := sparse(t, 2<<20, map[int64][]byte{0: noise(1, 1<<20)})
	mustCreate(t, store, "b/x", src, key)
	must(t, object.WriteSmall(t.Context(), store, "b/bad.caibx", []byte("bad")))
	swept, err := Delete(t.Context(), store, "b/x")
	if err != nil || swept.Chunks != 0 || !strings.Contains(swept.Left, "bad.caibx") {
		t.Errorf("got %+v, %v", swept, err)
	}
	old := time.Now().Add(-2 * abandoned)
	must(t, os.Chtimes(filepath.Join(store.Path(), "b/bad.caibx"), old, old))
	swept, err = Sweep(t.Context(), store, "b")
	if err != nil || swept.Chunks == 0 {
		t.Errorf("got %+v, %v", swept, err)
	}
	if _, err := os.Stat(filepath.Join(store.Path(), "b/bad.caibx")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the index of nothing is left: %v", err)
	}
}
