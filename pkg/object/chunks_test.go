package object_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/kamivm/kami/pkg/object"
	"github.com/kamivm/kami/pkg/object/objecttest"
)

// counted counts the bytes and requests that go to a store.
type counted struct {
	object.Store
	puts, gets, stats atomic.Int64
}

func (c *counted) Put(ctx context.Context, name string, r io.ReadSeeker, size int64) error {
	c.puts.Add(1)
	return c.Store.Put(ctx, name, r, size)
}

func (c *counted) Get(ctx context.Context, name string) (io.ReadCloser, object.Info, error) {
	c.gets.Add(1)
	return c.Store.Get(ctx, name)
}

func (c *counted) Stat(ctx context.Context, name string) (object.Info, error) {
	c.stats.Add(1)
	return c.Store.Stat(ctx, name)
}

func (c *counted) Touch(ctx context.Context, name string) error {
	return c.Store.(object.Toucher).Touch(ctx, name)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newChunks(t *testing.T, s object.Store, prefix string) *object.Chunks {
	t.Helper()
	c, err := object.NewChunks(s, prefix)
	must(t, err)
	return c
}

func dirStore(t *testing.T) (*object.Dir, string) {
	t.Helper()
	dir := t.TempDir()
	s, err := object.OpenDir(dir)
	must(t, err)
	t.Cleanup(func() { s.Close() })
	return s, dir
}

// chunk is the i-th of some chunks that compress to a half.
func chunk(i int) (object.ChunkID, []byte) {
	b := append(noise(2000), bytes.Repeat([]byte{byte(i), byte(i >> 8), byte(i >> 16)}, 700)...)
	return object.SumChunk(b), b
}

// age makes all files under dir older.
func age(t *testing.T, dir string, by time.Duration) {
	t.Helper()
	must(t, filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		when := time.Now().Add(-by)
		return os.Chtimes(path, when, when)
	}))
}

// testChunks tests chunks in a store that keeps its files under dir. touches says
// that it can make them young without sending them.
func testChunks(t *testing.T, s object.Store, dir string, touches bool) {
	ctx := t.Context()
	store := &counted{Store: s}
	c := newChunks(t, store, "images/chunks")
	var ids []object.ChunkID
	for i := range 40 {
		id, b := chunk(i)
		ids = append(ids, id)
		if there, err := c.Has(ctx, id); err != nil || there {
			t.Fatalf("Has of nothing: %v, %v", there, err)
		}
		sent, err := c.Put(ctx, id, b)
		if err != nil || sent == 0 || sent >= int64(len(b)) {
			t.Fatalf("Put: %d of %d bytes sent, %v", sent, len(b), err)
		}
	}
	for i, id := range ids {
		_, b := chunk(i)
		sent, err := c.Put(ctx, id, b)
		if err != nil || sent != 0 {
			t.Errorf("Put of what is there: %d bytes sent, %v", sent, err)
		}
		got, err := c.Get(ctx, id)
		if err != nil || !bytes.Equal(got, b) {
			t.Errorf("Get: %d bytes, %v", len(got), err)
		}
		name := fmt.Sprintf("images/chunks/%s/%s.cacnk", id.String()[:4], id)
		if _, err := s.Stat(ctx, name); err != nil {
			t.Error(err)
		}
	}
	if n := store.puts.Load(); n != 40 {
		t.Errorf("%d objects were put for 40 chunks", n)
	}
	absent, _ := chunk(1000)
	if _, err := c.Get(ctx, absent); !errors.Is(err, object.ErrNotFound) {
		t.Errorf("Get: %v, want ErrNotFound", err)
	}
	missing, err := c.Missing(ctx, slices.Concat(ids[:3], []object.ChunkID{absent, ids[2], absent}))
	if err != nil || !slices.Equal(missing, []object.ChunkID{absent}) {
		t.Errorf("Missing: %v, %v", missing, err)
	}
	if _, err := c.Put(ctx, absent, []byte("other")); !errors.Is(err, object.ErrDamaged) {
		t.Errorf("Put under a wrong id: %v, want ErrDamaged", err)
	}

	// What is old is made young by who needs it, and else pruned.
	age(t, dir, 100*time.Hour)
	store.puts.Store(0)
	_, b := chunk(0)
	if sent, err := c.Put(ctx, ids[0], b); err != nil || (sent == 0) != touches {
		t.Errorf("Put of an old chunk: %d bytes sent, %v", sent, err)
	}
	lean := func(from, to int) {
		missing, err := c.Missing(ctx, ids[from:to])
		if err != nil || touches && len(missing) > 0 {
			t.Errorf("Missing of old chunks: %d, %v", len(missing), err)
		}
		for i := from; i < to; i++ {
			if _, b := chunk(i); slices.Contains(missing, ids[i]) {
				_, err := c.Put(ctx, ids[i], b)
				must(t, err)
			}
		}
	}
	lean(1, 3)
	keep := func(id object.ChunkID) bool { return id == ids[5] }
	must(t, s.Put(ctx, "images/chunks/readme.txt", bytes.NewReader([]byte("not a chunk")), 11))
	plan, err := c.PlanPrune(ctx, keep, 72*time.Hour)
	if err != nil || plan.Kept != 1 || plan.Young != 3 || plan.Gone != 36 || plan.Bytes == 0 {
		t.Errorf("PlanPrune: %d kept, %d young, %d gone with %d bytes, %v", plan.Kept, plan.Young, plan.Gone, plan.Bytes, err)
	}
	lean(0, len(ids))
	if n, _, err := plan.Execute(ctx); err != nil || n != 0 { // a writer was here
		t.Errorf("Execute deleted %d chunks that a writer leans on, %v", n, err)
	}
	age(t, dir, 100*time.Hour)
	plan, err = c.PlanPrune(ctx, keep, 72*time.Hour)
	must(t, err)
	n, freed, err := plan.Execute(ctx)
	if err != nil || n != 39 || freed != plan.Bytes {
		t.Errorf("Execute: %d chunks, %d bytes, %v, want 39, %d", n, freed, err, plan.Bytes)
	}
	for i, id := range ids {
		if there, err := c.Has(ctx, id); err != nil || there != (i == 5) {
			t.Errorf("after it, Has of chunk %d: %v, %v", i, there, err)
		}
	}
	if _, err := s.Stat(ctx, "images/chunks/readme.txt"); err != nil {
		t.Error(err)
	}
}

