package ec2ami

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
)

// The tar is written by hand: it is one member, and archive/tar writes no sparse
// ones, which is what the old tools made (tar -S). A sparse member costs what is in
// it, and comes out of the old tools with its holes.

const (
	tarBlock  = 512
	tarRecord = 20 * tarBlock
	// maxExtents bounds the map of a sparse member: readers bound it, too.
	maxExtents = 16 << 10
	inHeader   = 4
	inBlock    = 21
)

// ErrRead wraps what the source of an image says.
var ErrRead = errors.New("reading the image")

// Extent is a stretch of an image that may hold other bytes than zeros.
type Extent struct{ Offset, Length int64 }

// tidy makes extents fit for a tar: on block boundaries, in order, not touching one
// another, and not too many. Nil is all of the image.
func tidy(extents []Extent, size int64) []Extent {
	if extents == nil {
		return []Extent{{0, size}}
	}
	for align := int64(tarBlock * 8); ; align *= 2 {
		var out []Extent
		for _, e := range extents {
			from := e.Offset / align * align
			to := min((e.Offset+e.Length+align-1)/align*align, size)
			if to <= from {
				continue
			}
			if last := len(out) - 1; last >= 0 && from <= out[last].Offset+out[last].Length {
				out[last].Length = max(to-out[last].Offset, out[last].Length)
				continue
			}
			out = append(out, Extent{from, to - from})
		}
		if len(out) <= maxExtents {
			return out
		}
	}
}

// writeTar writes a tar whose one member is the image. name is at most 99 bytes.
func writeTar(w io.Writer, name string, image io.ReaderAt, size int64, extents []Extent, copied func(n int64)) error {
	extents = tidy(extents, size)
	stored := int64(0)
	for _, e := range extents {
		stored += e.Length
	}
	if stored == size {
		extents = []Extent{{0, size}}
	}
	out := &counter{w: w}
	if _, err := out.Write(tarHeader(name, size, stored, extents)); err != nil {
		return err
	}
	buf := make([]byte, 1<<20)
	at := int64(0)
	for _, e := range extents {
		copied(e.Offset - at)
		for at = e.Offset; at < e.Offset+e.Length; {
			b := buf[:min(int64(len(buf)), e.Offset+e.Length-at)]
			if n, err := image.ReadAt(b, at); n < len(b) {
				if err == nil || errors.Is(err, io.EOF) {
					err = io.ErrUnexpectedEOF
				}
				return fmt.Errorf("%w at %d: %w", ErrRead, at, err)
			}
			if _, err := out.Write(b); err != nil {
				return err
			}
			at += int64(len(b))
			copied(int64(len(b)))
		}
	}
	copied(size - at)
	end := roundUp(out.n, tarBlock) + 2*tarBlock // two blocks of zeros end it
	_, err := out.Write(make([]byte, roundUp(end, tarRecord)-out.n))
	return err
}

func roundUp(n, to int64) int64 { return (n + to - 1) / to * to }

// counter counts what goes through it.
type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(b []byte) (int, error) {
	n, err := c.w.Write(b)
	c.n += int64(n)
	return n, err
}

// tarHeader is the member's header in GNU's format, with the map of a sparse one.
// It holds no time and no owner but root.
func tarHeader(name string, size, stored int64, extents []Extent) []byte {
	b := make([]byte, tarBlock)
	copy(b, name)
	copy(b[100:], "0000644\x00")
	copy(b[108:], "0000000\x00")
	copy(b[116:], "0000000\x00")
	tarNumber(b[124:136], stored)
	tarNumber(b[136:148], 0)
	b[156] = '0'
	copy(b[257:], "ustar  \x00")
	copy(b[265:], "root")
	copy(b[297:], "root")
	var more []byte
	if stored != size {
		b[156] = 'S'
		tarNumber(b[483:495], size)
		more = sparseMap(b, size, extents)
	}
	tarSum(b)
	return slices.Concat(b, more)
}

// sparseMap writes the map of a sparse member into its header, and returns the
// blocks that it goes on in.
func sparseMap(header []byte, size int64, extents []Extent) (more []byte) {
	if last := len(extents) - 1; last < 0 || extents[last].Offset+extents[last].Length < size {
		extents = append(slices.Clone(extents), Extent{size, 0}) // says where the hole at the end ends
	}
	n := min(len(extents), inHeader)
	tarMap(header[386:], extents[:n])
	goesOn := &header[482]
	for extents = extents[n:]; len(extents) > 0; extents = extents[n:] {
		*goesOn = 1
		block := make([]byte, tarBlock)
		n = min(len(extents), inBlock)
		tarMap(block, extents[:n])
		more = append(more, block...)
		goesOn = &more[len(more)-8]
	}
	return more
}

// tarSum writes a header's checksum, which counts itself as blanks.
func tarSum(b []byte) {
	copy(b[148:156], "        ")
	sum := 0
	for _, c := range b {
		sum += int(c)
	}
	copy(b[148:], fmt.Sprintf("%06o\x00 ", sum))
}

func tarMap(b []byte, extents []Extent) {
	for i, e := range extents {
		tarNumber(b[24*i:24*i+12], e.Offset)
		tarNumber(b[24*i+12:24*i+24], e.Length)
	}
}

// tarNumber writes a number into a field of 12 bytes: octal, or GNU's binary where
// it is of 8 GiB or more.
func tarNumber(b []byte, n int64) {
	if n < 1<<33 {
		copy(b, fmt.Sprintf("%011o\x00", n))
		return
	}
	b[0] = 0x80
	binary.BigEndian.PutUint64(b[4:], uint64(n))
}
