package qcow2

import (
	"bytes"
	"compress/flate"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/klauspost/compress/zstd"
)

// file is one open file of a chain.
type file struct {
	f    *os.File
	info Info
	size int64
	l1   []byte
	enc  *Encryption // nil for a file that is not encrypted, or not unlocked

	mu     sync.Mutex
	tables map[int64][]byte // L2 tables by offset
	cached *atomic.Int64    // bytes of the tables of all files of the chain
	last   struct {         // the compressed cluster decoded last
		entry uint64
		data  []byte
	}
	zstd *zstd.Decoder
}

// maxTableBytes bounds the cached L2 tables of a chain, whatever its clusters;
// only, each file may have one.
const maxTableBytes = 16 << 20

// openFile opens a file for the sake of its tables: the data of an encrypted one
// is not there without its Encryption.
func openFile(path string) (*file, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	fail := func(err error) (*file, error) {
		f.Close()
		return nil, err
	}
	st, err := f.Stat()
	if err != nil {
		return fail(err)
	}
	info, err := Inspect(f, st.Size())
	if err != nil {
		return fail(err)
	}
	switch {
	case info.Encrypted && info.cryptMethod != cryptLUKS:
		return fail(fmt.Errorf("%w: encryption by the method %d", ErrUnsupported, info.cryptMethod))
	case info.DataFile:
		return fail(fmt.Errorf("%w: external data file", ErrUnsupported))
	case info.ExtendedL2:
		return fail(fmt.Errorf("%w: extended L2 entries", ErrUnsupported))
	case info.incompatible&incompatCorrupt != 0:
		return fail(corrupt("the header says so"))
	}
	q := &file{f: f, info: info, size: st.Size(), tables: map[int64][]byte{}, cached: new(atomic.Int64), l1: make([]byte, info.l1Entries*8)}
	if _, err := f.ReadAt(q.l1, info.l1Offset); err != nil {
		return fail(fmt.Errorf("reading the L1 table: %w", err))
	}
	q.zstd, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecoderMaxMemory(8<<20))
	if err != nil {
		return fail(err)
	}
	return q, nil
}

func (f *file) state(entry uint64) ExtentState {
	switch {
	case entry&entryCompressed != 0:
		return Data
	case f.info.Version >= 3 && entry&entryZero != 0:
		return Zero
	case entry&offsetMask == 0:
		return Unallocated
	}
	return Data
}

// l2 returns the L2 table that maps off, nil when there is none, and how many
// bytes of the disk it maps.
func (f *file) l2(off int64) (table []byte, span int64, err error) {
	cluster := int64(1) << f.info.ClusterBits
	span = cluster / 8 * cluster
	at := int64(binary.BigEndian.Uint64(f.l1[off/span*8:]) & offsetMask)
	if at == 0 {
		return nil, span, nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if t, ok := f.tables[at]; ok {
		return t, span, nil
	}
	if at%cluster != 0 || at > f.size-cluster {
		return nil, 0, corrupt("an L2 table at %d lies outside the file", at)
	}
	t := make([]byte, cluster)
	if _, err := f.f.ReadAt(t, at); err != nil {
		return nil, 0, fmt.Errorf("reading an L2 table: %w", err)
	}
	if f.cached.Add(cluster) > maxTableBytes {
		f.cached.Add(-cluster * int64(len(f.tables)))
		clear(f.tables)
	}
	f.tables[at] = t
	return t, span, nil
}

func (f *file) entry(off int64) (uint64, error) {
	t, span, err := f.l2(off)
	if t == nil || err != nil {
		return 0, err
	}
	return binary.BigEndian.Uint64(t[off%span>>f.info.ClusterBits*8:]), nil
}

// decodeRoom is the room behind a cluster with which the decoder copies in larger
// steps, in bytes.
const decodeRoom = 64

// readCluster reads p from inside a cluster that holds data. What p has room for
// behind its end may be written over.
func (f *file) readCluster(p []byte, entry uint64, in int64) error {
	if entry&entryCompressed == 0 {
		at := int64(entry & offsetMask)
		if at >= f.size || at&(1<<f.info.ClusterBits-1) != 0 {
			return corrupt("a cluster at %d lies outside the file", at)
		}
		var err error
		if f.info.Encrypted {
			err = f.decrypt(p, at+in)
		} else {
			_, err = f.f.ReadAt(p, at+in)
		}
		if errors.Is(err, io.EOF) { // QEMU writes clusters whole, so this is no file of its making
			return corrupt("a cluster at %d is cut off", at)
		}
		return err
	}
	f.mu.Lock()
	if f.last.entry == entry && f.last.data != nil {
		copy(p, f.last.data[in:])
		f.mu.Unlock()
		return nil
	}
	f.mu.Unlock()
	cluster := 1 << f.info.ClusterBits
	if len(p) == cluster { // nobody will ask for the rest of it
		return f.decompress(p, entry)
	}
	data := make([]byte, cluster, cluster+decodeRoom)
	if err := f.decompress(data, entry); err != nil {
		return err
	}
	copy(p, data[in:])
	f.mu.Lock()
	f.last.entry, f.last.data = entry, data
	f.mu.Unlock()
	return nil
}

// packed holds the buffers that compressed clusters are read into.
var packed = sync.Pool{New: func() any { return new([]byte) }} //nolint:gochecknoglobals // what is in it says nothing

// decompress fills data, which has a cluster's size, and may write behind it what it
// has room for.
func (f *file) decompress(data []byte, entry uint64) error {
	shift := 62 - (f.info.ClusterBits - 8)
	at := int64(entry & (1<<shift - 1))
	sectors := int64(entry&^(entryCopied|entryCompressed)>>shift) + 1
	n := min(sectors*512-at%512, f.size-at)
	if at >= f.size || n <= 0 {
		return corrupt("a compressed cluster at %d lies outside the file", at)
	}
	buf := packed.Get().(*[]byte)
	defer packed.Put(buf)
	*buf = slices.Grow((*buf)[:0], int(n))[:n]
	if _, err := f.f.ReadAt(*buf, at); err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("reading a compressed cluster: %w", err)
	}
	if f.info.Compression == compressionZlib {
		if _, err := io.ReadFull(flate.NewReader(bytes.NewReader(*buf)), data); err != nil {
			return corrupt("a compressed cluster at %d: %v", at, err)
		}
		return nil
	}
	// What stands behind the frame in its last sector is not its own.
	size, err := frameSize(*buf)
	if err != nil {
		return corrupt("a compressed cluster at %d: %v", at, err)
	}
	out, err := f.zstd.DecodeAll((*buf)[:size], data[:0])
	if err != nil || len(out) != len(data) {
		return corrupt("a compressed cluster at %d of %d bytes: %v", at, len(out), err)
	}
	return nil
}

// frameSize finds the end of a zstd frame by its block headers (RFC 8878, 3.1.1).
func frameSize(b []byte) (int, error) {
	var h zstd.Header
	if err := h.Decode(b); err != nil {
		return 0, err
	}
	if h.Skippable {
		return 0, errors.New("a skippable frame")
	}
	for at := h.HeaderSize; at+3 <= len(b); {
		head := int(b[at]) | int(b[at+1])<<8 | int(b[at+2])<<16
		n := head >> 3
		if head>>1&3 == 1 { // one byte, repeated
			n = 1
		}
		at += 3 + n
		if head&1 != 0 {
			if h.HasCheckSum {
				at += 4
			}
			if at > len(b) {
				break
			}
			return at, nil
		}
	}
	return 0, errors.New("the frame is cut off")
}
