package ext4

import (
	"encoding/binary"
	"fmt"
	"strings"
)

const (
	folderTail = 12 // bytes with the checksum, made up as an entry that is none
	folderRoom = Block - folderTail
	tailType   = 0xde
)

func entrySize(name string) int { return (8 + len(name) + 3) &^ 3 }

// typeOf is what an entry says of the kind of its file.
func typeOf(f *File) byte {
	switch f.kind() {
	case regular:
		return 1
	case folder:
		return 2
	case char:
		return 3
	case block:
		return 4
	case fifo:
		return 5
	case socket:
		return 6
	default:
		return 7 // symlink
	}
}

// cut says with which entry each block of a folder begins.
func (f *File) cut() error {
	left := folderRoom - entrySize(".") - entrySize("..")
	f.starts = []int32{0}
	for i, e := range f.Entries {
		if e.Name == "" || len(e.Name) > 255 || e.Name == "." || e.Name == ".." || strings.ContainsAny(e.Name, "/\x00") {
			return fmt.Errorf("%w: a file of the name %.300q", ErrUnfit, e.Name)
		}
		n := entrySize(e.Name)
		if n > left {
			f.starts, left = append(f.starts, int32(i)), folderRoom
		}
		left -= n
	}
	f.least = max(f.least, int64(len(f.starts)))
	return nil
}

// blocksOfFolder are what a folder has in it.
type blocksOfFolder struct {
	p *plan
	f *File
}

func (d blocksOfFolder) readAt(p []byte, off int64) error {
	return rendered(p, off, func(b []byte, n int64) { d.render(b, n) })
}

// render writes a folder's block n. Its entries are in their order, one after the
// other, without an index, as mke2fs has them: a guest makes one when a folder
// becomes longer than one block, and searches through those that are longer already.
func (d blocksOfFolder) render(b []byte, n int64) {
	clear(b)
	le := binary.LittleEndian
	at, last := 0, 0
	put := func(name string, ino uint32, kind byte) {
		size := entrySize(name)
		le.PutUint32(b[at:], ino)
		le.PutUint16(b[at+4:], uint16(size))
		b[at+6], b[at+7] = byte(len(name)), kind
		copy(b[at+8:], name)
		last, at = at, at+size
	}
	var entries []Entry
	if n < int64(len(d.f.starts)) {
		entries = d.f.Entries[d.f.starts[n]:]
		if n+1 < int64(len(d.f.starts)) {
			entries = entries[:d.f.starts[n+1]-d.f.starts[n]]
		}
	}
	if n == 0 {
		put(".", d.f.ino, 2)
		put("..", d.f.parent, 2)
	}
	for _, e := range entries {
		put(e.Name, e.File.ino, typeOf(e.File))
	}
	le.PutUint16(b[last+4:], uint16(folderRoom-last)) // to the end; also of one with nothing in it
	tail := b[folderRoom:]
	tail[4], tail[7] = folderTail, tailType
	le.PutUint32(tail[8:], castagnoli(d.p.inodeSeed(d.f.ino), b[:folderRoom]))
}

// rendered fills p, from byte off of some blocks on, by making those blocks.
func rendered(p []byte, off int64, render func(b []byte, n int64)) error {
	var whole []byte
	for len(p) > 0 {
		n, skip := off/Block, off%Block
		if skip == 0 && len(p) >= Block {
			render(p[:Block:Block], n)
			p, off = p[Block:], off+Block
			continue
		}
		if whole == nil {
			whole = make([]byte, Block)
		}
		render(whole, n)
		c := copy(p, whole[skip:])
		p, off = p[c:], off+int64(c)
	}
	return nil
}
