package ext4

import "encoding/binary"

const (
	extraInode = 32 // bytes that an inode has behind its first 128
	bodyAt     = 128 + extraInode
	hasExtents = 0x80000 // flag
	mostLinks  = 65000
)

// inodeSeed is what the checksums of an inode's blocks begin with.
func (p *plan) inodeSeed(ino uint32) uint32 {
	var b [8]byte // and its generation, 0
	binary.LittleEndian.PutUint32(b[:], ino)
	return castagnoli(p.seed, b[:])
}

// putInode writes a file's inode into raw, which is all zeros.
func (p *plan) putInode(raw []byte, f *File) {
	le := binary.LittleEndian
	le.PutUint16(raw, uint16(f.Mode))
	le.PutUint16(raw[0x2:], uint16(f.UID))
	le.PutUint16(raw[0x18:], uint16(f.GID))
	le.PutUint16(raw[0x78:], uint16(f.UID>>16))
	le.PutUint16(raw[0x7a:], uint16(f.GID>>16))
	size := f.Size
	switch f.kind() {
	case folder:
		size = f.least * Block
	case symlink:
		size = int64(len(f.Target))
	}
	le.PutUint32(raw[0x4:], uint32(size))
	le.PutUint32(raw[0x6c:], uint32(size>>32))
	putTimes(raw, f.Time)
	le.PutUint16(raw[0x80:], extraInode)
	links := f.links
	if links > mostLinks { // a folder with more than can be counted (dir_nlink)
		links = 1
	}
	le.PutUint16(raw[0x1a:], uint16(links))
	if f.mapped() {
		le.PutUint32(raw[0x20:], hasExtents)
	}
	copy(raw[0x28:0x64], f.head[:])
	blocks := f.nodes
	for _, e := range f.extents {
		blocks += e.count
	}
	if f.attrBlock != 0 {
		blocks++
		le.PutUint32(raw[0x68:], uint32(f.attrBlock))
		le.PutUint16(raw[0x76:], uint16(f.attrBlock>>32))
	}
	le.PutUint32(raw[0x1c:], uint32(blocks*Block/512))
	le.PutUint16(raw[0x74:], uint16(blocks*Block/512>>32))
	copy(raw[bodyAt:], f.inBody)
	p.sumInode(raw, f.ino)
}

// sumInode writes an inode's checksum.
func (p *plan) sumInode(raw []byte, ino uint32) {
	crc := castagnoli(p.inodeSeed(ino), raw)
	binary.LittleEndian.PutUint16(raw[0x7c:], uint16(crc))
	binary.LittleEndian.PutUint16(raw[0x82:], uint16(crc>>16))
}

// mapped says whether a file's blocks are found by its extents.
func (f *File) mapped() bool {
	switch f.kind() {
	case regular, folder:
		return true
	case symlink:
		return !f.fast()
	}
	return false
}

// fast says whether a symbolic link is short enough for its inode.
func (f *File) fast() bool { return len(f.Target) < len(f.head) }

// putTimes gives an inode one time for everything, in seconds.
func putTimes(raw []byte, t int64) {
	le := binary.LittleEndian
	for _, at := range []struct{ low, extra int }{{0x8, 0x8c}, {0xc, 0x84}, {0x10, 0x88}, {0x90, 0x94}} {
		le.PutUint32(raw[at.low:], uint32(t))
		// Two bits for the years from 2038 on, the rest are nanoseconds.
		le.PutUint32(raw[at.extra:], uint32((t-int64(int32(t)))>>32)&3)
	}
}

// putDevice says which device an inode is: as Linux has them, in the old way where
// that can say it.
func putDevice(blocks []byte, major, minor uint32) {
	le := binary.LittleEndian
	if major < 256 && minor < 256 {
		le.PutUint32(blocks, major<<8|minor)
		return
	}
	le.PutUint32(blocks[4:], minor&0xff|major<<8|minor&^0xff<<12)
}

// inodes are those of one group that are in use.
type inodes struct {
	p     *plan
	first uint32
	count uint32
}

func (t *inodes) readAt(p []byte, off int64) error {
	return rendered(p, off, func(b []byte, n int64) {
		clear(b)
		for i := range uint32(inodesBlock) {
			in := uint32(n)*inodesBlock + i
			if in >= t.count {
				return
			}
			raw, ino := b[i*inodeSize:][:inodeSize], t.first+in
			if f := t.p.file(ino); f != nil {
				t.p.putInode(raw, f)
			} else if ino == resizeInode {
				t.p.putResize(raw)
			}
		}
	})
}
