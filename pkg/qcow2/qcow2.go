// Package qcow2 reads and writes QEMU's copy-on-write disk format, as far as
// kami needs it: chains of files are read at the guest's addresses, layers are
// written in a canonical form, and fresh heads are made with a dirty bitmap in
// them. The format is described in QEMU's docs/interop/qcow2.txt.
//
// A disk is addressed in clusters. A two-level table maps each guest cluster to
// a place in the file: the L1 table (in memory) points to L2 tables, whose
// entries say that a cluster is stored as it is, stored compressed, all zeros,
// or unallocated, which means that the backing file defines it.
//
// A file may be encrypted, as QEMU does it: then a LUKS header lies in it and data
// clusters are encrypted, while its tables are not. A header extension of ours
// names the key, and each file of a chain may need another.
//
// Files are hostile until shown otherwise: every offset is held against the
// file's size, every table has a bound, and a name in a header is never opened.
package qcow2

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// ClusterSize is the cluster size of what kami writes, in bytes.
const ClusterSize = 1 << clusterBits

// BlockSize is the unit of content digests, EBS direct's block, in bytes.
const BlockSize = 512 << 10

const (
	clusterBits     = 16
	magic           = 0x514649fb // "QFI\xfb"
	headerV2        = 72
	headerV3        = 104
	headerSize      = 112 // version 3 with the compression type
	maxNameLen      = 1023
	maxL1Bytes      = 32 << 20 // QEMU's own limit
	maxExtensions   = 64
	maxVirtualBytes = 1 << 48 // 2^32 clusters; also what QEMU takes a bitmap of

	incompatDirty       = 1 << 0
	incompatCorrupt     = 1 << 1
	incompatDataFile    = 1 << 2
	incompatCompression = 1 << 3
	incompatExtendedL2  = 1 << 4
	autoclearBitmaps    = 1 << 0

	extEnd           = 0
	extBackingFormat = 0xe2792aca
	extDataFile      = 0x44415441
	extBitmaps       = 0x23852875
	extLUKS          = 0x0537be77
	extKey           = 0x6b616d69 // "kami", ours: the id of the key, as text

	cryptLUKS = 2

	compressionZlib = 0
	compressionZstd = 1

	entryCopied     = uint64(1) << 63
	entryCompressed = uint64(1) << 62
	entryZero       = uint64(1)
	offsetMask      = uint64(0x00fffffffffffe00)
)

// Sentinels, wrapped by what the package returns.
var (
	ErrNotQCOW2    = errors.New("not a qcow2 file")
	ErrUnsupported = errors.New("unsupported qcow2 feature")
	ErrCorrupt     = errors.New("corrupt qcow2 file")
)

func corrupt(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrCorrupt, fmt.Sprintf(format, args...))
}

// Info is what a header says.
type Info struct {
	Version       int
	ClusterBits   int
	Size          int64 // virtual, in bytes
	BackingName   string
	BackingFormat string
	DataFile      bool   // has an external data file
	DataFileName  string // as named in the header
	Encrypted     bool
	KeyID         string // of the key that an encrypted file needs, where it says so
	Compression   byte
	ExtendedL2    bool
	Snapshots     int

	incompatible   uint64
	l1Offset       int64
	l1Entries      int
	refcountOffset int64
	cryptMethod    uint32
	luksOffset     int64
	luksLength     int64
}