func TestChunks(t *testing.T) {
	t.Run("dir", func(t *testing.T) {
		s, dir := dirStore(t)
		testChunks(t, s, dir, true)
	})
	t.Run("s3", func(t *testing.T) {
		server := objecttest.StartS3(t)
		testChunks(t, opener(t, server.URL(t), quick())(), server.Dir, false)
	})
	t.Run("sftp", func(t *testing.T) {
		host, opts := objecttest.StartSSH(t), quick()
		opts.SSH = host.Client
		testChunks(t, opener(t, host.URL(t), opts)(), host.Dir, true)
	})
}

// One that is damaged, too large or unfinished is never taken for a chunk.
func TestChunksVerify(t *testing.T) {
	ctx := t.Context()
	s, _ := dirStore(t)
	c := newChunks(t, s, "")
	enc, err := zstd.NewWriter(nil)
	must(t, err)
	id, b := chunk(1)
	packed := enc.EncodeAll(b, nil)
	other, ob := chunk(2)
	bomb := enc.EncodeAll(make([]byte, 1<<30), nil)
	flipped := bytes.Clone(packed)
	flipped[len(flipped)/2] ^= 1
	name := func(id object.ChunkID) string { return id.String()[:4] + "/" + id.String() + ".cacnk" }
	for _, tt := range []struct {
		name string
		data []byte
	}{
		{"another chunk", enc.EncodeAll(ob, nil)},
		{"a flipped bit", flipped},
		{"a part", packed[:len(packed)-1]},
		{"empty", nil},
		{"plain", b},
		{"a bomb", bomb},
		{"too long", make([]byte, object.MaxChunk+1)},
	} {
		must(t, s.Put(ctx, name(id), bytes.NewReader(tt.data), int64(len(tt.data))))
		if got, err := c.Get(ctx, id); !errors.Is(err, object.ErrDamaged) || got != nil {
			t.Errorf("%s: got %d bytes, %v, want ErrDamaged", tt.name, len(got), err)
		}
	}
	must(t, s.Put(ctx, name(other), bytes.NewReader(nil), 0))
	if sent, err := c.Put(ctx, other, ob); err != nil || sent == 0 {
		t.Errorf("Put over an empty file: %d bytes, %v", sent, err)
	}
}

