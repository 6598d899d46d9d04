package pvgrub

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
)

const (
	sectorSize    = 512
	maxPartitions = 128
	maxSector     = 1 << 50
)

// slice is a part of the disk that may have a filesystem. Other than what
// disk.Inspect reports it has a number, which is how configurations name it,
// and there are logical ones.
type slice struct {
	table       string // gpt, msdos, or "" for the whole disk
	number      int    // from 1 on
	start, size int64  // bytes
}

// device is the slice's name in GRUB 2's words.
func (s slice) device() string {
	if s.table == "" {
		return "(hd0)"
	}
	return fmt.Sprintf("(hd0,%s%d)", s.table, s.number)
}

// slices finds the whole disk and its partitions. A table that says nonsense has
// none.
func slicesOf(ctx context.Context, img io.ReaderAt, size int64) ([]slice, error) {
	out := []slice{{size: size}}
	head := make([]byte, 2*sectorSize)
	if size < int64(len(head)) {
		return out, nil
	}
	if err := readAt(ctx, img, head, 0); err != nil {
		return nil, err
	}
	var found []slice
	var err error
	switch {
	case string(head[sectorSize:sectorSize+8]) == "EFI PART":
		found, err = gpt(ctx, img, head[sectorSize:], size)
	case head[510] == 0x55 && head[511] == 0xaa:
		found, err = mbr(ctx, img, head, size)
	}
	// A table with holes is no list of partitions in order.
	slices.SortStableFunc(found, func(a, b slice) int { return cmp.Compare(a.number, b.number) })
	return append(out, found...), err
}

func readAt(ctx context.Context, img io.ReaderAt, p []byte, off int64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	n, err := img.ReadAt(p, off)
	if errors.Is(err, io.EOF) && n == len(p) {
		err = nil
	}
	if err != nil {
		return fmt.Errorf("reading the disk at %d: %w", off, err)
	}
	return nil
}

func gpt(ctx context.Context, img io.ReaderAt, head []byte, size int64) ([]slice, error) {
	le := binary.LittleEndian
	at, count, each := le.Uint64(head[72:]), le.Uint32(head[80:]), le.Uint32(head[84:])
	if each < 128 || each > 4096 || at > uint64(size)/sectorSize {
		return nil, nil
	}
	table := make([]byte, min(count, maxPartitions)*each)
	if int64(len(table)) > size-int64(at)*sectorSize {
		return nil, nil
	}
	if err := readAt(ctx, img, table, int64(at)*sectorSize); err != nil {
		return nil, err
	}
	var out []slice
	for i := range len(table) / int(each) {
		e := table[i*int(each):]
		first, last := le.Uint64(e[32:]), le.Uint64(e[40:])
		if bytes.Equal(e[:16], make([]byte, 16)) || first > last || last > maxSector {
			continue
		}
		out = add(out, slice{table: "gpt", number: i + 1, start: int64(first) * sectorSize, size: int64(last-first+1) * sectorSize}, size)
	}
	return out, nil
}

// add takes a slice that begins on the disk, as much of it as is there.
func add(out []slice, s slice, size int64) []slice {
	if s.start <= 0 || s.start >= size || s.size <= 0 {
		return out
	}
	s.size = min(s.size, size-s.start)
	return append(out, s)
}

// record is an entry of an MBR or of a logical partition's table.
type record struct {
	kind        byte
	start, size int64 // bytes
}

func records(b []byte) (out [4]record) {
	for i := range out {
		e := b[446+16*i:]
		out[i] = record{e[4], int64(binary.LittleEndian.Uint32(e[8:])) * sectorSize, int64(binary.LittleEndian.Uint32(e[12:])) * sectorSize}
	}
	return out
}

func extended(kind byte) bool { return kind == 0x05 || kind == 0x0f || kind == 0x85 }

// mbr reads the four primary partitions and the chain of the logical ones, which
// are numbered from 5 on.
func mbr(ctx context.Context, img io.ReaderAt, head []byte, size int64) (out []slice, err error) {
	for i, r := range records(head) {
		if extended(r.kind) {
			if out, err = logical(ctx, img, out, r.start, size); err != nil {
				return nil, err
			}
			continue
		}
		if r.kind != 0 && r.kind != 0xee {
			out = add(out, slice{table: "msdos", number: i + 1, start: r.start, size: r.size}, size)
		}
	}
	return out, nil
}

func logical(ctx context.Context, img io.ReaderAt, out []slice, base, size int64) ([]slice, error) {
	at := base
	for number := 5; number < maxPartitions; number++ {
		if at <= 0 || at > size-sectorSize {
			return out, nil
		}
		b := make([]byte, sectorSize)
		if err := readAt(ctx, img, b, at); err != nil {
			return nil, err
		}
		if b[510] != 0x55 || b[511] != 0xaa {
			return out, nil
		}
		next := int64(0)
		for _, r := range records(b) {
			switch {
			case extended(r.kind):
				next = base + r.start
			case r.kind != 0:
				out = add(out, slice{table: "msdos", number: number, start: at + r.start, size: r.size}, size)
			}
		}
		// The chain goes forward, so that it has an end.
		if next <= at {
			return out, nil
		}
		at = next
	}
	return out, nil
}
