package object

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

// Prune is a plan to delete the chunks that nobody needs. Nothing is deleted
// before Execute.
type Prune struct {
	Kept  int   // chunks that are needed
	Young int   // chunks that are not, and stay for their age
	Gone  int   // chunks to delete
	Bytes int64 // that these have, as they are kept

	chunks    *Chunks
	olderThan time.Duration
	delete    []Info
}

// PlanPrune looks for the chunks that keep does not want and that are older than
// olderThan, by the store's clock as far as it goes with this host's. keep is
// called once a chunk, from one goroutine.
//
// A writer's chunks are in no index before it has ended. So that none of them
// goes, olderThan is to be longer than a writer takes, and a day more: Put and
// Missing make chunks that are there already young again once a day. What is left
// is the moment between the look at a chunk's age and its deletion; who cannot
// have that keeps writers off meanwhile.
func (c *Chunks) PlanPrune(ctx context.Context, keep func(ChunkID) bool, olderThan time.Duration) (*Prune, error) {
	p := &Prune{chunks: c, olderThan: olderThan}
	now := time.Now()
	under := c.prefix
	if under != "" {
		under += "/"
	}
	err := c.store.List(ctx, under, func(o Info) error {
		id, ok := c.chunkID(o.Name)
		switch {
		case !ok: // somebody else's
		case keep(id):
			p.Kept++
		case now.Sub(o.Modified) <= olderThan:
			p.Young++
		default:
			p.Gone++
			p.Bytes += o.Size
			p.delete = append(p.delete, o)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("looking for chunks in %s: %w", c, err)
	}
	return p, nil
}

// Execute deletes what the plan names, but for chunks that are young by now, and
// returns how many and how many bytes. One that cannot be deleted does not keep
// the others; a store that cannot be reached does.
func (p *Prune) Execute(ctx context.Context) (deleted int, freed int64, err error) {
	var n, bytes atomic.Int64
	var mu sync.Mutex
	var failed error
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(parallelStats)
	for _, o := range p.delete {
		if gctx.Err() != nil {
			break
		}
		g.Go(func() error {
			now, err := p.chunks.store.Stat(gctx, o.Name)
			if errors.Is(err, ErrNotFound) || err == nil && time.Since(now.Modified) <= p.olderThan {
				return nil
			}
			if err == nil {
				err = p.chunks.store.Delete(gctx, o.Name)
			}
			switch {
			case err == nil:
				n.Add(1)
				bytes.Add(now.Size)
			case errors.Is(err, ErrUnreachable), errors.Is(err, ErrDenied), gctx.Err() != nil:
				return err
			default:
				mu.Lock()
				defer mu.Unlock()
				if failed == nil { // the first of them
					failed = err
				}
			}
			return nil
		})
	}
	err = g.Wait()
	if err == nil {
		err = errors.Join(ctx.Err(), failed)
	}
	return int(n.Load()), bytes.Load(), err
}
