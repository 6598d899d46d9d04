package qcow2

import (
	"bytes"
	"compress/flate"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/klauspost/compress/zstd"
)

// ExtentState says what one file knows of a run of the disk.
type ExtentState int

// The states. Unallocated is defined by the layer underneath; where there is
// none it reads as zeros.
const (
	Unallocated ExtentState = iota
	Zero
	Data
)

// Source is what a layer is written from. ReadAt returns what the guest sees,
// also where Extents says Unallocated ("as in the parent"). Both are safe for
// concurrent use.
type Source interface {
	io.ReaderAt
	// Size is the virtual size in bytes.
	Size() int64
	// Extents calls fn with consecutive runs that cover [off, off+length).
	Extents(ctx context.Context, off, length int64, fn func(off, length int64, state ExtentState) error) error
}

// Image is an open chain of qcow2 files: a top and what it stands on.
type Image struct{ files []*file } // top first

// Open opens the chain of the file at path and the given backing files, nearest
// first. Names inside the headers are not followed.
func Open(path string, backing ...string) (*Image, error) {
	img := &Image{}
	for _, p := range append([]string{path}, backing...) {
		f, err := openFile(p)
		if err != nil {
			img.Close()
			return nil, fmt.Errorf("opening %s: %w", p, err)
		}
		img.files = append(img.files, f)
	}
	return img, nil
}

// Close closes all files of the chain.
func (img *Image) Close() error {
	var errs []error
	for _, f := range img.files {
		errs = append(errs, f.f.Close())
	}
	return errors.Join(errs...)
}

// Size is the virtual size in bytes.
func (img *Image) Size() int64 { return img.files[0].info.Size }

// Info is what the top file's header says.
func (img *Image) Info() Info { return img.files[0].info }

// ReadAt reads what the guest sees.
func (img *Image) ReadAt(p []byte, off int64) (int, error) {
	return readChain(img.files, p, off, img.Size())
}

func readChain(files []*file, p []byte, off, size int64) (int, error) {
	if off < 0 {
		return 0, errors.New("negative offset")
	}
	if off >= size {
		return 0, io.EOF
	}
	want := len(p)
	if int64(len(p)) > size-off {
		p = p[:size-off]
	}
	done := 0
	for done < len(p) {
		n, err := readRun(files, p[done:], off+int64(done))
		if err != nil {
			return done, err
		}
		done += n
	}
	if done < want {
		return done, io.EOF
	}
	return done, nil
}

// readRun reads up to the end of one cluster of the topmost file that knows it.
func readRun(files []*file, p []byte, off int64) (int, error) {
	limit := int64(len(p))
	for _, f := range files {
		if off >= f.info.Size { // a shorter file underneath reads as zeros
			break
		}
		cluster := int64(1) << f.info.ClusterBits
		limit = min(limit, cluster-off%cluster, f.info.Size-off)
		entry, err := f.entry(off)
		if err != nil {
			return 0, err
		}
		switch f.state(entry) {
		case Unallocated:
			continue
		case Zero:
			clear(p[:limit])
			return int(limit), nil
		}
		return int(limit), f.readCluster(p[:limit], entry, off%cluster)
	}
	clear(p[:limit])
	return int(limit), nil
}

// Extents says what the top file knows, cluster by cluster, in merged runs.
func (img *Image) Extents(ctx context.Context, off, length int64, fn func(off, length int64, state ExtentState) error) error {
	if len(img.files) == 1 { // nothing underneath: unallocated is zero
		return Flatten(img).Extents(ctx, off, length, fn)
	}
	return extents(ctx, img.files[:1], img.Size(), off, length, fn)
}

// extents says what files know together: Unallocated is what none of them does.
func extents(ctx context.Context, files []*file, size, off, length int64, fn func(off, length int64, state ExtentState) error) error {
	end := min(off+length, size)
	run, state := off, ExtentState(-1)
	flush := func(to int64) error {
		if state < 0 || to == run {
			return nil
		}
		return fn(run, to-run, state)
	}
	for at := off; at < end; {
		if err := ctx.Err(); err != nil {
			return err
		}
		now, next, err := known(files, at)
		if err != nil {
			return err
		}
		if now != state {
			if err := flush(at); err != nil {
				return err
			}
			run, state = at, now
		}
		at = min(next, end)
	}
	return flush(end)
}

