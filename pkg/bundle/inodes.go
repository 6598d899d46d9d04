package bundle

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

// An ext4 that mke2fs has made here, for changing its inodes in place ("ext4 Data
// Structures and Algorithms" in the Linux kernel's documentation). Only what
// makeExt4 asks mke2fs for is known.
type inodes struct {
	f         file
	blockSize int64
	inodeSize int64
	perGroup  uint32
	tables    []int64 // where each group's begins, in bytes
	used      []uint32
	seed      uint32 // of checksums
}

type file interface {
	io.ReaderAt
	io.WriterAt
}

const (
	superAt     = 1024
	superSize   = 1024
	superMagic  = 0xef53
	rootInode   = 2
	firstInode  = 11
	incompat64  = 0x80
	incompatExt = 0x40
	csumFeature = 0x400
	groupUninit = 1
)

var errNotOurs = errors.New("the filesystem is not one that was made here")

// castagnoli is CRC-32C without the inversions, as ext4 has it.
func castagnoli(crc uint32, p []byte) uint32 {
	return ^crc32.Update(^crc, crc32.MakeTable(crc32.Castagnoli), p)
}

func openInodes(f file) (*inodes, error) {
	sb := make([]byte, superSize)
	if _, err := f.ReadAt(sb, superAt); err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	s := &inodes{f: f, blockSize: 1024 << (le.Uint32(sb[0x18:]) & 7), inodeSize: int64(le.Uint16(sb[0x58:])), perGroup: le.Uint32(sb[0x28:])}
	incompat, ro := le.Uint32(sb[0x60:]), le.Uint32(sb[0x64:])
	if le.Uint16(sb[0x38:]) != superMagic || s.inodeSize != 256 || incompat&incompat64 == 0 || ro&csumFeature == 0 || s.perGroup == 0 || s.perGroup > 8*uint32(s.blockSize) {
		return nil, errNotOurs
	}
	s.seed = castagnoli(^uint32(0), sb[0x68:0x78])
	groups := (uint64(le.Uint32(sb[0x4:])) + uint64(le.Uint32(sb[0x20:])) - 1) / uint64(le.Uint32(sb[0x20:]))
	descSize := int64(le.Uint16(sb[0xfe:]))
	if descSize != 64 || groups > 1<<20 {
		return nil, errNotOurs
	}
	table := make([]byte, int64(groups)*descSize)
	if _, err := f.ReadAt(table, s.blockSize*(int64(le.Uint32(sb[0x14:]))+1)); err != nil {
		return nil, err
	}
	for g := range groups {
		d := table[int64(g)*descSize:]
		at := int64(le.Uint32(d[0x8:])) | int64(le.Uint32(d[0x28:]))<<32
		unused := uint32(le.Uint16(d[0x1c:])) | uint32(le.Uint16(d[0x32:]))<<16
		used := s.perGroup - min(unused, s.perGroup)
		if le.Uint16(d[0x12:])&groupUninit != 0 {
			used = 0
		}
		s.tables, s.used = append(s.tables, at*s.blockSize), append(s.used, used)
	}
	return s, nil
}

// each calls fn with each inode in use and its number. Where fn changes it and
// returns true, it is written back with its checksum.
func (s *inodes) each(fn func(ino uint32, raw []byte) bool) error {
	for g, used := range s.used {
		b := make([]byte, int64(used)*s.inodeSize)
		if _, err := s.f.ReadAt(b, s.tables[g]); err != nil {
			return fmt.Errorf("reading inodes: %w", err)
		}
		changed := false
		for i := range used {
			raw := b[int64(i)*s.inodeSize:][:s.inodeSize]
			ino := uint32(g)*s.perGroup + i + 1
			if binary.LittleEndian.Uint16(raw[0x1a:]) == 0 || ino < firstInode && ino != rootInode {
				continue
			}
			if fn(ino, raw) {
				changed = true
				s.sum(ino, raw)
			}
		}
		if !changed {
			continue
		}
		if _, err := s.f.WriteAt(b, s.tables[g]); err != nil {
			return fmt.Errorf("writing inodes: %w", err)
		}
	}
	return nil
}

// sum writes an inode's checksum.
func (s *inodes) sum(ino uint32, raw []byte) {
	le := binary.LittleEndian
	clear(raw[0x7c:0x7e])
	clear(raw[0x82:0x84])
	crc := castagnoli(s.seed, le.AppendUint32(nil, ino))
	crc = castagnoli(crc, raw[0x64:0x68]) // its generation
	crc = castagnoli(crc, raw)
	le.PutUint16(raw[0x7c:], uint16(crc))
	le.PutUint16(raw[0x82:], uint16(crc>>16))
}

// mtimeOf is the low part of a file's time of change, in seconds.
func mtimeOf(raw []byte) uint32 { return binary.LittleEndian.Uint32(raw[0x10:]) }

// setTimes gives an inode one time for everything, in seconds.
func setTimes(raw []byte, t int64) {
	le := binary.LittleEndian
	for _, at := range []struct{ low, extra int }{{0x8, 0x8c}, {0xc, 0x84}, {0x10, 0x88}, {0x90, 0x94}} {
		le.PutUint32(raw[at.low:], uint32(t))
		// Two bits for the years from 2038 on, the rest are nanoseconds.
		le.PutUint32(raw[at.extra:], uint32((t-int64(int32(t)))>>32)&3)
	}
}

// setOwner gives an inode its owner and permissions.
func setOwner(raw []byte, perm, uid, gid uint32) {
	le := binary.LittleEndian
	le.PutUint16(raw, le.Uint16(raw)&0xf000|uint16(perm&0o7777))
	le.PutUint16(raw[0x2:], uint16(uid))
	le.PutUint16(raw[0x18:], uint16(gid))
	le.PutUint16(raw[0x78:], uint16(uid>>16))
	le.PutUint16(raw[0x7a:], uint16(gid>>16))
}

// setDevice says which device an inode is: as Linux has them, in the old way where
// that can say it.
func setDevice(raw []byte, major, minor uint32) {
	le := binary.LittleEndian
	blocks := raw[0x28:0x64]
	clear(blocks)
	if major < 256 && minor < 256 {
		le.PutUint32(blocks, major<<8|minor)
		return
	}
	le.PutUint32(blocks[4:], minor&0xff|major<<8|minor&^0xff<<12)
}
