package snapshot

import (
	"bufio"
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/kamivm/kami/pkg/internal/durable"
	"github.com/kamivm/kami/pkg/qcow2"
)

// atZeros stands in a record in the place of where a block lies that is all
// zeros, and so lies nowhere.
const atZeros = math.MaxUint64

// Put puts a block of qcow2.BlockSize bytes, whose SHA-256 is sum, and returns
// when it is durable. The caller has a share of the draft. Of two that put one
// block at once, one comes last. It returns ErrNoSpace on a full disk.
func (d *Draft) Put(index int64, data []byte, sum [sha256.Size]byte) error {
	if err := d.store.checkFree(); err != nil {
		return err
	}
	at := int64(-1) // atZeros
	if len(bytes.TrimLeft(data, "\x00")) > 0 {
		err := d.alone(func() (err error) {
			at, err = d.grow(d.blocks, qcow2.BlockSize)
			return err
		})
		if err == nil {
			_, err = d.blocks.WriteAt(data, at)
		}
		durable.Step("draft.written")
		if err == nil {
			err = d.blocks.Sync()
		}
		if err != nil {
			return noSpace(fmt.Errorf("putting block %d: %w", index, err))
		}
	}
	durable.Step("draft.block")
	var rec entry
	binary.BigEndian.PutUint64(rec[0:], uint64(index))
	binary.BigEndian.PutUint64(rec[8:], uint64(at))
	copy(rec[16:], sum[:])
	rec.seal()
	err := d.alone(func() error {
		at, err := d.grow(d.journal, entrySize)
		if err == nil {
			_, err = d.journal.WriteAt(rec[:], at)
		}
		return err
	})
	durable.Step("draft.recorded")
	if err == nil {
		err = d.journal.Sync()
	}
	durable.Step("draft.put")
	if err != nil {
		return noSpace(fmt.Errorf("recording block %d: %w", index, err))
	}
	return nil
}

// alone runs fn while no one else who puts blocks does, in any process.
func (d *Draft) alone(fn func() error) error {
	if err := flock(d.blocks, unix.LOCK_EX); err != nil {
		return err
	}
	return errors.Join(fn(), flock(d.blocks, unix.LOCK_UN))
}

// grow makes a file longer by n bytes, which it returns the place of. What a
// killed process has left at the end is stepped over.
func (d *Draft) grow(f *os.File, n int64) (at int64, err error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	at = (info.Size() + n - 1) / n * n
	return at, f.Truncate(at + n)
}

// DraftBlocks are the blocks that were put into a draft, each as it was put
// last. They are read through the draft, which has to stay open.
type DraftBlocks struct {
	blocks *os.File
	all    []putBlock // by index
}

// putBlock is one of them, in 40 bytes: drafts of a disk of 64 TiB, the largest
// there is, have indexes and places, in blocks, of 27 bits.
type putBlock struct {
	index, place uint32 // place noPlace is a block of zeros
	sum          [sha256.Size]byte
}

const noPlace = math.MaxUint32

// Blocks reads which blocks were put. The caller has the draft alone. It returns
// ErrDraftDamaged.
func (d *Draft) Blocks() (*DraftBlocks, error) {
	info, err := d.journal.Stat()
	if err != nil {
		return nil, err
	}
	b := &DraftBlocks{blocks: d.blocks, all: make([]putBlock, 0, info.Size()/entrySize)}
	r := bufio.NewReaderSize(io.NewSectionReader(d.journal, entrySize, math.MaxInt64-entrySize), 1<<20)
	for {
		var rec entry
		if _, err := io.ReadFull(r, rec[:]); errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			break
		} else if err != nil {
			return nil, fmt.Errorf("reading the journal: %w", err)
		}
		if rec == (entry{}) {
			continue // its process was killed before it was put
		}
		if !rec.sound() { // which block's, it may not say: an older one must not stand for it
			return nil, fmt.Errorf("%w: a record of its journal cannot be read", ErrDraftDamaged)
		}
		index, at := binary.BigEndian.Uint64(rec[0:]), binary.BigEndian.Uint64(rec[8:])
		if index >= uint64(d.Size+qcow2.BlockSize-1)/qcow2.BlockSize || at != atZeros && (at%qcow2.BlockSize != 0 || at/qcow2.BlockSize >= noPlace) {
			return nil, fmt.Errorf("%w: block %d at %d", ErrDraftDamaged, index, at)
		}
		p := putBlock{index: uint32(index), place: noPlace, sum: [sha256.Size]byte(rec[16:])}
		if at != atZeros {
			p.place = uint32(at / qcow2.BlockSize)
		}
		b.all = append(b.all, p)
	}
	slices.SortStableFunc(b.all, func(x, y putBlock) int { return cmp.Compare(x.index, y.index) })
	last := b.all[:0]
	for i, p := range b.all {
		if i+1 == len(b.all) || b.all[i+1].index != p.index {
			last = append(last, p)
		}
	}
	b.all = last
	return b, nil
}

// Len is how many blocks were put.
func (b *DraftBlocks) Len() int { return len(b.all) }

// Block is the index of the nth block, and whether it is all zeros.
func (b *DraftBlocks) Block(n int) (index int64, zero bool) {
	return int64(b.all[n].index), b.all[n].place == noPlace
}

// ReadBlock fills p with the nth block and checks it against its SHA-256. It
// returns ErrDraftDamaged.
func (b *DraftBlocks) ReadBlock(p []byte, n int) error {
	rec := b.all[n]
	if rec.place == noPlace {
		clear(p)
		return nil
	}
	if _, err := b.blocks.ReadAt(p, int64(rec.place)*qcow2.BlockSize); err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("reading block %d: %w", rec.index, err)
	} else if err != nil || sha256.Sum256(p) != rec.sum {
		return fmt.Errorf("%w: block %d is not what was put", ErrDraftDamaged, rec.index)
	}
	return nil
}

// Checksum is the SHA-256 over the blocks' SHA-256s in order of their indexes,
// EBS direct's linear aggregate.
func (b *DraftBlocks) Checksum() [sha256.Size]byte {
	h := sha256.New()
	for i := range b.all {
		h.Write(b.all[i].sum[:])
	}
	return [sha256.Size]byte(h.Sum(nil))
}