// known says what files know of the place at, and where that knowledge ends. A
// missing L2 table in all of them is skipped over whole.
func known(files []*file, at int64) (ExtentState, int64, error) {
	next := int64(1) << 62
	for _, f := range files {
		if at >= f.info.Size {
			continue
		}
		table, span, err := f.l2(at)
		if err != nil {
			return 0, 0, err
		}
		cluster := int64(1) << f.info.ClusterBits
		if table == nil {
			next = min(next, at-at%span+span)
			continue
		}
		next = min(next, at-at%cluster+cluster)
		if s := f.state(binary.BigEndian.Uint64(table[at%span/cluster*8:])); s != Unallocated {
			return s, next, nil
		}
	}
	return Unallocated, next, nil
}

// Flatten is the whole chain as one source: what no file knows is zero.
func Flatten(img *Image) Source { return flat{img} }

type flat struct{ *Image }

func (s flat) Extents(ctx context.Context, off, length int64, fn func(off, length int64, state ExtentState) error) error {
	return extents(ctx, s.files, s.Size(), off, length, func(off, length int64, state ExtentState) error {
		if state == Unallocated {
			state = Zero
		}
		return fn(off, length, state)
	})
}

// file is one open file of a chain.
type file struct {
	f    *os.File
	info Info
	size int64
	l1   []byte

	mu     sync.Mutex
	tables map[int64][]byte // L2 tables by offset, at most maxTables
	last   struct {         // the compressed cluster decoded last
		entry uint64
		data  []byte
	}
	zstd *zstd.Decoder
}

// maxTables bounds the cached L2 tables of one file: 16 MiB with 64 KiB clusters.
const maxTables = 256

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
	case info.Encrypted:
		return fail(fmt.Errorf("%w: encryption", ErrUnsupported))
	case info.DataFile:
		return fail(fmt.Errorf("%w: external data file", ErrUnsupported))
	case info.ExtendedL2:
		return fail(fmt.Errorf("%w: extended L2 entries", ErrUnsupported))
	case info.incompatible&incompatCorrupt != 0:
		return fail(corrupt("the header says so"))
	}
	q := &file{f: f, info: info, size: st.Size(), tables: map[int64][]byte{}, l1: make([]byte, info.l1Entries*8)}
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
	if len(f.tables) >= maxTables {
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

// readCluster reads p from inside a cluster that holds data.
func (f *file) readCluster(p []byte, entry uint64, in int64) error {
	if entry&entryCompressed == 0 {
		at := int64(entry & offsetMask)
		if at > f.size {
			return corrupt("a cluster at %d lies outside the file", at)
		}
		n, err := f.f.ReadAt(p, at+in)
		if errors.Is(err, io.EOF) { // QEMU leaves the tail of the last cluster out
			clear(p[n:])
			return nil
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
	data, err := f.decompress(entry)
	if err != nil {
		return err
	}
	copy(p, data[in:])
	f.mu.Lock()
	f.last.entry, f.last.data = entry, data
	f.mu.Unlock()
	return nil
}

func (f *file) decompress(entry uint64) ([]byte, error) {
	cluster := 1 << f.info.ClusterBits
	shift := 62 - (f.info.ClusterBits - 8)
	at := int64(entry & (1<<shift - 1))
	sectors := int64(entry&^(entryCopied|entryCompressed)>>shift) + 1
	n := min(sectors*512-at%512, f.size-at)
	if at >= f.size || n <= 0 {
		return nil, corrupt("a compressed cluster at %d lies outside the file", at)
	}
	packed := make([]byte, n)
	if _, err := f.f.ReadAt(packed, at); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("reading a compressed cluster: %w", err)
	}
	if f.info.Compression == compressionZlib {
		data := make([]byte, cluster)
		r := flate.NewReader(bytes.NewReader(packed))
		if _, err := io.ReadFull(r, data); err != nil {
			return nil, corrupt("a compressed cluster at %d: %v", at, err)
		}
		return data, nil
	}
	// What stands behind the frame in its last sector is not its own.
	size, err := frameSize(packed)
	if err != nil {
		return nil, corrupt("a compressed cluster at %d: %v", at, err)
	}
	data, err := f.zstd.DecodeAll(packed[:size], make([]byte, 0, cluster))
	if err != nil || len(data) != cluster {
		return nil, corrupt("a compressed cluster at %d of %d bytes: %v", at, len(data), err)
	}
	return data, nil
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
