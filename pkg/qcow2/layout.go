package qcow2

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/kamivm/kami/pkg/digest"
)

// stage collects stored clusters until the tables' size is known: those that are
// compressed, which lie side by side, and apart from them those that are stored as
// they are, which have to begin where a cluster does. Both are in guest order.
type stage struct {
	enc    *Encryption // of the layer, nil for none; then nothing is compressed, and plain is veiled
	veil   *veil
	packed spool
	plain  spool
	index  index
}

// spool is a file that is written once, then read.
type spool struct {
	f *os.File
	w *bufio.Writer
	n int64 // bytes
}

func newSpool(beside *os.File) (s spool, err error) {
	if s.f, err = unlinked(beside); err == nil {
		s.w = bufio.NewWriterSize(s.f, 256<<10)
	}
	return s, err
}

func (s *spool) add(p []byte) error {
	n, err := s.w.Write(p)
	s.n += int64(n)
	return err
}

func newStage(beside *os.File, enc *Encryption) (s *stage, err error) {
	s = &stage{enc: enc}
	defer func() {
		if err != nil {
			s.close()
			s, err = nil, fmt.Errorf("staging a layer: %w", err)
		}
	}()
	if s.packed, err = newSpool(beside); err != nil {
		return s, err
	}
	if s.plain, err = newSpool(beside); err != nil {
		return s, err
	}
	if s.index.f, err = unlinked(beside); err != nil {
		return s, err
	}
	s.index.w = bufio.NewWriterSize(s.index.f, 64<<10)
	if enc != nil {
		if s.veil, err = newVeil(s.plain.f); err != nil {
			return s, err
		}
		s.plain.w.Reset(s.veil)
	}
	return s, nil
}

func (s *stage) close() {
	s.packed.f.Close()
	s.plain.f.Close()
	s.index.f.Close()
}

func (s *stage) flush() error {
	if err := errors.Join(s.packed.w.Flush(), s.plain.w.Flush(), s.index.w.Flush()); err != nil {
		return fmt.Errorf("staging a layer: %w", err)
	}
	return nil
}

func (s *stage) add(allocs []alloc, data [][]byte) error {
	for _, a := range allocs {
		err := s.index.add(a)
		if err == nil && a.packed != allocZero {
			to := &s.packed
			if a.packed == allocPlain {
				to = &s.plain
			}
			err = to.add(data[0])
			data = data[1:]
		}
		if err != nil {
			return fmt.Errorf("staging a layer: %w", err)
		}
	}
	return nil
}

// geometry is where the parts of a layer lie, in clusters.
type geometry struct {
	luks, luksClusters  int64
	refTable, refTables int64
	refBlock, refBlocks int64
	l1, l1Clusters      int64
	l2, l2Tables        int64
	data, dataClusters  int64 // what is compressed
	plain, plains       int64
	l1Entries           int64
	total               int64
}

const (
	l2Entries      = ClusterSize / 8
	refsPerBlock   = ClusterSize / 2
	refBlocksTable = ClusterSize / 8
)

func (s *stage) geometry(size int64) geometry {
	g := geometry{l1Entries: (size + l2Entries*ClusterSize - 1) / (l2Entries * ClusterSize)}
	g.l1Clusters = (g.l1Entries*8 + ClusterSize - 1) / ClusterSize
	g.l2Tables = int64(len(s.index.tables))
	g.dataClusters = (s.packed.n + ClusterSize - 1) / ClusterSize
	g.plains = s.plain.n / ClusterSize
	g.luks = 1
	if s.enc != nil {
		g.luksClusters = (s.enc.length + ClusterSize - 1) / ClusterSize
	}
	// The refcounts count themselves, so their size is found by trying.
	for g.refTables, g.refBlocks = 1, 1; ; {
		g.total = g.luks + g.luksClusters + g.refTables + g.refBlocks + g.l1Clusters + g.l2Tables + g.dataClusters + g.plains
		blocks := (g.total + refsPerBlock - 1) / refsPerBlock
		tables := (blocks + refBlocksTable - 1) / refBlocksTable
		if blocks == g.refBlocks && tables == g.refTables {
			break
		}
		g.refBlocks, g.refTables = blocks, tables
	}
	g.refTable = g.luks + g.luksClusters
	g.refBlock = g.refTable + g.refTables
	g.l1 = g.refBlock + g.refBlocks
	g.l2 = g.l1 + g.l1Clusters
	g.data = g.l2 + g.l2Tables
	g.plain = g.data + g.dataClusters
	return g
}

