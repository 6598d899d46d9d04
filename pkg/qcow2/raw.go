package qcow2

import (
	"context"
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// RawSource reads a raw disk; its holes are zeros that cost no reading. A size
// that is no multiple of 512 is filled up with zeros.
func RawSource(f *os.File) (Source, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	return rawSource{f, (info.Size() + 511) &^ 511}, nil
}

type rawSource struct {
	f    *os.File
	size int64
}

func (s rawSource) Size() int64 { return s.size }

func (s rawSource) ReadAt(p []byte, off int64) (int, error) {
	if off >= s.size {
		return 0, io.EOF
	}
	want := len(p)
	p = p[:min(int64(len(p)), s.size-off)]
	n, err := s.f.ReadAt(p, off)
	if errors.Is(err, io.EOF) {
		clear(p[n:])
		n, err = len(p), nil
	}
	if err == nil && n < want {
		err = io.EOF
	}
	return n, err
}

func (s rawSource) Extents(ctx context.Context, off, length int64, fn func(off, length int64, state ExtentState) error) error {
	end := min(off+length, s.size)
	for off < end {
		if err := ctx.Err(); err != nil {
			return err
		}
		data, err := unix.Seek(int(s.f.Fd()), off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			data, err = end, nil
		}
		if errors.Is(err, unix.EINVAL) { // a file system that knows no holes
			return fn(off, end-off, Data)
		}
		if err != nil {
			return err
		}
		if data = min(data, end); data > off {
			if err := fn(off, data-off, Zero); err != nil {
				return err
			}
			off = data
			continue
		}
		hole, err := unix.Seek(int(s.f.Fd()), off, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		hole = min(max(hole, off+1), end)
		if err := fn(off, hole-off, Data); err != nil {
			return err
		}
		off = hole
	}
	return nil
}
