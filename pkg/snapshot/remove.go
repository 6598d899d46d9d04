package snapshot

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/digest"
	"github.com/kamivm/kami/pkg/internal/durable"
)

// RemoveLayer removes a layer. It returns ErrInUse when a layer or head stands
// on it. One that is not there is no error.
func (s *Store) RemoveLayer(d digest.Digest) error {
	for _, kind := range []struct{ glob, dir string }{{"layers/*.qcow2", ""}, {"volumes/*.qcow2", "../layers/"}} {
		names, err := filepath.Glob(filepath.Join(s.root, kind.glob))
		if err != nil {
			return err
		}
		for _, name := range names {
			_, parent, _, err := inspect(name, kind.dir)
			if err != nil && !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrNotFound) {
				return err
			}
			if parent == d {
				return fmt.Errorf("%w: %s stands on %s", ErrInUse, filepath.Base(name), d.Short())
			}
		}
	}
	// The layer last: without its block list it is whole, and can be removed
	// again, while a list without a layer would stay.
	if err := durable.Remove(s.blocksPath(d)); err != nil {
		return err
	}
	return durable.Remove(s.layerPath(d))
}

// VerifyLayer reads a layer and compares it with its name, and sees that all that
// it stands on is there. It returns ErrCorrupt or ErrNotFound.
func (s *Store) VerifyLayer(ctx context.Context, d digest.Digest, step ami.Step) error {
	f, err := os.Open(s.layerPath(d))
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%w: %s", ErrNotFound, d.Short())
	}
	if err != nil {
		return err
	}
	defer f.Close()
	h, buf := sha256.New(), make([]byte, 1<<20)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := f.Read(buf)
		h.Write(buf[:n])
		step.Add(int64(n))
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("reading layer %s: %w", d.Short(), err)
		}
	}
	if got := digest.FromSum([sha256.Size]byte(h.Sum(nil))); got != d {
		return fmt.Errorf("%w: its bytes have the digest %s", ErrCorrupt, got.Short())
	}
	_, err = s.Layer(d)
	return err
}