// layOut writes the layer's file and returns its digest and size.
func (s *stage) layOut(ctx context.Context, w *os.File, size int64, backing string) (digest.Digest, int64, error) {
	g := s.geometry(size)
	compression := byte(compressionZstd)
	if s.enc != nil {
		compression = compressionZlib // nothing is compressed
	}
	head, err := header(size, g, backing, compression, s.enc, nil)
	if err != nil {
		return "", 0, err
	}
	luks := make([]byte, g.luksClusters*ClusterSize)
	if s.enc != nil {
		copy(luks, s.enc.header)
	}
	table := make([]byte, g.refTables*ClusterSize)
	for i := range g.refBlocks {
		binary.BigEndian.PutUint64(table[i*8:], uint64((g.refBlock+i)*ClusterSize))
	}
	packed, plain, err := s.data(g.plain * ClusterSize)
	if err != nil {
		return "", 0, err
	}
	sum, err := writeHashed(ctx, w, io.MultiReader(
		bytes.NewReader(head), bytes.NewReader(luks), bytes.NewReader(table),
		s.refcounts(g), bytes.NewReader(s.l1(g)), s.l2(g),
		packed, bytes.NewReader(make([]byte, -s.packed.n&(ClusterSize-1))), plain))
	if err == nil {
		err = w.Truncate(g.total * ClusterSize) // should its end be a hole
	}
	if err != nil {
		return "", 0, fmt.Errorf("writing a layer: %w", err)
	}
	return digest.FromSum(sum), g.total * ClusterSize, nil
}

// data reads what is staged as it is to lie in the file, where what is plain
// begins at a place.
func (s *stage) data(at int64) (packed, plain io.Reader, err error) {
	for _, f := range []*os.File{s.packed.f, s.plain.f} {
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			return nil, nil, err
		}
	}
	if s.enc == nil {
		return s.packed.f, s.plain.f, nil
	}
	veiled, err := s.veil.lift(s.plain.f)
	return s.packed.f, &encrypting{r: veiled, enc: s.enc, at: at}, err
}

// writeHashed copies r to w and returns the SHA-256 of it. Hashing goes on beside
// reading and writing, and the disk is set to work at once, so that there is
// little left to wait for when the file is synced. Pages of zeros, of which the
// tables and a LUKS header are full, become holes.
func writeHashed(ctx context.Context, w *os.File, r io.Reader) (sum [sha256.Size]byte, err error) {
	const chunk, ahead = 256 << 10, 4
	free, filled := make(chan []byte, ahead), make(chan []byte, ahead)
	for range ahead {
		free <- make([]byte, chunk)
	}
	hashed := make(chan struct{})
	go func() {
		defer close(hashed)
		h := sha256.New()
		for b := range filled {
			h.Write(b)
			free <- b[:chunk]
		}
		h.Sum(sum[:0])
	}()
	for at := int64(0); err == nil; {
		if err = ctx.Err(); err != nil {
			break
		}
		b := <-free
		n, rerr := io.ReadFull(r, b)
		filled <- b[:n]
		if err = WriteSparse(w, b[:n], at); err == nil {
			// Only a hint: the sync that follows reports what fails.
			_ = unix.SyncFileRange(int(w.Fd()), at, int64(n), unix.SYNC_FILE_RANGE_WRITE)
			at += int64(n)
			err = rerr
		}
	}
	close(filled)
	<-hashed
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = nil
	}
	return sum, err
}

// header makes the first cluster.
func header(size int64, g geometry, backing string, compression byte, enc *Encryption, bitmaps []byte) ([]byte, error) {
	if len(backing) > maxNameLen {
		return nil, fmt.Errorf("%w: a backing name of %d bytes", ErrUnsupported, len(backing))
	}
	b := make([]byte, ClusterSize)
	be := binary.BigEndian
	be.PutUint32(b[0:], magic)
	be.PutUint32(b[4:], 3)
	be.PutUint32(b[20:], clusterBits)
	be.PutUint64(b[24:], uint64(size))
	be.PutUint32(b[36:], uint32(g.l1Entries))
	be.PutUint64(b[40:], uint64(g.l1*ClusterSize))
	be.PutUint64(b[48:], uint64(g.refTable*ClusterSize))
	be.PutUint32(b[56:], uint32(g.refTables))
	if compression != compressionZlib {
		be.PutUint64(b[72:], incompatCompression)
	}
	be.PutUint32(b[96:], 4) // refcounts of 16 bits
	be.PutUint32(b[100:], headerSize)
	b[104] = compression
	at := headerSize
	if backing != "" {
		format := "qcow2"
		be.PutUint32(b[at:], extBackingFormat)
		be.PutUint32(b[at+4:], uint32(len(format)))
		copy(b[at+8:], format)
		at += 16
	}
	if enc != nil {
		be.PutUint32(b[32:], cryptLUKS)
		be.PutUint32(b[at:], extLUKS)
		be.PutUint32(b[at+4:], 16)
		be.PutUint64(b[at+8:], uint64(g.luks*ClusterSize))
		be.PutUint64(b[at+16:], uint64(enc.length))
		at += 24
	}
	if enc != nil && enc.keyID != "" {
		be.PutUint32(b[at:], extKey)
		be.PutUint32(b[at+4:], uint32(len(enc.keyID)))
		copy(b[at+8:], enc.keyID)
		at += 8 + (len(enc.keyID)+7)/8*8
	}
	if len(bitmaps) > 0 {
		be.PutUint64(b[88:], autoclearBitmaps)
		at += copy(b[at:], bitmaps)
	}
	at += 8 // the end of the extensions: zeros
	if backing != "" {
		be.PutUint64(b[8:], uint64(at))
		be.PutUint32(b[16:], uint32(len(backing)))
		copy(b[at:], backing)
	}
	return b, nil
}
