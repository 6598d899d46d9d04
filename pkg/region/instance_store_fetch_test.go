package region

import (
	"bytes"
	"context"
	"io"
	"sync"
	"testing"

	"github.com/kamivm/kami/pkg/qcow2"
)

// slow is a disk whose beginning is not there before a piece behind it was asked for.
type slow struct {
	data  []byte
	mu    sync.Mutex
	cond  *sync.Cond
	most  int64 // that was asked for
	reads int   // under way
	peak  int   // of these
}

func (s *slow) Size() int64 { return int64(len(s.data)) }

func (s *slow) Extents(_ context.Context, off, length int64, fn func(int64, int64, qcow2.ExtentState) error) error {
	return fn(off, length, qcow2.Data)
}

func (s *slow) ReadAt(p []byte, off int64) (int, error) {
	s.mu.Lock()
	s.most = max(s.most, off)
	s.reads++
	s.peak = max(s.peak, s.reads)
	s.cond.Broadcast()
	for off == 0 && s.most == 0 {
		s.cond.Wait()
	}
	s.reads--
	s.mu.Unlock()
	n := copy(p, s.data[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// Who reads from the beginning to the end has what comes next fetched meanwhile.
func TestReadAhead(t *testing.T) {
	t.Parallel()
	s := &slow{data: make([]byte, 40*aheadStep+512)}
	s.cond = sync.NewCond(&s.mu)
	for i := range s.data {
		s.data[i] = byte(i >> 12)
	}
	a := readAhead(t.Context(), func(context.Context) *slow { return s })
	var got bytes.Buffer
	if _, err := io.Copy(&got, io.NewSectionReader(a, 0, a.Size())); err != nil {
		t.Fatal(err)
	}
	a.stop()
	if !bytes.Equal(got.Bytes(), s.data) {
		t.Error("it reads something else")
	}
	if s.reads != 0 || s.peak > aheadReads+1 {
		t.Errorf("%d reads are under way, and %d were at once, want none, and at most %d", s.reads, s.peak, aheadReads+1)
	}
}
