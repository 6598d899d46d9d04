package bundle

import (
	"context"
	"errors"
	"io"
	"os"
	"runtime"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/kamivm/kami/pkg/object"
	"github.com/kamivm/kami/pkg/object/cdc"
)

// Early packs a filesystem while it is still being made: mke2fs keeps one core busy,
// and writes what is in the files from front to back. What it has got to is cut and
// compressed on the other cores. When the filesystem is finished it is packed as any
// other; only, a chunk that is there already is not compressed once more. What was
// compressed in vain is thrown away.
//
// It is for stores in a folder of this host, where that is what takes the time. A
// nil Early does nothing.
type Early struct {
	sizes  cdc.Sizes
	bucket string
	sink   *batchSink // that it compresses with
	batch  *object.Batch

	mu   sync.Mutex
	kept map[chunkID]int64 // compressed, in bytes
}

// NewEarly begins to pack a bundle that is to be created in a store. The caller
// closes it.
func NewEarly(store object.Store, location string, sizes ChunkSizes) *Early {
	dir, ok := store.(*object.Dir)
	l, err := ParseLocation(location)
	if !ok || err != nil || runtime.GOMAXPROCS(0) < 2 || cdc.Sizes(sizes).Check() != nil {
		return nil
	}
	to, _, _ := newSink(store, l.Bucket)
	sink, ok := to.(*batchSink)
	if !ok {
		return nil
	}
	return &Early{sizes: cdc.Sizes(sizes), bucket: l.Bucket, sink: sink, batch: dir.Batch(), kept: map[chunkID]int64{}}
}

// Close throws away what was compressed in vain.
func (e *Early) Close() {
	if e != nil {
		e.batch.Discard()
	}
}

// follow packs the file at path, which another program writes, until stop is called.
func (e *Early) follow(ctx context.Context, path string) (stop func()) {
	if e == nil {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		f, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE, 0o600)
		if err != nil {
			return // it is packed later then
		}
		defer f.Close()
		e.pack(ctx, &growing{ctx: ctx, f: f})
	}()
	return func() {
		cancel()
		<-ended
	}
}

// pack cuts what r gives and keeps the chunks. What fails is done again later.
func (e *Early) pack(ctx context.Context, r *growing) {
	var g errgroup.Group
	g.SetLimit(max(1, runtime.GOMAXPROCS(0)-1))
	defer g.Wait() //nolint:errcheck // it returns none
	for ctx.Err() == nil {
		c, err := cdc.NewChunker(r, e.sizes)
		if err != nil {
			return
		}
		for {
			b, err := c.Next()
			if err != nil {
				return
			}
			if len(b) == 0 {
				break // a gap
			}
			b = slices.Clone(b)
			g.Go(func() error {
				e.keep(ctx, b)
				return nil
			})
		}
	}
}

func (e *Early) keep(ctx context.Context, plain []byte) {
	id := object.SumChunk(plain)
	e.mu.Lock()
	_, known := e.kept[id]
	e.mu.Unlock()
	if known || ctx.Err() != nil {
		return
	}
	if there, err := e.sink.has(ctx, id); err != nil || there {
		return
	}
	n, err := e.sink.packed(plain, func(b []byte) error { return e.batch.Put(ctx, chunkName(e.bucket, id), b) })
	if err != nil {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.kept[id] = n
}

// take moves a chunk to another batch, and returns how many bytes it has; 0 for one
// that was not kept.
func (e *Early) take(to *object.Batch, id chunkID) int64 {
	if e == nil {
		return 0
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	n := e.kept[id]
	if n == 0 || !to.Take(e.batch, chunkName(e.bucket, id)) {
		return 0
	}
	delete(e.kept, id)
	return n
}

// growing reads a sparse file that is being written. Where it is not known yet what
// comes it waits; a gap is the end of what can be cut in one go.
type growing struct {
	ctx context.Context //nolint:containedctx // that of the one pass
	f   *os.File
	pos int64
	end int64 // of what was written, for all that is known
}

const (
	// lag is how far behind the writer to stay: what it has written last may change.
	lag     = 4 << 20
	growGap = 64 << 10
	farGap  = 8 << 20 // between files and what is written about them elsewhere
	growNap = 5 * time.Millisecond
)

func (r *growing) Read(p []byte) (int, error) {
	for r.pos >= r.end {
		if err := r.ctx.Err(); err != nil {
			return 0, err
		}
		gap, err := r.look()
		if err != nil {
			return 0, err
		}
		if gap {
			return 0, io.EOF
		}
		if r.pos >= r.end {
			if err := pause(r.ctx, growNap); err != nil {
				return 0, err
			}
		}
	}
	n, err := r.f.ReadAt(p[:min(int64(len(p)), r.end-r.pos)], r.pos)
	r.pos += int64(n)
	return n, err
}

// look finds out how far the writer has come, and whether there is a gap: then it
// goes on behind that. Behind the front there are small holes still, of what the
// writer has not let go of yet.
func (r *growing) look() (gap bool, err error) {
	first, err := unix.Seek(int(r.f.Fd()), r.pos, unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if first-r.pos >= growGap && r.pos > 0 {
		r.pos, r.end = first, first
		return true, nil
	}
	front := max(first, r.end)
	for {
		hole, err := unix.Seek(int(r.f.Fd()), front, unix.SEEK_HOLE)
		if err != nil {
			return false, err
		}
		front = hole
		data, err := unix.Seek(int(r.f.Fd()), hole, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			front -= lag
			break
		}
		if err != nil {
			return false, err
		}
		if data-hole >= farGap {
			break
		}
		front = data
	}
	if r.pos == 0 {
		r.pos = first
	}
	r.end = max(r.end, front)
	return false, nil
}
