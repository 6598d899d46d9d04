package object

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync"
)

// source is what an object is made of. Sections of it are read in parallel, and
// again when they have to be sent again.
type source struct {
	at io.ReaderAt // nil for a reader that only goes forwards, which is read into memory
	r  io.ReadSeeker

	mu  sync.Mutex
	err error // the first failure to read it
}

// bodyOf returns the first size bytes of r, which must be there.
func bodyOf(r io.ReadSeeker, size int64) (*source, error) {
	end, err := r.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, err
	}
	if end < size {
		return nil, fmt.Errorf("%d of %d bytes were given: %w", end, size, io.ErrUnexpectedEOF)
	}
	if _, err := r.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	at, _ := r.(io.ReaderAt)
	return &source{at: at, r: r}, nil
}

// failed is why it could not be read, nil if it could: whoever sends it calls
// such a failure his connection's.
func (s *source) failed() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// section returns n bytes from the offset at.
func (s *source) section(at, n int64) (io.ReadSeeker, error) {
	if s.at != nil {
		return &section{s, io.NewSectionReader(s.at, at, n)}, nil
	}
	if _, err := s.r.Seek(at, io.SeekStart); err != nil {
		return nil, err
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(s.r, b); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	return bytes.NewReader(b), nil
}

// section is a part of a source that tells it of failures.
type section struct {
	of *source
	*io.SectionReader
}

func (s *section) Read(p []byte) (int, error) {
	n, err := s.SectionReader.Read(p)
	if err == nil {
		return n, nil
	}
	failure := err
	if err == io.EOF {
		if at, serr := s.Seek(0, io.SeekCurrent); serr == nil && at >= s.Size() {
			return n, err
		}
		failure = fmt.Errorf("it became shorter: %w", io.ErrUnexpectedEOF)
	}
	s.of.mu.Lock()
	defer s.of.mu.Unlock()
	s.of.err = errors.Join(s.of.err, failure)
	return n, failure
}
