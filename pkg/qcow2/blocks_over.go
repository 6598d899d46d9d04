package qcow2

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"

	"golang.org/x/sync/errgroup"
)

// HashBlocksOver returns the block digests of a source over a parent with those
// digests: only the blocks of which the source knows anything are read.
func HashBlocksOver(ctx context.Context, src Source, parent *Blocks) (*Blocks, error) {
	blocks := parent.resized(src.Size())
	var mu sync.Mutex
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(min(2*runtime.GOMAXPROCS(0), maxWorkers))
	last := int64(-1)
	err := src.Extents(ctx, 0, src.Size(), func(off, length int64, state ExtentState) error {
		if state == Unallocated {
			return nil
		}
		for i := max(off/BlockSize, last+1); i*BlockSize < off+length; i++ {
			if state == Zero && parent.Zero(i) && (i+1)*BlockSize <= off+length { // zeros over zeros
				continue
			}
			last = i
			g.Go(func() error {
				buf := make([]byte, BlockSize)
				if n, err := src.ReadAt(buf, i*BlockSize); err != nil && !errors.Is(err, io.EOF) {
					return fmt.Errorf("reading the disk at %d: %w", i*BlockSize+int64(n), err)
				}
				var sum [sha256.Size]byte
				if !isZero(buf) {
					sum = sha256.Sum256(buf)
				}
				mu.Lock()
				defer mu.Unlock()
				blocks.set(i, sum)
				return nil
			})
			if err := ctx.Err(); err != nil {
				return err
			}
		}
		return ctx.Err()
	})
	if failed := g.Wait(); failed != nil { // which is why ctx has ended
		return nil, failed
	}
	return blocks, err
}
