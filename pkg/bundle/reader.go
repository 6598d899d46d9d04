package bundle

import (
	"container/list"
	"context"
	"io"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/kamivm/kami/pkg/qcow2"
)

// cacheSize bounds what a reader keeps of a bundle, in bytes.
const cacheSize = 32 << 20

// ReaderAt reads the blob at any place; it fetches the chunks that are asked for
// and keeps the last of them. It is safe for concurrent use and has the methods of
// a qcow2.Source, so that a layer can be written from it. Reading ends with ctx.
func (b *Bundle) ReaderAt(ctx context.Context) *Reader {
	return &Reader{Bundle: b, ctx: ctx, cache: map[int]*cached{}}
}

// Reader is what ReaderAt returns.
type Reader struct {
	*Bundle
	ctx context.Context //nolint:containedctx // ReadAt takes none

	mu    sync.Mutex
	cache map[int]*cached
	order list.List // of the cache, the last used in front
	kept  int64     // bytes
}

var _ qcow2.Source = (*Reader)(nil)

// cached is a chunk that is or is being fetched.
type cached struct {
	at    int
	place *list.Element
	ready chan struct{}
	plain []byte
	err   error
}

// ReadAt fetches the chunks that it needs at the same time.
func (r *Reader) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off >= r.Size() {
		return 0, io.EOF
	}
	short := int64(len(p)) > r.Size()-off
	p = p[:min(int64(len(p)), r.Size()-off)]
	g, ctx := errgroup.WithContext(r.ctx)
	g.SetLimit(fetchers())
	for i, done := r.index.at(off), 0; done < len(p); i++ {
		start, size, id := r.index.chunk(i)
		skip := max(0, off-start)
		to := p[done:min(len(p), done+int(size-skip))]
		done += len(to)
		if id == r.zero {
			clear(to)
			continue
		}
		g.Go(func() error {
			plain, err := r.get(ctx, i)
			if err == nil {
				copy(to, plain[skip:])
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return 0, err
	}
	if short {
		return len(p), io.EOF
	}
	return len(p), nil
}

// get returns a chunk, fetched once for all who want it.
func (r *Reader) get(ctx context.Context, i int) ([]byte, error) {
	r.mu.Lock()
	c, ok := r.cache[i]
	if ok {
		r.order.MoveToFront(c.place)
		r.mu.Unlock()
		select {
		case <-c.ready:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		if c.err == nil || ctx.Err() != nil {
			return c.plain, c.err
		}
		return r.chunk(ctx, i) // whoever fetched it may have given up
	}
	c = &cached{at: i, ready: make(chan struct{})}
	c.place = r.order.PushFront(c)
	r.cache[i] = c
	_, size, _ := r.index.chunk(i)
	r.kept += size
	for r.kept > cacheSize && r.order.Len() > 1 {
		r.drop(r.order.Back().Value.(*cached))
	}
	r.mu.Unlock()
	c.plain, c.err = r.chunk(ctx, i)
	close(c.ready)
	if c.err != nil {
		r.mu.Lock()
		if r.cache[i] == c {
			r.drop(c)
		}
		r.mu.Unlock()
	}
	return c.plain, c.err
}

func (r *Reader) drop(c *cached) {
	_, size, _ := r.index.chunk(c.at)
	r.kept -= size
	r.order.Remove(c.place)
	delete(r.cache, c.at)
}
