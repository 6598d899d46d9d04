package qcow2

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// alloc is one cluster that a layer stores.
type alloc struct {
	cluster uint32 // guest cluster
	packed  uint16 // compressed length in bytes, or one of:
}

const (
	allocZero  = 0      // reads as zeros, over a parent that does not
	allocPlain = 0xffff // stored as it is

	allocSize = 6 // bytes in an index
)

// index lists the clusters that a layer stores, in guest order. It lies in a
// file, so that memory does not grow with what is stored.
type index struct {
	f      *os.File
	w      *bufio.Writer
	tables []uint32 // the L2 tables that are not empty
	data   int64    // clusters with data
	zero   int64    // clusters of allocZero
}

func (x *index) add(a alloc) error {
	if t := a.cluster / l2Entries; len(x.tables) == 0 || x.tables[len(x.tables)-1] != t {
		x.tables = append(x.tables, t)
	}
	if a.packed == allocZero {
		x.zero++
	} else {
		x.data++
	}
	b := binary.BigEndian.AppendUint32(x.w.AvailableBuffer(), a.cluster)
	_, err := x.w.Write(binary.BigEndian.AppendUint16(b, a.packed))
	return err
}

// walk goes over an index that is flushed, cluster by cluster.
type walk struct {
	alloc
	at, n int64 // where its data lies in the file, and its length, in bytes
	more  bool  // whether there is a cluster
	err   error // why there is none, but for the end

	r                     *bufio.Reader
	nextPacked, nextPlain int64 // where the data of the next one of each kind lies
	buf                   [allocSize]byte
}

func (x *index) walk(g geometry) *walk {
	w := &walk{
		r:          bufio.NewReaderSize(io.NewSectionReader(x.f, 0, (x.data+x.zero)*allocSize), 64<<10),
		nextPacked: g.data * ClusterSize, nextPlain: g.plain * ClusterSize,
	}
	w.step()
	return w
}

func (w *walk) step() {
	_, err := io.ReadFull(w.r, w.buf[:])
	if w.more = err == nil; !w.more {
		if !errors.Is(err, io.EOF) {
			w.err = fmt.Errorf("reading what is staged: %w", err)
		}
		return
	}
	w.alloc = alloc{binary.BigEndian.Uint32(w.buf[:]), binary.BigEndian.Uint16(w.buf[4:])}
	switch w.packed {
	case allocZero:
		w.at, w.n = 0, 0
	case allocPlain:
		w.at, w.n = w.nextPlain, ClusterSize
		w.nextPlain += w.n
	default:
		w.at, w.n = w.nextPacked, int64(w.packed)
		w.nextPacked += w.n
	}
}

// end is nil as long as there are clusters, then io.EOF or what went wrong.
func (w *walk) end() error {
	if w.err == nil && !w.more {
		return io.EOF
	}
	return w.err
}

// clusters reads a part of a file that is made cluster by cluster.
type clusters struct {
	fill func(b []byte) error // makes the next one, in zeros; io.EOF for no more
	buf  []byte
	rest []byte
}

func (c *clusters) Read(p []byte) (int, error) {
	if len(c.rest) == 0 {
		if c.buf == nil {
			c.buf = make([]byte, ClusterSize)
		}
		clear(c.buf)
		if err := c.fill(c.buf); err != nil {
			return 0, err
		}
		c.rest = c.buf
	}
	n := copy(p, c.rest)
	c.rest = c.rest[n:]
	return n, nil
}

// l1 makes the L1 table.
func (s *stage) l1(g geometry) []byte {
	l1 := make([]byte, g.l1Clusters*ClusterSize)
	for i, t := range s.index.tables {
		binary.BigEndian.PutUint64(l1[int64(t)*8:], uint64((g.l2+int64(i))*ClusterSize)|entryCopied)
	}
	return l1
}

// l2 makes the L2 tables that are not empty.
func (s *stage) l2(g geometry) io.Reader {
	w := s.index.walk(g)
	return &clusters{fill: func(b []byte) error {
		if err := w.end(); err != nil {
			return err
		}
		for t := w.cluster / l2Entries; w.more && w.cluster/l2Entries == t; w.step() {
			host := uint64(w.at)
			var entry uint64
			switch w.packed {
			case allocZero:
				entry = entryZero
			case allocPlain:
				entry = host | entryCopied
			default:
				sectors := (host+uint64(w.n)-1)>>9 - host>>9
				entry = host | sectors<<(62-(clusterBits-8)) | entryCompressed
			}
			binary.BigEndian.PutUint64(b[w.cluster%l2Entries*8:], entry)
		}
		return w.err
	}}
}

// refcounts makes the refcount blocks: one for each cluster of tables and plain
// data, and for compressed data as many as lie in the cluster, also in part.
func (s *stage) refcounts(g geometry) io.Reader {
	w := s.index.walk(g)
	from := int64(0) // the first cluster that a block counts
	return &clusters{fill: func(b []byte) error {
		if from >= g.refBlocks*refsPerBlock {
			return io.EOF
		}
		to := from + refsPerBlock
		add := func(c int64) {
			at := b[(c-from)*2:]
			binary.BigEndian.PutUint16(at, binary.BigEndian.Uint16(at)+1)
		}
		for c := from; c < min(to, g.data); c++ {
			add(c)
		}
		for c := max(from, g.plain); c < min(to, g.total); c++ {
			add(c)
		}
		for ; w.more; w.step() {
			if w.packed == allocZero || w.packed == allocPlain {
				continue
			}
			first, last := w.at/ClusterSize, (w.at+w.n-1)/ClusterSize
			for c := max(first, from); c <= min(last, to-1); c++ {
				add(c)
			}
			if last >= to { // the next block counts the rest of it
				break
			}
		}
		from = to
		return w.err
	}}
}

// unlinked makes a file in the folder of another, which is gone with the process.
func unlinked(beside *os.File) (*os.File, error) {
	f, err := os.CreateTemp(filepath.Dir(beside.Name()), ".stage-*")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}
