package qcow2

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"maps"
	"slices"
)

var blocksMagic = [8]byte{'k', 'a', 'm', 'i', 'b', 'l', 'k', '1'}

// A list has entries of listBlocks digests behind their index.
const (
	listBlocks = 128
	listPages  = listBlocks / pageBlocks
	listEntry  = 8 + listBlocks*sha256.Size
	listHeader = 16
)

// WriteTo writes the digests in version 1 of kami's own form: a magic number, the
// number of blocks, pages of 128 digests behind their index, and the SHA-256 of
// all that.
func (b *Blocks) WriteTo(w io.Writer) (n int64, err error) {
	h := sha256.New()
	write := func(part []byte) {
		if err == nil {
			h.Write(part)
			var m int
			m, err = w.Write(part)
			n += int64(m)
		}
	}
	write(binary.BigEndian.AppendUint64(bytes.Clone(blocksMagic[:]), uint64(b.n)))
	entry, empty := make([]byte, 0, listEntry), &page{}
	for _, at := range b.entries() {
		entry = binary.BigEndian.AppendUint64(entry[:0], uint64(at))
		for i := at * listBlocks; i < (at+1)*listBlocks; i += pageBlocks {
			p := empty
			if held := b.pages[i/pageBlocks]; held != nil {
				p = held
			}
			for _, sum := range p {
				entry = append(entry, sum[:]...)
			}
		}
		write(entry)
	}
	write(h.Sum(nil))
	return n, err
}

// entries are the indexes, in order, of the entries that a list has.
func (b *Blocks) entries() []int64 {
	at := make([]int64, 0, len(b.pages))
	for i := range maps.Keys(b.pages) {
		at = append(at, i/listPages)
	}
	slices.Sort(at)
	return slices.Compact(at)
}

// ReadFrom reads what WriteTo wrote, up to the end. It returns ErrCorrupt, or
// what reading does.
func (b *Blocks) ReadFrom(r io.Reader) (n int64, err error) {
	buf := make([]byte, listEntry)
	h := sha256.New()
	m, err := io.ReadFull(r, buf[:listHeader])
	n = int64(m)
	if err != nil && !cutOff(err) {
		return n, err
	}
	if err != nil || !bytes.Equal(buf[:8], blocksMagic[:]) {
		return n, corrupt("what begins with %x is no list of blocks", buf[:8])
	}
	h.Write(buf[:listHeader])
	blocks := binary.BigEndian.Uint64(buf[8:])
	if blocks > maxVirtualBytes/BlockSize {
		return n, corrupt("a list of %d blocks", blocks)
	}
	*b = Blocks{n: int64(blocks), pages: map[int64]*page{}}
	for {
		m, err = io.ReadFull(r, buf)
		n += int64(m)
		if err != nil {
			break
		}
		h.Write(buf)
		at := binary.BigEndian.Uint64(buf)
		if at > blocks/listBlocks || at*listBlocks >= blocks {
			return n, corrupt("a page of blocks beyond the end")
		}
		b.take(int64(at), buf[8:])
	}
	switch {
	case !cutOff(err):
		return n, err
	case m != sha256.Size:
		return n, corrupt("a list of blocks of %d bytes", n)
	case !bytes.Equal(h.Sum(nil), buf[:m]):
		return n, corrupt("a list of blocks does not have its digest")
	}
	return n, nil
}

// take holds the digests of an entry.
func (b *Blocks) take(at int64, sums []byte) {
	for i := range int64(listPages) {
		p := page{}
		for j := range p {
			p[j] = [sha256.Size]byte(sums)
			sums = sums[sha256.Size:]
		}
		b.put(at*listPages+i, p)
	}
}

func cutOff(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
}

// MarshalBinary returns what WriteTo writes.
func (b *Blocks) MarshalBinary() ([]byte, error) {
	out := bytes.NewBuffer(make([]byte, 0, listHeader+len(b.entries())*listEntry+sha256.Size))
	_, err := b.WriteTo(out)
	return out.Bytes(), err
}

// UnmarshalBinary reads what MarshalBinary returned. It returns ErrCorrupt.
func (b *Blocks) UnmarshalBinary(data []byte) error {
	_, err := b.ReadFrom(bytes.NewReader(data))
	return err
}
