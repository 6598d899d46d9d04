package bundle

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/kamivm/kami/pkg/digest"
)

// Fault is a chunk that is wrong or missing.
type Fault struct {
	Chunk  string `json:"Chunk"`  // its id
	Offset int64  `json:"Offset"` // in the blob, where it is needed first
	Size   int64  `json:"Size"`   // bytes
	Fault  string `json:"Fault"`
}

// Report is what verifying a bundle found.
type Report struct {
	Location string  `json:"Location"`
	Signer   string  `json:"Signer,omitempty"` // fingerprint
	Trusted  bool    `json:"Trusted"`
	Chunks   int     `json:"Chunks"`
	Bytes    int64   `json:"Bytes"` // of the blob
	Faults   []Fault `json:"Faults"`
}

// maxFaults bounds a report.
const maxFaults = 1000

// Verify reads every chunk, and the blob as a whole where no chunk is wrong. What
// is wrong with chunks is in the report; an error means that it could not be found
// out. ErrManifest is returned for a blob that is not the manifest's, though all
// its chunks are the index's.
func (b *Bundle) Verify(ctx context.Context, progress func(int64)) (Report, error) {
	rep := Report{Location: b.location.String(), Chunks: b.index.count(), Bytes: b.Size(), Faults: []Fault{}}
	rep.Signer, rep.Trusted = b.Signer()
	type piece struct {
		size  int64
		ready chan struct{}
		plain []byte
	}
	var (
		mu    sync.Mutex
		ahead = make(chan *piece, fetchers())
		h     = sha256.New()
		zero  = make([]byte, b.index.sizes.Max)
		seen  = map[chunkID]bool{} // wrong ones
	)
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { // in order, however they come
		for p := range ahead {
			select {
			case <-p.ready:
			case <-gctx.Done():
				return gctx.Err()
			}
			h.Write(p.plain)
			progress(p.size)
		}
		return nil
	})
	g.Go(func() error {
		defer close(ahead)
		var fetch errgroup.Group
		fetch.SetLimit(fetchers())
		defer fetch.Wait() //nolint:errcheck // its errors are g's
		for i := range b.index.count() {
			start, size, id := b.index.chunk(i)
			p := &piece{size: size, ready: make(chan struct{}), plain: zero}
			select {
			case ahead <- p:
			case <-gctx.Done():
				return gctx.Err()
			}
			if id == b.zero {
				close(p.ready)
				continue
			}
			fetch.Go(func() error {
				defer close(p.ready)
				plain, err := b.chunk(gctx, i)
				p.plain = plain
				switch {
				case err == nil:
				case gctx.Err() != nil:
				case errors.Is(err, ErrChunk):
					mu.Lock()
					if !seen[id] && len(rep.Faults) < maxFaults {
						rep.Faults = append(rep.Faults, Fault{id.String(), start, size, err.Error()})
					}
					seen[id] = true
					mu.Unlock()
				default:
					g.Go(func() error { return err })
				}
				return nil
			})
		}
		return nil
	})
	if err := g.Wait(); err != nil {
		return rep, err
	}
	if got := digest.FromSum([32]byte(h.Sum(nil))); len(rep.Faults) == 0 && got != b.manifest.Digest {
		return rep, fmt.Errorf("%w: the blob's SHA-256 is %s, not %s", ErrManifest, got, b.manifest.Digest)
	}
	return rep, nil
}
