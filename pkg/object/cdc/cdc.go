// Package cdc cuts a stream into chunks by its content: where a chunk ends is
// decided by the bytes before its end, so that what is inserted or removed changes
// the chunks around it and no others.
//
// It is FastCDC (Xia et al., "FastCDC: a Fast and Efficient Content-Defined
// Chunking Approach for Data Deduplication", USENIX ATC 2016) with normalised
// chunking: a rolling gear hash, which is compared with a mask of more bits before
// the average size is reached and of fewer after it. The same bytes and sizes are
// cut in the same way by every version: that is what equal chunks are found by.
package cdc

import (
	"errors"
	"fmt"
	"io"
	"math/bits"
)

// Sizes are the least, the average and the greatest size of a chunk, in bytes. The
// average is a power of two.
type Sizes struct{ Min, Avg, Max int }

// The sizes that can be cut.
const (
	leastMin    = 64
	greatestMax = 16 << 20
)

// Check returns an error for sizes that cannot be cut.
func (s Sizes) Check() error {
	if s.Min < leastMin || s.Min >= s.Avg || s.Avg >= s.Max || s.Max > greatestMax || bits.OnesCount(uint(s.Avg)) != 1 {
		return fmt.Errorf("chunks of %d to %d bytes, %d on average: sizes have to grow, from %d to %d, with a power of two in the middle",
			s.Min, s.Max, s.Avg, leastMin, greatestMax)
	}
	return nil
}

// normal is by how many bits the two masks differ from that of the average: with
// one, most chunks have sizes near to it, and few are cut by force.
const normal = 1

// gear gives each byte a random number: the splitmix64 sequence (Steele et al.,
// "Fast Splittable Pseudorandom Number Generators", 2014) from the state 0.
var gear = func() (table [256]uint64) { //nolint:gochecknoglobals // never written
	state := uint64(0)
	for i := range table {
		state += 0x9e3779b97f4a7c15
		z := state
		z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
		z = (z ^ z>>27) * 0x94d049bb133111eb
		table[i] = z ^ z>>31
	}
	return table
}()

// Cut returns the length of the chunk that b begins with: b's own where that is no
// more than the least size, and otherwise at most the greatest. b must have the
// greatest size unless the stream ends with it.
func (s Sizes) Cut(b []byte) int {
	if len(b) <= s.Min {
		return len(b)
	}
	b = b[:min(len(b), s.Max)]
	// The upper bits have seen the most bytes.
	n := bits.TrailingZeros(uint(s.Avg))
	hard, easy := ^uint64(0)<<(64-n-normal), ^uint64(0)<<(64-n+normal)
	mid := min(s.Avg, len(b))
	hash, i := seek(b[:mid], s.Min, 0, hard)
	if i <= mid {
		return i
	}
	_, i = seek(b, mid, hash, easy)
	return min(i, len(b))
}

// seek goes on with a hash from b's byte i, and returns it and the length up to the
// first byte after which none of its bits is in the mask; more than b's for none. It
// takes two bytes a step: what a step waits for is the last one's hash.
func seek(b []byte, i int, hash, mask uint64) (uint64, int) {
	for ; i+1 < len(b); i += 2 {
		first := gear[b[i]]
		one := hash<<1 + first
		hash = hash<<2 + (first<<1 + gear[b[i+1]])
		if one&mask == 0 {
			return one, i + 1
		}
		if hash&mask == 0 {
			return hash, i + 2
		}
	}
	if i < len(b) {
		if hash = hash<<1 + gear[b[i]]; hash&mask == 0 {
			return hash, i + 1
		}
	}
	return hash, len(b) + 1
}

// Chunker cuts what a reader gives.
type Chunker struct {
	r     io.Reader
	sizes Sizes
	buf   []byte
	from  int // of what has not been cut
	end   bool
}

// NewChunker returns a Chunker, or an error for sizes that cannot be cut.
func NewChunker(r io.Reader, s Sizes) (*Chunker, error) {
	if err := s.Check(); err != nil {
		return nil, err
	}
	return &Chunker{r: r, sizes: s, buf: make([]byte, 0, buffered*s.Max)}, nil
}

// buffered is how many chunks of the greatest size are read ahead at most: what is
// left of them is moved to the front each time that it is less than one.
const buffered = 8

// Next returns the next chunk, which stays as it is until the call after it, and
// none at the end.
func (c *Chunker) Next() ([]byte, error) {
	if err := c.fill(); err != nil {
		return nil, err
	}
	rest := c.buf[c.from:]
	n := c.sizes.Cut(rest)
	c.from += n
	return rest[:n], nil
}

// fill reads on until there is enough for a chunk.
func (c *Chunker) fill() error {
	if c.end || len(c.buf)-c.from >= c.sizes.Max {
		return nil
	}
	c.buf = c.buf[:copy(c.buf[:cap(c.buf)], c.buf[c.from:])]
	c.from = 0
	for len(c.buf) < c.sizes.Max {
		n, err := c.r.Read(c.buf[len(c.buf):cap(c.buf)])
		c.buf = c.buf[:len(c.buf)+n]
		if errors.Is(err, io.EOF) {
			c.end = true
			return nil
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Skip passes over n bytes, which are not a part of any chunk: those that have been
// read ahead, and then with the reader's Seek if it is an io.Seeker.
func (c *Chunker) Skip(n int64) error {
	held := min(n, int64(len(c.buf)-c.from))
	c.from += int(held)
	n -= held
	if s, ok := c.r.(io.Seeker); ok && n > 0 {
		_, err := s.Seek(n, io.SeekCurrent)
		return err
	}
	_, err := io.CopyN(io.Discard, c.r, n)
	return err
}
