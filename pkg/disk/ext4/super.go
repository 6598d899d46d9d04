package ext4

import "encoding/binary"

const (
	superAt   = 1024
	superSize = 1024

	hasJournal = 0x4
	compat     = 0x8 | 0x10 | 0x20 | hasJournal // ext_attr, resize_inode, dir_index
	incompat   = 0x2 | 0x40 | 0x80 | 0x200      // filetype, extent, 64bit, flex_bg
	// sparse_super, large_file, huge_file, dir_nlink, extra_isize, metadata_csum
	roCompat = 0x1 | 0x2 | 0x8 | 0x20 | 0x40 | 0x400

	groupNoInodes = 1 // none of its inodes is in use, and its bitmap of them not written
	groupZeroed   = 4 // the rest of its table is zeros
)

// super is the superblock as the group has it, without what precedes it.
func (p *plan) super(group int64) []byte {
	b, le := make([]byte, superSize), binary.LittleEndian
	put := func(at int, v int64) { le.PutUint32(b[at:], uint32(v)) }
	put(0x0, p.inodes*p.groups)
	put(0x4, p.blocks)
	put(0x8, p.blocks*5/100) // root's
	put(0xc, p.free)
	put(0x10, p.inodes*p.groups-int64(p.last))
	put(0x18, 2) // 1024<<2
	put(0x1c, 2)
	put(0x20, perGroup)
	put(0x24, perGroup)
	put(0x28, p.inodes)
	put(0x30, p.o.Time)
	le.PutUint16(b[0x36:], 0xffff) // mounted as often as one likes without a check
	le.PutUint16(b[0x38:], 0xef53)
	if group == 0 {
		b[0x3a] = 1 // clean
	}
	b[0x3c] = 1 // goes on after errors
	put(0x40, p.o.Time)
	put(0x4c, 1) // revision
	put(0x54, firstInode)
	le.PutUint16(b[0x58:], inodeSize)
	le.PutUint16(b[0x5a:], uint16(group))
	features := int64(compat)
	if p.journal == 0 {
		features &^= hasJournal
	}
	put(0x5c, features)
	put(0x60, incompat)
	put(0x64, roCompat)
	copy(b[0x68:], p.o.UUID[:])
	copy(b[0x78:0x88], p.o.Label)
	le.PutUint16(b[0xce:], uint16(p.spare))
	copy(b[0xec:], p.o.HashSeed[:])
	b[0xfc] = 1 // half_md4
	le.PutUint16(b[0xfe:], descSize)
	put(0x100, 0xc) // user_xattr, acl
	put(0x108, p.o.Time)
	if j := p.journalFile; j != nil {
		put(0xe0, journalInode)
		b[0xfd] = 1 // a copy of its inode follows
		copy(b[0x10c:], j.head[:])
		put(0x148, j.Size>>32)
		put(0x14c, j.Size)
	}
	put(0x150, p.blocks>>32)
	le.PutUint16(b[0x15c:], extraInode)
	le.PutUint16(b[0x15e:], extraInode)
	put(0x160, 1) // bytes of names are signed in hashes
	b[0x174], b[0x175] = logPerFlex, 1
	put(superSize-4, int64(castagnoli(^uint32(0), b[:superSize-4])))
	return b
}

