package snapshot

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"runtime"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/digest"
	"github.com/kamivm/kami/pkg/qcow2"
)

// maxReaders bounds how many layers are read at once, and the memory for that.
const maxReaders = 16

// VerifyLayers verifies layers as VerifyLayer does, in their order, as many at once
// as there are processors, and calls told with what came of each, from several
// goroutines. One that is not well does not stop the others. Where ctx ends it
// returns its error, and of those that were not read to their end nothing is told.
func (s *Store) VerifyLayers(ctx context.Context, layers []digest.Digest, step ami.Step, told func(d digest.Digest, err error)) error {
	next := make(chan digest.Digest, len(layers))
	for _, d := range layers {
		next <- d
	}
	close(next)
	var g errgroup.Group
	for range min(runtime.GOMAXPROCS(0), maxReaders, len(layers)) {
		g.Go(func() error {
			buf := newAhead()
			for d := range next {
				err := s.verifyLayer(ctx, d, step, buf)
				if cerr := ctx.Err(); cerr != nil {
					return cerr
				}
				told(d, err)
			}
			return nil
		})
	}
	return g.Wait()
}

// VerifyLayer reads a layer and compares it with its name, and sees that the
// layer that it stands on is there; whether that one is well is told by its own
// verification. It returns ErrCorrupt or ErrNotFound.
func (s *Store) VerifyLayer(ctx context.Context, d digest.Digest, step ami.Step) error {
	return s.verifyLayer(ctx, d, step, newAhead())
}

func (s *Store) verifyLayer(ctx context.Context, d digest.Digest, step ami.Step, buf ahead) error {
	f, err := os.Open(s.layerPath(d))
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%w: %s", ErrNotFound, d.Short())
	}
	if err != nil {
		return err
	}
	defer f.Close()
	// The kernel may refuse: then it reads ahead by less.
	_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_SEQUENTIAL)
	h := sha256.New()
	if err := buf.hash(ctx, h, f, step.Add); err != nil {
		return fmt.Errorf("reading layer %s: %w", d.Short(), err)
	}
	if got := digest.FromSum([sha256.Size]byte(h.Sum(nil))); got != d {
		return fmt.Errorf("%w: its bytes have the digest %s", ErrCorrupt, got.Short())
	}
	_, parent, _, err := inspect(s.layerPath(d), "")
	if err != nil || parent == "" {
		return err
	}
	if _, err := os.Stat(s.layerPath(parent)); errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%w: %s, on which it stands", ErrNotFound, parent.Short())
	} else if err != nil {
		return err
	}
	return nil
}

// ahead is what is read while what was read before is hashed: pieces of some
// bytes. It is for one goroutine.
type ahead [aheadPieces][]byte

const (
	aheadPieces = 4
	aheadBytes  = 1 << 20
)

func newAhead() (a ahead) {
	for i := range a {
		a[i] = make([]byte, aheadBytes)
	}
	return a
}

// hash hashes what r gives and calls add with the number of bytes of each piece.
func (a ahead) hash(ctx context.Context, h hash.Hash, r io.Reader, add func(int64)) error {
	type piece struct {
		b   []byte
		err error
	}
	free, full := make(chan []byte, aheadPieces), make(chan piece, aheadPieces)
	for _, buf := range a {
		free <- buf
	}
	go func() {
		defer close(full)
		for buf := range free {
			n, err := io.ReadFull(r, buf)
			if errors.Is(err, io.ErrUnexpectedEOF) {
				err = io.EOF
			}
			if full <- (piece{buf[:n], err}); err != nil { // there is room for all pieces
				return
			}
		}
	}()
	defer func() { // the reader is gone when this returns, and the file can be closed
		close(free)
		for range full {
		}
	}()
	for p := range full {
		if err := ctx.Err(); err != nil {
			return err
		}
		h.Write(p.b)
		add(int64(len(p.b)))
		if errors.Is(p.err, io.EOF) {
			return nil
		}
		if p.err != nil {
			return p.err
		}
		free <- p.b[:cap(p.b)]
	}
	return nil
}

// ErrBlocks is wrapped by what VerifyBlocks returns.
var ErrBlocks = errors.New("damaged list of blocks")

// VerifyBlocks reads the list of a layer's block digests: that it is whole, is of
// a disk of size bytes (0 for any), and comes to the content digests that records
// have of the layer. No list is no error: it is made again when it is needed. It
// returns ErrBlocks.
func (s *Store) VerifyBlocks(d digest.Digest, size int64, contents ...digest.Digest) error {
	enc, err := s.encryptionOfLayer(d)
	if errors.Is(err, qcow2.ErrNoKey) || errors.Is(err, qcow2.ErrWrongKey) {
		return nil // who has the key can tell
	}
	if err != nil {
		return err
	}
	blocks, err := readBlocks(s.blocksPath(d), enc)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if errors.Is(err, qcow2.ErrCorrupt) {
		return fmt.Errorf("%w: %w", ErrBlocks, err)
	}
	if err != nil {
		return err
	}
	if size != 0 && qcow2.NewBlocks(size).Len() != blocks.Len() {
		return fmt.Errorf("%w: %d of them, for a disk of %d bytes", ErrBlocks, blocks.Len(), size)
	}
	if len(contents) == 0 {
		return nil
	}
	got := blocks.Content()
	for _, want := range contents {
		if got != want {
			return fmt.Errorf("%w: it comes to the content digest %s, and the record of a snapshot says %s", ErrBlocks, got.Short(), want.Short())
		}
	}
	return nil
}

// VerifyHead looks at the head of a volume: that it is there, stands on layer
// ("" for none) and is a disk of at least size bytes. Of one that no process has
// open the tables are looked at too; what a guest has written there has no digest
// that it could be compared with. It returns ErrNotFound or ErrCorrupt.
func (s *Store) VerifyHead(ctx context.Context, id ami.VolumeID, layer digest.Digest, size int64) error {
	info, parent, before, err := inspect(s.HeadPath(id), "../layers/")
	if err != nil {
		return err
	}
	if parent != layer {
		return fmt.Errorf("%w: the head of %s stands on %s, and its record says %s", ErrCorrupt, id, orNothing(parent), orNothing(layer))
	}
	if info.Size < size {
		return fmt.Errorf("%w: the head of %s is a disk of %d bytes, and its record says %d", ErrCorrupt, id, info.Size, size)
	}
	if busy, err := s.HeadBusy(id); err != nil || busy {
		return err
	}
	err = qcow2.CheckTables(ctx, s.HeadPath(id))
	if err == nil {
		return nil
	}
	// What a guest that was started meanwhile moves about is not damaged.
	busy, berr := s.HeadBusy(id)
	after, serr := os.Stat(s.HeadPath(id))
	if berr == nil && serr == nil && (busy || !after.ModTime().Equal(before.ModTime()) || after.Size() != before.Size()) {
		return nil
	}
	if errors.Is(err, qcow2.ErrCorrupt) || errors.Is(err, qcow2.ErrUnsupported) {
		err = fmt.Errorf("%w: the head of %s: %w", ErrCorrupt, id, err)
	}
	return err
}

func orNothing(d digest.Digest) string {
	if d == "" {
		return "nothing"
	}
	return d.Short()
}
