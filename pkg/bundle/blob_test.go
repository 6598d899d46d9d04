package bundle

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/object"
	"github.com/kamivm/kami/pkg/qcow2"
)

// bytesSource is a blob in memory.
type bytesSource struct{ *bytes.Reader }

func (b bytesSource) Extents(_ context.Context, off, length int64, fn func(off, length int64, state qcow2.ExtentState) error) error {
	return fn(off, min(length, b.Size()-off), qcow2.Data)
}

func noiseBlob(t *testing.T, n int, cut int) []byte {
	t.Helper()
	b := make([]byte, n)
	if _, err := io.ReadFull(rand.NewChaCha8([32]byte{1}), b); err != nil {
		t.Fatal(err)
	}
	return append(append(b[:cut:cut], "one more"...), b[cut:]...)
}

func TestBlobs(t *testing.T) {
	store, err := object.OpenDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	ctx, none := t.Context(), func(int64) {}
	first, second := noiseBlob(t, 4<<20, 0), noiseBlob(t, 4<<20, 1<<20)
	release, err := Making(ctx, store, "data", ami.NoProgress)
	if err != nil {
		t.Fatal(err)
	}
	index := map[string]IndexFile{}
	for _, b := range []struct {
		name  string
		bytes []byte
		least int64
		most  int64
	}{{"first", first, 4 << 20, 5 << 20}, {"second", second, 1, 1 << 18}, {"again", second, 0, 0}} {
		plan, err := PlanBlob(ctx, store, "data", bytesSource{bytes.NewReader(b.bytes)}, CopyChunkSizes, none)
		if err != nil {
			t.Fatal(err)
		}
		if plan.Lacking < b.least || plan.Lacking > b.most || plan.Bytes != int64(len(b.bytes)) {
			t.Errorf("%s: %d of %d bytes are lacking, want %d to %d", b.name, plan.Lacking, plan.Bytes, b.least, b.most)
		}
		sent, err := plan.Send(ctx, none)
		if err != nil || (sent.StoredBytes > 0) != (b.least > 0) {
			t.Errorf("%s: sent %+v (%v)", b.name, sent, err)
		}
		if err := plan.Look(ctx); err != nil || plan.Lacking != 0 {
			t.Errorf("%s: %d bytes are lacking still (%v)", b.name, plan.Lacking, err)
		}
		if index[b.name], err = plan.WriteIndex(ctx, "blobs/"+b.name); err != nil {
			t.Fatal(err)
		}
		r, err := OpenBlob(ctx, store, "data", index[b.name], nil)
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(b.bytes))
		if n, err := r.ReadAt(got, 0); n != len(got) || !bytes.Equal(got, b.bytes) {
			t.Errorf("%s: it comes back as another (%v)", b.name, err)
		}
	}
	keep := func(names ...string) func(context.Context) (func(string) bool, error) {
		return func(context.Context) (func(string) bool, error) {
			return func(name string) bool {
				for _, n := range names {
					if name == "blobs/"+n {
						return true
					}
				}
				return false
			}, nil
		}
	}
	// Nothing is deleted while somebody is at work.
	if done, err := SweepUnless(ctx, store, "data", keep()); err != nil || done.Left == "" || done.Chunks > 0 {
		t.Errorf("got %+v (%v), want all left", done, err)
	}
	release(ctx)
	unknown := func(context.Context) (func(string) bool, error) { return nil, nil }
	for _, tt := range []struct {
		name   string
		needed func(context.Context) (func(string) bool, error)
		some   bool
	}{{"unknown", unknown, false}, {"all", keep("first", "second", "again"), false}, {"one less", keep("first", "again"), false}, {"the first", keep("first"), true}, {"none", keep(), true}} {
		done, err := SweepUnless(ctx, store, "data", tt.needed)
		if err != nil || done.Chunks > 0 != tt.some {
			t.Errorf("%s: got %+v (%v)", tt.name, done, err)
		}
	}
	if _, err := OpenBlob(ctx, store, "data", index["first"], nil); !errors.Is(err, ErrIndex) {
		t.Errorf("got %v for an index that is gone, want ErrIndex", err)
	}
}