// descriptors writes the groups' bitmaps, and returns their descriptors.
func (p *plan) descriptors() []byte {
	le := binary.LittleEndian
	out := make([]byte, p.descs*Block)
	for g := range p.groups {
		d := out[g*descSize:][:descSize]
		put := func(low, high int, v int64) {
			le.PutUint32(d[low:], uint32(v))
			le.PutUint32(d[high:], uint32(v>>32))
		}
		put16 := func(low, high int, v int64) {
			le.PutUint16(d[low:], uint16(v))
			le.PutUint16(d[high:], uint16(v>>16))
		}
		put(0x0, 0x20, p.bitmaps[g])
		put(0x4, 0x24, p.ibitmaps[g])
		put(0x8, 0x28, p.tables[g])
		bits, free := p.space.bitmap(g)
		setBits(bits, p.groupSize(g), perGroup)
		p.free += free
		if free < perGroup {
			p.bytes(p.bitmaps[g], bits)
		}
		put16(0xc, 0x2c, free)
		put16(0x18, 0x38, int64(castagnoli(p.seed, bits)))

		used := min(max(int64(p.last)-g*p.inodes, 0), p.inodes)
		put16(0xe, 0x2e, p.inodes-used)
		put16(0x10, 0x30, p.folders[g])
		put16(0x1c, 0x32, p.inodes-used)
		flags := uint16(groupZeroed)
		if used == 0 {
			flags |= groupNoInodes
		} else {
			ibits := make([]byte, Block)
			setBits(ibits, 0, used)
			setBits(ibits, p.inodes, perGroup)
			p.bytes(p.ibitmaps[g], ibits)
			put16(0x1a, 0x3a, int64(castagnoli(p.seed, ibits[:p.inodes/8])))
			p.add(p.tables[g], blocksOf(used*inodeSize), &inodes{p, uint32(g*p.inodes) + 1, uint32(used)}, 0)
		}
		le.PutUint16(d[0x12:], flags)
		crc := castagnoli(p.seed, le.AppendUint32(nil, uint32(g)))
		le.PutUint16(d[0x1e:], uint16(castagnoli(crc, d)))
	}
	return out
}

// supers writes all copies of the superblock and the descriptors.
func (p *plan) supers(descs []byte) {
	for g := range p.groups {
		if !hasSuper(g) {
			continue
		}
		b := p.super(g)
		if g == 0 {
			b = append(make([]byte, superAt), b...)
		}
		p.bytes(g*perGroup, b)
		p.bytes(g*perGroup+1, descs)
	}
}

// growing writes the blocks of the inode that keeps room for more descriptors, so
// that a filesystem can grow while it is mounted: a tree of blocks in which the
// first group's are where those of the copies are found.
func (p *plan) growing() {
	le := binary.LittleEndian
	second, backups := make([]byte, Block), p.backups()
	for i := range p.spare {
		at := 1 + p.descs + i
		le.PutUint32(second[(p.descs+i)%addrsBlock*4:], uint32(at))
		if len(backups) == 0 {
			continue
		}
		first := make([]byte, Block)
		for n, g := range backups {
			le.PutUint32(first[4*n:], uint32(g*perGroup+at))
		}
		p.bytes(at, first)
	}
	p.bytes(p.resizeAt, second)
}

// putResize writes that inode.
func (p *plan) putResize(raw []byte) {
	le := binary.LittleEndian
	le.PutUint16(raw, regular|0o600)
	const size = int64(addrsBlock*addrsBlock+addrsBlock+12) * Block
	le.PutUint32(raw[0x4:], uint32(size&(1<<32-1)))
	le.PutUint32(raw[0x6c:], uint32(size>>32))
	putTimes(raw, p.o.Time)
	le.PutUint16(raw[0x1a:], 1)
	le.PutUint32(raw[0x1c:], uint32((1+p.spare*int64(1+len(p.backups())))*Block/512))
	le.PutUint32(raw[0x28+13*4:], uint32(p.resizeAt))
	le.PutUint16(raw[0x80:], extraInode)
	p.sumInode(raw, resizeInode)
}

// journalSuper is the first block of the journal; it is in the other byte order.
func (p *plan) journalSuper() []byte {
	b, be := make([]byte, superSize), binary.BigEndian
	be.PutUint32(b, 0xc03b3998)
	be.PutUint32(b[0x4:], 4) // a superblock, version 2
	be.PutUint32(b[0xc:], Block)
	be.PutUint32(b[0x10:], uint32(p.journal))
	be.PutUint32(b[0x14:], 1) // where the log begins
	be.PutUint32(b[0x18:], 1) // its first sequence
	copy(b[0x30:], p.o.UUID[:])
	be.PutUint32(b[0x40:], 1)
	return b
}
