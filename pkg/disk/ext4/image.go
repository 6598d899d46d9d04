package ext4

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/kamivm/kami/pkg/qcow2"
)

// Image is a filesystem that is made as it is read. It is fast for who reads from
// its beginning to its end: one file at a time is open. It is safe for concurrent
// use. The caller closes it.
type Image struct {
	size     int64
	segments []segment // in order

	mu      sync.Mutex // held while a file is read
	current *contentOf
	reader  Reader
}

var _ qcow2.Source = (*Image)(nil)

// segment is a run of blocks with something in them; between two there are zeros.
type segment struct {
	start, count int64
	from         source
	at           int64 // the block of from that it begins with
}

// source makes blocks: off is in bytes. Behind its end there are zeros.
type source interface {
	readAt(p []byte, off int64) error
}

// blob is a source that is in memory.
type blob []byte

func (b blob) readAt(p []byte, off int64) error {
	n := 0
	if off < int64(len(b)) {
		n = copy(p, b[off:])
	}
	clear(p[n:])
	return nil
}

// contentOf is what a regular file has in it; the image reads it.
type contentOf File

func (*contentOf) readAt([]byte, int64) error { return errors.ErrUnsupported }

// Size is the filesystem's, in bytes.
func (m *Image) Size() int64 { return m.size }

// find returns the first segment that ends behind a byte.
func (m *Image) find(off int64) int {
	i, _ := slices.BinarySearchFunc(m.segments, off/Block, func(s segment, n int64) int {
		if s.start+s.count <= n {
			return -1
		}
		return 1
	})
	return i
}

// ReadAt makes a part of the filesystem. It fails for a file that was changed
// since the tree was looked through.
func (m *Image) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("reading at %d", off)
	}
	if off >= m.size {
		return 0, io.EOF
	}
	var end error
	if int64(len(p)) > m.size-off {
		p, end = p[:m.size-off], io.EOF
	}
	done := 0
	for i := m.find(off); done < len(p); i++ {
		at := off + int64(done)
		if i == len(m.segments) {
			clear(p[done:])
			return len(p), end
		}
		s := m.segments[i]
		if gap := s.start*Block - at; gap > 0 {
			n := int(min(gap, int64(len(p)-done)))
			clear(p[done : done+n])
			done, at = done+n, at+int64(n)
		}
		n := int(min((s.start+s.count)*Block-at, int64(len(p)-done)))
		if n == 0 {
			break
		}
		if err := m.read(s, p[done:done+n], at-s.start*Block+s.at*Block); err != nil {
			return done, err
		}
		done += n
	}
	return len(p), end
}

func (m *Image) read(s segment, p []byte, off int64) error {
	if f, ok := s.from.(*contentOf); ok {
		return m.readFile(f, p, off)
	}
	return s.from.readAt(p, off)
}

// readFile reads from a file, which stays open until its end was read or another
// one is wanted.
func (m *Image) readFile(f *contentOf, p []byte, off int64) error {
	n := min(int64(len(p)), f.Size-off)
	if n <= 0 { // behind its end
		clear(p)
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.current != f {
		if err := m.closeFile(); err != nil {
			return err
		}
		r, err := f.Content.Open()
		if err != nil {
			return err
		}
		m.current, m.reader = f, r
	}
	got, err := m.reader.ReadAt(p[:n], off)
	if int64(got) < n {
		if err == nil {
			err = io.ErrUnexpectedEOF
		}
		return errors.Join(err, m.closeFile())
	}
	clear(p[n:])
	if last := f.Runs[len(f.Runs)-1]; off+n >= last.Off+last.Len {
		return m.closeFile()
	}
	return nil
}

func (m *Image) closeFile() error {
	if m.reader == nil {
		return nil
	}
	r := m.reader
	m.current, m.reader = nil, nil
	return r.Close()
}

// Close closes the file that was read last.
func (m *Image) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.closeFile()
}

// Extents says which parts are zeros without reading them.
func (m *Image) Extents(ctx context.Context, off, length int64, fn func(off, length int64, state qcow2.ExtentState) error) error {
	end := min(off+length, m.size)
	for i := m.find(off); off < end; {
		if err := ctx.Err(); err != nil {
			return err
		}
		state, stop := qcow2.Zero, end
		if i < len(m.segments) {
			stop = min(m.segments[i].start*Block, end)
		}
		if stop <= off { // data, with the segments that follow without a gap
			state, stop = qcow2.Data, (m.segments[i].start+m.segments[i].count)*Block
			for i++; stop < end && i < len(m.segments) && m.segments[i].start*Block == stop; i++ {
				stop += m.segments[i].count * Block
			}
			stop = min(stop, end)
		}
		if err := fn(off, stop-off, state); err != nil {
			return err
		}
		off = stop
	}
	return nil
}
