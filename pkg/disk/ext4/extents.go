package ext4

import "encoding/binary"

// extent is where a run of a file's blocks is.
type extent struct{ logical, start, count int64 }

const (
	maxExtent     = 32768 // blocks
	extentMagic   = 0xf30a
	extentsInNode = (Block - 12 - 4) / 12 // behind a header, before a checksum
	extentsInHead = 4
)

// mapped turns runs of blocks into extents of a file, from its block logical on.
func mapped(all []extent, logical int64, runs []span) []extent {
	for _, r := range runs {
		if n := len(all) - 1; n >= 0 { // what follows upon the last one belongs to it
			last := &all[n]
			if last.logical+last.count == logical && last.start+last.count == r.start {
				more := min(r.count, maxExtent-last.count)
				last.count, logical, r = last.count+more, logical+more, span{r.start + more, r.count - more}
			}
		}
		for r.count > 0 {
			n := min(r.count, maxExtent)
			all = append(all, extent{logical, r.start, n})
			logical, r = logical+n, span{r.start + n, r.count - n}
		}
	}
	return all
}

// putHeader writes the beginning of a node of a tree of extents.
func putHeader(b []byte, entries, most, depth int) {
	le := binary.LittleEndian
	le.PutUint16(b, extentMagic)
	le.PutUint16(b[2:], uint16(entries))
	le.PutUint16(b[4:], uint16(most))
	le.PutUint16(b[6:], uint16(depth))
}

func putExtent(b []byte, e extent) {
	le := binary.LittleEndian
	le.PutUint32(b, uint32(e.logical))
	le.PutUint16(b[4:], uint16(e.count)) // 32768 is that many, not a flag
	le.PutUint16(b[6:], uint16(e.start>>32))
	le.PutUint32(b[8:], uint32(e.start))
}

// putIndex points at the node in a block, which begins with the file's block
// logical.
func putIndex(b []byte, logical, at int64) {
	le := binary.LittleEndian
	le.PutUint32(b, uint32(logical))
	le.PutUint32(b[4:], uint32(at))
	le.PutUint16(b[8:], uint16(at>>32))
	le.PutUint16(b[10:], 0)
}

// treeOf writes a file's tree of extents: its root into the inode, and the other
// nodes, as often as it takes for the root to have room, into blocks.
func (p *plan) treeOf(f *File) error {
	type node struct{ logical, at int64 }
	if len(f.extents) <= extentsInHead {
		putHeader(f.head[:], len(f.extents), extentsInHead, 0)
		for i, e := range f.extents {
			putExtent(f.head[12+12*i:], e)
		}
		return nil
	}
	write := func(count, depth int, put func(b []byte, i int)) (int64, error) {
		at, err := p.space.one()
		if err != nil {
			return 0, err
		}
		b := make([]byte, Block)
		putHeader(b, count, extentsInNode, depth)
		for i := range count {
			put(b[12+12*i:], i)
		}
		sum := p.inodeSeed(f.ino)
		binary.LittleEndian.PutUint32(b[Block-4:], castagnoli(sum, b[:Block-4]))
		p.bytes(at, b)
		f.nodes++
		return at, nil
	}
	var level []node
	for rest := f.extents; len(rest) > 0; {
		part := rest[:min(len(rest), extentsInNode)]
		rest = rest[len(part):]
		at, err := write(len(part), 0, func(b []byte, i int) { putExtent(b, part[i]) })
		if err != nil {
			return err
		}
		level = append(level, node{part[0].logical, at})
	}
	depth := 1
	for ; len(level) > extentsInHead; depth++ {
		var above []node
		for rest := level; len(rest) > 0; {
			part := rest[:min(len(rest), extentsInNode)]
			rest = rest[len(part):]
			at, err := write(len(part), depth, func(b []byte, i int) { putIndex(b, part[i].logical, part[i].at) })
			if err != nil {
				return err
			}
			above = append(above, node{part[0].logical, at})
		}
		level = above
	}
	putHeader(f.head[:], len(level), extentsInHead, depth)
	for i, n := range level {
		putIndex(f.head[12+12*i:], n.logical, n.at)
	}
	return nil
}
