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

// holeSize is what filesystems allocate, in bytes: less is no hole.
const holeSize = 4 << 10

// WriteSparse writes p to a place of a file that has nothing there, but for pages of
// zeros, which become holes. If there are some at its end, the file may be too short.
func WriteSparse(w io.WriterAt, p []byte, off int64) error {
	for len(p) > 0 {
		n, zero := 0, 0 // bytes to write, and of the page of zeros behind them
		for n < len(p) {
			step := min(holeSize-int((off+int64(n))%holeSize), len(p)-n)
			if isZero(p[n : n+step]) {
				zero = step
				break
			}
			n += step
		}
		if n > 0 {
			if _, err := w.WriteAt(p[:n], off); err != nil {
				return err
			}
		}
		p, off = p[n+zero:], off+int64(n+zero)
	}
	return nil
}
