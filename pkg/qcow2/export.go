package qcow2

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"

	"golang.org/x/sync/errgroup"
)

// WriteRaw writes all of src to w, which is empty, as a raw disk: what is zero
// stays a hole. progress is told of the bytes dealt with.
func WriteRaw(ctx context.Context, w *os.File, src Source, progress func(n int64)) error {
	if err := w.Truncate(src.Size()); err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	err := src.Extents(ctx, 0, src.Size(), func(off, length int64, state ExtentState) error {
		if state != Data {
			progress(length)
			return nil
		}
		for end := off + length; off < end; {
			at, n := off, min(end-off, BlockSize)
			off += n
			g.Go(func() error {
				if err := ctx.Err(); err != nil {
					return err
				}
				buf := make([]byte, n)
				if got, err := src.ReadAt(buf, at); err != nil && !(errors.Is(err, io.EOF) && int64(got) == n) {
					return fmt.Errorf("reading the disk at %d: %w", at, err)
				}
				progress(n)
				if isZero(buf) {
					return nil
				}
				_, err := w.WriteAt(buf, at)
				return err
			})
		}
		return ctx.Err()
	})
	return errors.Join(err, g.Wait())
}
