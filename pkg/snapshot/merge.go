package snapshot

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/digest"
	"github.com/kamivm/kami/pkg/qcow2"
)

// A layer never changes, so a chain is not shortened where it is: the content at
// its top is written once more, as a canonical layer that stands further down.
// Who names the old layer may then name the new one; the old one is garbage.

// LongChain says whether, since it was asked last, a layer was written or found
// written through this Store whose chain is past MaxDepth and is to be merged.
func (s *Store) LongChain() bool { return s.long.Swap(false) }

// Merge is a plan to write the content of a layer on a shorter chain.
type Merge struct {
	chain []Layer // from the layer on
	n     int     // how many of them are put into one
}

// PlanMerge plans how to shorten the chain of a layer that is past MaxDepth.
// equal names a layer of the same content as an ancestor that is past it too and
// was merged already, "" for none: the new layer then stands on that one's chain.
// It returns ErrNotFound or ErrCorrupt, and the errors of equal.
func (s *Store) PlanMerge(d digest.Digest, equal func(Layer) (digest.Digest, error)) (Merge, error) {
	chain, err := s.lineage(d)
	if err != nil {
		return Merge{}, err
	}
	least := 1
	for i := 1; i < len(chain)-MaxDepth; i++ {
		e, err := equal(chain[i])
		if err != nil {
			return Merge{}, err
		}
		if e == "" {
			continue
		}
		below, err := s.lineage(e)
		if err != nil {
			return Merge{}, err
		}
		// The same content is no sign of the same length, for a last block is
		// taken as filled up with zeros; and what is encrypted is laid over
		// nothing that is not, or not so.
		if below[0].Size == chain[i].Size && below[0].KeyID == chain[i].KeyID {
			chain, least = append(chain[:i:i], below...), i
			break
		}
	}
	return Merge{chain, max(least, mergeCount(chain))}, nil
}

// mergeCount says how many layers of a chain, from its first on, are best put
// into one.
//
// The rule is that of stores of sorted runs: a layer is taken along where it is
// not much larger than all that lies on it. So the large base of a lineage stays
// where it is until the changes are half as much, each change is written again a
// few times however long the lineage gets, and cost follows change here too. Half
// of MaxDepth is left free, so that not every further layer has to be merged.
func mergeCount(chain []Layer) int {
	if len(chain) <= MaxDepth {
		return 1
	}
	n, sum := 1, chain[0].FileSize
	for n < len(chain) && (len(chain)-n+1 > MaxDepth/2 || chain[n].FileSize <= 2*sum) {
		sum += chain[n].FileSize
		n++
	}
	return n
}

// Parent is the layer that the merged one stands on, "" for none.
func (m Merge) Parent() digest.Digest {
	if m.n == len(m.chain) {
		return ""
	}
	return m.chain[m.n].Digest
}

// Depth is how long the chain is when it is merged.
func (m Merge) Depth() int { return len(m.chain) - m.n + 1 }

// Size is how large the layer's disk is, in bytes.
func (m Merge) Size() int64 { return m.chain[0].Size }

// MergeLayer does what was planned and returns the new layer when it is durable.
// What is written is read back and compared with the old layer's block digests
// before it has a name: ErrCorrupt says that something is damaged. step is told
// of twice the disk's size. It returns ErrNotFound for a layer that went
// meanwhile, and ErrNoSpace.
func (s *Store) MergeLayer(ctx context.Context, m Merge, step ami.Step) (Layer, error) {
	want, err := s.Blocks(ctx, m.chain[0].Digest)
	if err != nil {
		return Layer{}, err
	}
	paths := make([]string, len(m.chain))
	for i, l := range m.chain {
		paths[i] = s.layerPath(l.Digest)
	}
	top, err := s.openChain(paths)
	if err != nil {
		return Layer{}, err
	}
	defer top.Close()
	p, _, err := s.parent(ctx, m.Parent())
	if err != nil {
		return Layer{}, err
	}
	src, written := qcow2.Flatten(top), all(top.Size())
	if p != nil {
		defer p.Image.Close()
		if written, err = s.writtenBlocks(ctx, paths, m.n, top.Size()); err != nil {
			return Layer{}, err
		}
		src = someBlocks{src, written}
	}
	return s.write(ctx, src, p, m.Depth(), step, func(path string) error {
		img, err := s.openChain(append([]string{path}, paths[m.n:]...))
		if err != nil {
			return err
		}
		defer img.Close()
		return compare(ctx, img, want, written, step)
	})
}

