package foreign

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/ulikunitz/xz"
)

// maxDictionary is the most memory that unpacking may take, in bytes; xz -9
// uses 64 MiB.
const maxDictionary = 256 << 20

// xzReader unpacks an xz file. The decoder makes as large a dictionary as a
// block asks for, so all blocks are looked at before.
func xzReader(src io.ReadSeeker) (io.Reader, error) {
	if _, err := src.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	w := xzWalk{r: bufio.NewReaderSize(src, 256<<10)}
	if err := w.file(); err != nil {
		if errors.Is(err, ErrUnsupported) {
			return nil, err
		}
		return nil, fmt.Errorf("%w: xz: %w", ErrTruncated, err)
	}
	if _, err := src.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	z, err := xz.NewReader(src)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrTruncated, err)
	}
	return z, nil
}

// xzWalk walks over the parts of an xz file without unpacking them, as the file
// format's description (xz-file-format.txt) has them.
type xzWalk struct {
	r *bufio.Reader
	n int64 // bytes walked over
}

var errXZ = errors.New("not as the format has it")

func (w *xzWalk) take(n int) ([]byte, error) {
	b := make([]byte, n)
	_, err := io.ReadFull(w.r, b)
	w.n += int64(n)
	return b, err
}

func (w *xzWalk) skip(n int) error {
	_, err := w.r.Discard(n)
	w.n += int64(n)
	return err
}

// pad walks on to a multiple of four bytes.
func (w *xzWalk) pad() error { return w.skip(int(-w.n & 3)) }

func (w *xzWalk) number() (uint64, error) {
	v, err := binary.ReadUvarint(w.r)
	if err != nil {
		return 0, err
	}
	w.n += int64(len(binary.AppendUvarint(nil, v)))
	return v, nil
}

// file walks over all streams and what pads them.
func (w *xzWalk) file() error {
	for first := true; ; first = false {
		head, err := w.take(4)
		if errors.Is(err, io.EOF) && !first {
			return nil
		}
		if err != nil {
			return err
		}
		if !first && bytes.Equal(head, make([]byte, 4)) {
			continue
		}
		if err := w.stream(); err != nil {
			return err
		}
	}
}

// stream walks over a stream from behind its first four bytes.
func (w *xzWalk) stream() error {
	rest, err := w.take(8)
	if err != nil {
		return err
	}
	check, ok := map[byte]int{0: 0, 1: 4, 4: 8, 10: 32}[rest[3]]
	if !ok {
		return fmt.Errorf("%w: a check of kind %d", ErrUnsupported, rest[3])
	}
	for {
		size, err := w.take(1)
		if err != nil {
			return err
		}
		if size[0] == 0 {
			return w.index()
		}
		head, err := w.take(int(size[0])*4 + 3)
		if err != nil {
			return err
		}
		if err := checkFilters(head); err != nil {
			return err
		}
		if err := errors.Join(w.chunks(), w.pad(), w.skip(check)); err != nil {
			return err
		}
	}
}

// checkFilters looks at a block's header behind its size: LZMA2 alone, with a
// dictionary that is not too large.
func checkFilters(head []byte) error {
	b := bytes.NewBuffer(head[1 : len(head)-4])
	for flag := byte(0x40); flag != 0; flag <<= 1 { // the two sizes
		if head[0]&flag != 0 {
			if _, err := binary.ReadUvarint(b); err != nil {
				return err
			}
		}
	}
	filter := b.Next(3)
	if head[0]&0x3f != 0 || len(filter) < 3 || filter[0] != 0x21 || filter[1] != 1 || filter[2] > 40 {
		return fmt.Errorf("%w: an xz block with other filters than LZMA2", ErrUnsupported)
	}
	if size := uint64(2|filter[2]&1) << (filter[2]/2 + 11); size > maxDictionary {
		return fmt.Errorf("%w: unpacking it takes a dictionary of %d MiB; at most %d are taken", ErrUnsupported, size>>20, maxDictionary>>20)
	}
	return nil
}

// chunks walks over the LZMA2 chunks of a block.
func (w *xzWalk) chunks() error {
	for {
		control, err := w.take(1)
		if err != nil || control[0] == 0 {
			return err
		}
		var sizes []byte
		length := 1
		switch c := control[0]; {
		case c <= 2: // stored
			sizes, err = w.take(2)
		case c >= 0xc0: // with new properties, a byte more
			length++
			fallthrough
		case c >= 0x80:
			sizes, err = w.take(4)
		default:
			err = errXZ
		}
		if err != nil {
			return err
		}
		if err := w.skip(length + int(binary.BigEndian.Uint16(sizes[len(sizes)-2:]))); err != nil {
			return err
		}
	}
}

// index walks over the index and the footer, to the end of the stream.
func (w *xzWalk) index() error {
	n, err := w.number()
	for i := uint64(0); i < 2*n && err == nil; i++ {
		_, err = w.number()
	}
	if err != nil {
		return err
	}
	return errors.Join(w.pad(), w.skip(4+12))
}