// Those who store one chunk at once send it once.
func TestChunksOnce(t *testing.T) {
	s, _ := dirStore(t)
	store := &counted{Store: s}
	c := newChunks(t, store, "")
	id, b := chunk(1)
	var wg sync.WaitGroup
	for range 16 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			if _, err := c.Put(t.Context(), id, b); err != nil {
				t.Error(err)
			}
		}()
	}
	wg.Wait()
	if n := store.puts.Load(); n != 1 {
		t.Errorf("sent %d times, want once", n)
	}
}

func TestChunksMissingInBulk(t *testing.T) {
	server := objecttest.StartS3(t)
	proxy := objecttest.StartProxy(t, server.Endpoint)
	s := opener(t, "s3://"+server.Bucket(t)+"?endpoint="+proxy.Endpoint, quick())()
	c := newChunks(t, s, "c")
	var ids, want []object.ChunkID
	for i := range 1000 {
		id, b := chunk(i)
		ids = append(ids, id)
		if i%10 == 0 {
			want = append(want, id)
			continue
		}
		_, err := c.Put(t.Context(), id, b)
		must(t, err)
	}
	proxy.Always(nil)
	got, err := c.Missing(t.Context(), ids)
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("got %d ids, %v, want %d", len(got), err, len(want))
	}
	if lists, heads := proxy.Seen("GET"), proxy.Seen("HEAD"); lists > 20 || heads > 50 {
		t.Errorf("%d lists and %d heads for 1000 chunks", lists, heads)
	}
	// Among very many others it does not list them all.
	got, err = c.Missing(t.Context(), ids[:20])
	if err != nil || len(got) != 2 {
		t.Errorf("got %d ids, %v, want 2", len(got), err)
	}
}

func TestCached(t *testing.T) {
	ctx := t.Context()
	s, _ := dirStore(t)
	store := &counted{Store: s}
	plain := newChunks(t, store, "x")
	var ids []object.ChunkID
	for i := range 200 {
		id, b := chunk(i)
		ids = append(ids, id)
		_, err := plain.Put(ctx, id, b)
		must(t, err)
	}
	dir := filepath.Join(t.TempDir(), "cache")
	const limit = 100_000 // of 200 chunks of 2 KB
	c, err := plain.Cached(dir, limit)
	must(t, err)
	used := func() (n int64) {
		filepath.WalkDir(dir, func(_ string, d os.DirEntry, _ error) error {
			if st, err := d.Info(); err == nil && !d.IsDir() {
				n += st.Size()
			}
			return nil
		})
		return n
	}
	for i, id := range ids {
		got, err := c.Get(ctx, id)
		if _, b := chunk(i); err != nil || !bytes.Equal(got, b) {
			t.Fatalf("Get: %d bytes, %v", len(got), err)
		}
		if n := used(); n > limit {
			t.Fatalf("the cache has %d bytes after %d chunks, more than %d", n, i+1, limit)
		}
	}
	store.gets.Store(0)
	for range 3 {
		for i := 190; i < 200; i++ {
			_, err := c.Get(ctx, ids[i])
			must(t, err)
		}
	}
	if n := store.gets.Load(); n != 0 {
		t.Errorf("%d of the last 10 chunks were fetched again", n)
	}
	// What is damaged there is fetched anew.
	hex := ids[199].String()
	path := filepath.Join(dir, hex[:4], hex+".cacnk")
	must(t, os.WriteFile(path, []byte("rotten"), 0o600))
	for range 2 {
		got, err := c.Get(ctx, ids[199])
		if _, b := chunk(199); err != nil || !bytes.Equal(got, b) {
			t.Errorf("Get of what is damaged in the cache: %d bytes, %v", len(got), err)
		}
	}
	if n := store.gets.Load(); n != 1 {
		t.Errorf("fetched %d times, want once", n)
	}
	// Many who want one chunk fetch it once.
	must(t, os.Remove(path))
	store.gets.Store(0)
	var wg sync.WaitGroup
	for range 8 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			if _, err := c.Get(ctx, ids[199]); err != nil {
				t.Error(err)
			}
		}()
	}
	wg.Wait()
	if n := store.gets.Load(); n != 1 {
		t.Errorf("8 at once fetched it %d times, want once", n)
	}
	// A cache that cannot be written to is none.
	must(t, os.RemoveAll(dir))
	must(t, os.WriteFile(dir, nil, 0o600))
	if _, err := c.Get(ctx, ids[0]); err != nil {
		t.Errorf("Get without a cache: %v", err)
	}
}
