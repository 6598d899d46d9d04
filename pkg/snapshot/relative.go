package snapshot

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/kamivm/kami/pkg/digest"
	"github.com/kamivm/kami/pkg/qcow2"
)

const (
	// sampleBlocks is how many blocks of a disk are looked at to find a relative.
	sampleBlocks = 128
	// minShared is how much of the sample has to be the same, in percent, for
	// standing on the relative to be worth a longer chain.
	minShared = 10
)

// Relative finds the layer that a disk without lineage shares most with, by the
// digests of a sample of its blocks: "" where standing on one would not pay. It
// reads the sample only, never the layers.
func (s *Store) Relative(ctx context.Context, src qcow2.Source) (digest.Digest, error) {
	layers, err := s.Layers(ctx)
	if err != nil {
		return "", err
	}
	// A layer at the end of a long chain cannot be stood on, nor one that is
	// encrypted, by what is not.
	layers = slices.DeleteFunc(layers, func(l Layer) bool {
		return l.Size == 0 || l.Size > src.Size() || l.Depth >= MaxDepth || l.KeyID != ""
	})
	if len(layers) == 0 {
		return "", nil
	}
	sums, err := sample(ctx, src)
	if err != nil || len(sums) == 0 {
		return "", err
	}
	// Of those that share as much, the one with the shortest chain, then any one
	// for good, so that the same store gives the same answer.
	slices.SortFunc(layers, func(a, b Layer) int {
		if a.Depth != b.Depth {
			return a.Depth - b.Depth
		}
		return slices.Compare([]byte(a.Digest), []byte(b.Digest))
	})
	best, most := digest.Digest(""), len(sums)*minShared/100
	for _, l := range layers {
		blocks, err := s.Blocks(ctx, l.Digest)
		if errors.Is(err, ErrNotFound) || errors.Is(err, ErrCorrupt) || errors.Is(err, qcow2.ErrCorrupt) {
			continue // verify reports it; nothing new is to stand on it
		}
		if err != nil {
			return "", err
		}
		shared := 0
		for i, sum := range sums {
			if blocks.Get(i) == sum {
				shared++
			}
		}
		if shared > most {
			best, most = l.Digest, shared
		}
	}
	return best, nil
}

// sample hashes blocks that are spread evenly over the data of a disk.
func sample(ctx context.Context, src qcow2.Source) (map[int64][sha256.Size]byte, error) {
	var data []int64
	err := src.Extents(ctx, 0, src.Size(), func(off, length int64, state qcow2.ExtentState) error {
		if state != qcow2.Data {
			return nil
		}
		for i := off / qcow2.BlockSize; i*qcow2.BlockSize < off+length; i++ {
			if n := len(data); n == 0 || data[n-1] < i {
				data = append(data, i)
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	picked := data
	if len(data) > sampleBlocks {
		picked = nil
		for k := range sampleBlocks {
			picked = append(picked, data[k*len(data)/sampleBlocks])
		}
	}
	sums := make([][sha256.Size]byte, len(picked))
	g, _ := errgroup.WithContext(ctx)
	g.SetLimit(4)
	for k, i := range picked {
		g.Go(func() error {
			buf := make([]byte, qcow2.BlockSize)
			if _, err := src.ReadAt(buf, i*qcow2.BlockSize); err != nil && !errors.Is(err, io.EOF) {
				return fmt.Errorf("reading the disk at %d: %w", i*qcow2.BlockSize, err)
			}
			sums[k] = sha256.Sum256(buf)
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	out, zero := map[int64][sha256.Size]byte{}, sha256.Sum256(make([]byte, qcow2.BlockSize))
	for k, i := range picked {
		if sums[k] != zero { // which all disks share, and which cost nothing
			out[i] = sums[k]
		}
	}
	return out, nil
}
