package bundle

import (
	"encoding/binary"
	"fmt"
	"io"
	"sort"

	"github.com/kamivm/kami/pkg/object"
)

const (
	maxChunk = object.MaxChunk
	// An index is a header, a table of items and a tail (casync's caformat.h).
	formatIndex       = 0x96824d9c7b129ff9
	formatTable       = 0xe75b9e112f17417d
	formatTableTail   = 0x4b4f050e5549ecd1
	flagExcludeNoDump = 0x8000000000000000
	flagSHA512256     = 0x2000000000000000

	indexHeader   = 48
	tableHeader   = 16
	tableItem     = 40
	tableTail     = 40
	indexOverhead = indexHeader + tableHeader + tableTail
)

// chunkID is the SHA-256 of a chunk.
type chunkID = object.ChunkID

// index is which chunks a blob is made of: the table of the file as it is, of
// which each item is where a chunk ends in the blob, and its id.
type index struct {
	sizes ChunkSizes
	table []byte
}

func (x *index) count() int { return len(x.table) / tableItem }

func (x *index) end(i int) int64 {
	if i < 0 {
		return 0
	}
	return int64(binary.LittleEndian.Uint64(x.table[i*tableItem:]))
}

// chunk returns where chunk i begins in the blob, its size and its id.
func (x *index) chunk(i int) (start, size int64, id chunkID) {
	start = x.end(i - 1)
	return start, x.end(i) - start, chunkID(x.table[i*tableItem+8 : (i+1)*tableItem])
}

// size is that of the blob, in bytes.
func (x *index) size() int64 { return x.end(x.count() - 1) }

// at is the chunk that the byte at off is in.
func (x *index) at(off int64) int {
	return sort.Search(x.count(), func(i int) bool { return x.end(i) > off })
}

// add puts a chunk of size bytes at the end.
func (x *index) add(size int64, id chunkID) {
	x.table = binary.LittleEndian.AppendUint64(x.table, uint64(x.size()+size))
	x.table = append(x.table, id[:]...)
}

// set names chunk i.
func (x *index) set(i int, id chunkID) { copy(x.table[i*tableItem+8:], id[:]) }

// encode is the index as a file.
func (x *index) encode() []byte {
	b := make([]byte, 0, len(x.table)+indexOverhead)
	add := func(words ...uint64) {
		for _, w := range words {
			b = binary.LittleEndian.AppendUint64(b, w)
		}
	}
	add(indexHeader, formatIndex, flagExcludeNoDump, uint64(x.sizes.Min), uint64(x.sizes.Avg), uint64(x.sizes.Max))
	add(^uint64(0), formatTable)
	b = append(b, x.table...)
	add(0, 0, indexHeader, uint64(len(b)-indexHeader+tableTail), formatTableTail)
	return b
}

// parseIndex reads an index's file, which it keeps. Everything has to be as the
// format has it; it returns ErrIndex.
func parseIndex(b []byte) (*index, error) {
	bad := func(format string, args ...any) (*index, error) {
		return nil, fmt.Errorf("%w: %w", ErrIndex, fmt.Errorf(format, args...))
	}
	if len(b) < indexOverhead || (len(b)-indexOverhead)%tableItem != 0 {
		return bad("%d bytes: %w", len(b), io.ErrUnexpectedEOF)
	}
	u := func(at int) uint64 { return binary.LittleEndian.Uint64(b[at:]) }
	if u(0) != indexHeader || u(8) != formatIndex || u(48) != ^uint64(0) || u(56) != formatTable {
		return bad("it does not begin as one of casync's")
	}
	if u(16)&flagSHA512256 != 0 {
		return bad("its chunks are named by SHA-512/256, not by SHA-256")
	}
	if u(24) > maxChunk || u(32) > maxChunk || u(40) > maxChunk {
		return bad("chunks of up to %d bytes", u(40))
	}
	x := &index{sizes: ChunkSizes{int(u(24)), int(u(32)), int(u(40))}}
	if err := x.sizes.check(); err != nil {
		return bad("%w", err)
	}
	tail := len(b) - tableTail
	if u(tail) != 0 || u(tail+8) != 0 || u(tail+16) != indexHeader || u(tail+24) != uint64(len(b)-indexHeader) || u(tail+32) != formatTableTail {
		return bad("it does not end as one of casync's")
	}
	x.table = b[indexHeader+tableHeader : tail]
	for i := range x.count() {
		before, end := uint64(x.end(i-1)), binary.LittleEndian.Uint64(x.table[i*tableItem:])
		if end <= before || end-before > uint64(x.sizes.Max) || end > maxBlob {
			return bad("chunk %d goes from byte %d to %d", i, before, end)
		}
	}
	return x, nil
}
