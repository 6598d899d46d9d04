package qcow2

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
)

const (
	bitmapAuto        = 1 << 1 // records writes whenever the image is open for writing
	bitmapDirtyType   = 1
	bitmapGranularity = clusterBits
)

// CreateHead makes an empty writable overlay at path, which must not exist: a
// disk of size bytes that reads as the backing file of that name ("" for
// zeros). With bitmap a persistent dirty bitmap of that name, of 64 KiB
// granularity, records what is written from now on. The caller syncs the file.
//
// With an Encryption (nil for none) it is encrypted, with that of the layers that
// are to be made of it. It returns ErrUnsupported, or fs.ErrExist.
//
// A head hardly grows with the disk: what it needs are the header, one refcount
// block, the L1 table and the bitmap's directory and table. Each has clusters of
// its own, which are holes but for what is used of them: an empty head takes less
// than 32 KiB, the key slots of a LUKS header aside.
func CreateHead(path string, size int64, backing, bitmap string, enc *Encryption) error {
	if size <= 0 || size%512 != 0 || size > maxVirtualBytes {
		return fmt.Errorf("%w: a disk of %d bytes", ErrUnsupported, size)
	}
	if len(bitmap) > maxNameLen {
		return fmt.Errorf("%w: a bitmap's name of %d bytes", ErrUnsupported, len(bitmap))
	}
	empty := stage{enc: enc}
	g := empty.geometry(size)
	var extension, directory []byte
	if bitmap != "" {
		// One bit a cluster; each entry of the bitmap's table maps a cluster of
		// bits, and 0 says that they are all clear: the table is a hole.
		bits := (size + 1<<bitmapGranularity - 1) >> bitmapGranularity
		entries := (bits + 8*ClusterSize - 1) / (8 * ClusterSize)
		tableClusters := (entries*8 + ClusterSize - 1) / ClusterSize
		tableAt := g.data + 1
		g.dataClusters = 1 + tableClusters
		g.total += g.dataClusters
		directory = bitmapDirectory(bitmap, tableAt*ClusterSize, entries)
		extension = bitmapsExtension(g.data*ClusterSize, int64(len(directory)))
	}
	head, err := header(size, g, backing, compressionZlib, enc, extension)
	if err != nil {
		return err
	}
	refTable := binary.BigEndian.AppendUint64(nil, uint64(g.refBlock*ClusterSize))
	refs := make([]byte, g.total*2)
	for c := range g.total {
		binary.BigEndian.PutUint16(refs[c*2:], 1)
	}
	var luks []byte
	if enc != nil {
		luks = enc.header
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	parts := []struct {
		at   int64
		data []byte
	}{{0, bytes.TrimRight(head, "\x00")}, {g.luks, luks}, {g.refTable, refTable}, {g.refBlock, refs}, {g.data, directory}}
	for _, p := range parts {
		if _, err = f.WriteAt(p.data, p.at*ClusterSize); err != nil {
			break
		}
	}
	if err == nil {
		err = f.Truncate(g.total * ClusterSize)
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		os.Remove(path)
		return fmt.Errorf("making head %s: %w", path, err)
	}
	return nil
}

func bitmapsExtension(directory, length int64) []byte {
	b := make([]byte, 8+24)
	be := binary.BigEndian
	be.PutUint32(b[0:], extBitmaps)
	be.PutUint32(b[4:], 24)
	be.PutUint32(b[8:], 1)
	be.PutUint64(b[16:], uint64(length))
	be.PutUint64(b[24:], uint64(directory))
	return b
}

func bitmapDirectory(name string, table, entries int64) []byte {
	b := make([]byte, 24, 24+len(name)+8)
	be := binary.BigEndian
	be.PutUint64(b[0:], uint64(table))
	be.PutUint32(b[8:], uint32(entries))
	be.PutUint32(b[12:], bitmapAuto)
	b[16], b[17] = bitmapDirtyType, bitmapGranularity
	be.PutUint16(b[18:], uint16(len(name)))
	b = append(b, name...)
	for len(b)%8 != 0 {
		b = append(b, 0)
	}
	return b
}