// Inspect reads the header alone: no other file is opened, whatever it names.
// It returns ErrNotQCOW2, ErrUnsupported or ErrCorrupt.
func Inspect(r io.ReaderAt, fileSize int64) (Info, error) {
	var info Info
	buf := make([]byte, min(max(fileSize, 0), 64<<10))
	if n, err := r.ReadAt(buf, 0); err != nil && !(errors.Is(err, io.EOF) && n == len(buf)) {
		return info, fmt.Errorf("reading qcow2 header: %w", err)
	}
	be := binary.BigEndian
	if len(buf) < 4 || be.Uint32(buf) != magic {
		return info, ErrNotQCOW2
	}
	if len(buf) < headerV2 {
		return info, corrupt("the header is cut off")
	}
	info.Version = int(be.Uint32(buf[4:]))
	info.ClusterBits = int(be.Uint32(buf[20:]))
	size := be.Uint64(buf[24:])
	info.cryptMethod = be.Uint32(buf[32:])
	info.Encrypted = info.cryptMethod != 0
	l1Entries, l1Offset := be.Uint32(buf[36:]), be.Uint64(buf[40:])
	info.Snapshots = int(be.Uint32(buf[60:]))
	switch {
	case info.Version != 2 && info.Version != 3:
		return info, fmt.Errorf("%w: version %d", ErrUnsupported, info.Version)
	case info.ClusterBits < 9 || info.ClusterBits > 21:
		return info, corrupt("cluster bits %d are not from 9 to 21", info.ClusterBits)
	case size > maxVirtualBytes:
		return info, corrupt("a virtual size of %d bytes", size)
	case uint64(l1Entries)*8 > maxL1Bytes:
		return info, corrupt("an L1 table of %d entries", l1Entries)
	}
	info.Size, info.l1Entries = int64(size), int(l1Entries)
	headerLen := headerV2
	if info.Version == 3 {
		if len(buf) < headerV3 {
			return info, corrupt("the header is cut off")
		}
		info.incompatible = be.Uint64(buf[72:])
		headerLen = int(be.Uint32(buf[100:]))
		if headerLen < headerV3 || headerLen > len(buf) || headerLen%8 != 0 {
			return info, corrupt("a header of %d bytes", headerLen)
		}
		if headerLen > headerV3 {
			info.Compression = buf[104]
		}
	}
	info.DataFile = info.incompatible&incompatDataFile != 0
	info.ExtendedL2 = info.incompatible&incompatExtendedL2 != 0
	if unknown := info.incompatible &^ (incompatDirty | incompatCorrupt | incompatDataFile | incompatCompression | incompatExtendedL2); unknown != 0 {
		return info, fmt.Errorf("%w: incompatible features %#x", ErrUnsupported, unknown)
	}
	if info.Compression > compressionZstd {
		return info, fmt.Errorf("%w: compression type %d", ErrUnsupported, info.Compression)
	}
	cluster := uint64(1) << info.ClusterBits
	need := (size + cluster*cluster/8 - 1) / (cluster * cluster / 8)
	if uint64(l1Entries) < need {
		return info, corrupt("an L1 table of %d entries where %d are needed", l1Entries, need)
	}
	if l1Offset%cluster != 0 || l1Offset > uint64(max(fileSize, 0)) || l1Offset+uint64(l1Entries)*8 > uint64(fileSize) {
		return info, corrupt("the L1 table lies outside the file")
	}
	info.l1Offset = int64(l1Offset)
	info.refcountOffset = int64(be.Uint64(buf[48:]) & offsetMask)
	if err := info.readBacking(buf); err != nil {
		return info, err
	}
	// Extensions end where the backing name begins, or with the first cluster.
	end := min(uint64(len(buf)), cluster)
	if name := be.Uint64(buf[8:]); name != 0 {
		end = min(end, name)
	}
	if err := info.readExtensions(buf[:end], headerLen); err != nil {
		return info, err
	}
	return info, info.checkLUKS(fileSize)
}

// checkLUKS checks where the LUKS header lies.
func (info *Info) checkLUKS(fileSize int64) error {
	at, n := info.luksOffset, info.luksLength
	switch {
	case info.cryptMethod != cryptLUKS:
		info.luksOffset, info.luksLength = 0, 0
	case n < luksHeaderSize || n > maxLUKSLength:
		return corrupt("a LUKS header of %d bytes", n)
	case at <= 0 || at&(1<<info.ClusterBits-1) != 0 || at > fileSize-luksHeaderSize:
		return corrupt("a LUKS header at %d lies outside the file", at)
	}
	return nil
}

func (info *Info) readBacking(buf []byte) error {
	off, n := binary.BigEndian.Uint64(buf[8:]), uint64(binary.BigEndian.Uint32(buf[16:]))
	if off == 0 {
		return nil
	}
	if n > maxNameLen || off > uint64(len(buf)) || off+n > uint64(len(buf)) {
		return corrupt("the backing file's name lies outside the header")
	}
	info.BackingName = string(buf[off : off+n])
	return nil
}

func (info *Info) readExtensions(buf []byte, at int) error {
	for range maxExtensions {
		if at+8 > len(buf) {
			return nil
		}
		kind, n := binary.BigEndian.Uint32(buf[at:]), int(binary.BigEndian.Uint32(buf[at+4:]))
		if kind == extEnd {
			return nil
		}
		if n < 0 || n > len(buf)-at-8 {
			return corrupt("a header extension of %d bytes", n)
		}
		data := buf[at+8 : at+8+n]
		switch kind {
		case extBackingFormat:
			info.BackingFormat = string(data)
		case extDataFile:
			info.DataFile, info.DataFileName = true, string(data)
		case extLUKS:
			if n != 16 {
				return corrupt("a pointer to a LUKS header of %d bytes", n)
			}
			info.luksOffset, info.luksLength = int64(binary.BigEndian.Uint64(data)), int64(binary.BigEndian.Uint64(data[8:]))
		case extKey:
			if info.KeyID = string(data); !validKeyID(info.KeyID) {
				return corrupt("a key of the id %.64q", data)
			}
		}
		at += 8 + (n+7)/8*8
	}
	return corrupt("more than %d header extensions", maxExtensions)
}
