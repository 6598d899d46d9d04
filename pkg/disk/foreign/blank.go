package foreign

import (
	"bytes"
	"context"
	"errors"

	"github.com/kamivm/kami/pkg/qcow2"
)

var errData = errors.New("there is data")

// isBlank says whether a disk has nothing but zeros. Holes cost no reading, and
// a disk with anything on it mostly has it at the beginning.
func isBlank(ctx context.Context, src qcow2.Source) (bool, error) {
	buf := make([]byte, 1<<20)
	zero := make([]byte, len(buf))
	err := src.Extents(ctx, 0, src.Size(), func(off, length int64, state qcow2.ExtentState) error {
		if state != qcow2.Data {
			return nil
		}
		for end := off + length; off < end; {
			if err := ctx.Err(); err != nil {
				return err
			}
			b := buf[:min(int64(len(buf)), end-off)]
			if err := readAt(src, b, off); err != nil {
				return err
			}
			if !bytes.Equal(b, zero[:len(b)]) {
				return errData
			}
			off += int64(len(b))
		}
		return nil
	})
	if errors.Is(err, errData) {
		return false, nil
	}
	return err == nil, err
}