// lineage describes a layer and all that it stands on, nearest first.
func (s *Store) lineage(d digest.Digest) ([]Layer, error) {
	paths, err := s.Chain(d)
	if err != nil {
		return nil, err
	}
	chain := make([]Layer, len(paths))
	for i, path := range paths {
		info, parent, st, err := inspect(path, "")
		if err != nil {
			return nil, err
		}
		chain[i] = Layer{
			Digest: d, Parent: parent, Size: info.Size, FileSize: st.Size(), Depth: len(paths) - i, Created: st.ModTime(),
			KeyID: info.KeyID,
		}
		d = parent
	}
	return chain, nil
}

func (s *Store) openChain(paths []string) (*qcow2.Image, error) {
	img, err := qcow2.OpenKeyed(s.keys, paths[0], paths[1:]...)
	if errors.Is(err, os.ErrNotExist) {
		err = fmt.Errorf("%w: %w", ErrNotFound, err)
	}
	return img, err
}

// blockSet is a set of a disk's blocks, a bit for each.
type blockSet []uint64

func newBlockSet(size int64) blockSet { return make(blockSet, (size/qcow2.BlockSize)/64+1) }

func all(size int64) blockSet {
	b := newBlockSet(size)
	for i := range b {
		b[i] = ^uint64(0)
	}
	return b
}

func (b blockSet) add(i int64)      { b[i/64] |= 1 << (i % 64) }
func (b blockSet) has(i int64) bool { return b[i/64]>>(i%64)&1 != 0 }

// writtenBlocks are the blocks in which one of the first n files of a chain says
// anything. The others are read from what lies under those, and are the same
// there.
func (s *Store) writtenBlocks(ctx context.Context, paths []string, n int, size int64) (blockSet, error) {
	blocks := newBlockSet(size)
	for i := range n {
		img, err := s.openChain(paths[i : i+2]) // with one under it, whose place it may leave empty
		if err != nil {
			return nil, err
		}
		err = img.Extents(ctx, 0, img.Size(), func(off, length int64, state qcow2.ExtentState) error {
			if state == qcow2.Unallocated {
				return nil
			}
			for block := off / qcow2.BlockSize; block*qcow2.BlockSize < off+length; block++ {
				blocks.add(block)
			}
			return nil
		})
		img.Close()
		if err != nil {
			return nil, err
		}
	}
	return blocks, nil
}

// someBlocks is a disk that differs only in some blocks from what it is written
// over.
type someBlocks struct {
	qcow2.Source
	blocks blockSet
}

// Encryption is the disk's.
func (s someBlocks) Encryption() *qcow2.Encryption { return encryptionOf(s.Source) }

// Extents calls fn with what may differ from the parent.
func (s someBlocks) Extents(ctx context.Context, off, length int64, fn func(off, length int64, state qcow2.ExtentState) error) error {
	for end := min(off+length, s.Size()); off < end; {
		if err := ctx.Err(); err != nil {
			return err
		}
		state, has := qcow2.Unallocated, s.blocks.has(off/qcow2.BlockSize)
		if has {
			state = qcow2.Data
		}
		next := off
		for next < end && s.blocks.has(next/qcow2.BlockSize) == has {
			next = (next/qcow2.BlockSize + 1) * qcow2.BlockSize
		}
		next = min(next, end)
		if err := fn(off, next-off, state); err != nil {
			return err
		}
		off = next
	}
	return nil
}

// compare reads blocks of a disk and holds them against their digests.
func compare(ctx context.Context, img *qcow2.Image, want *qcow2.Blocks, blocks blockSet, step ami.Step) error {
	buf := make([]byte, qcow2.BlockSize)
	told := int64(0)
	for i := range want.Len() {
		if err := ctx.Err(); err != nil {
			return err
		}
		if !blocks.has(i) {
			continue
		}
		clear(buf)
		if _, err := img.ReadAt(buf, i*qcow2.BlockSize); err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("reading back: %w", err)
		}
		if sha256.Sum256(buf) != want.Get(i) {
			return fmt.Errorf("%w: the block %d of the merged layer is not that of the chain", ErrCorrupt, i)
		}
		step.Add(i*qcow2.BlockSize - told)
		told = i * qcow2.BlockSize
	}
	step.Add(img.Size() - told)
	return nil
}
