package ext4

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"strings"
)

const (
	xattrMagic  = 0xea020000
	xattrEntry  = 16 // bytes, before its name
	xattrHeader = 32 // of a block of them
	bodyRoom    = inodeSize - bodyAt - 4
	blockRoom   = Block - xattrHeader
)

// xattr is an extended attribute as it is kept.
type xattr struct {
	index byte // instead of the beginning of its name
	name  string
	value []byte
}

func (x xattr) entry() int { return xattrEntry + (len(x.name)+3)&^3 }
func (x xattr) room() int  { return x.entry() + (len(x.value)+3)&^3 }

// indexes are the beginnings of names that have a number; the first that fits.
func indexes() []struct {
	prefix string
	index  byte
} {
	return []struct {
		prefix string
		index  byte
	}{
		{"system.posix_acl_access", 2},
		{"system.posix_acl_default", 3},
		{"user.", 1},
		{"trusted.", 4},
		{"security.", 6},
		{"system.", 7},
	}
}

// xattrsOf puts a file's extended attributes into order.
func xattrsOf(f *File) (all []xattr, err error) {
	for _, name := range slices.Sorted(maps.Keys(f.Xattrs)) {
		x := xattr{name: name, value: []byte(f.Xattrs[name])}
		for _, of := range indexes() {
			if rest, ok := strings.CutPrefix(name, of.prefix); ok && (strings.HasSuffix(of.prefix, ".") || rest == "") {
				x.index, x.name = of.index, rest
				break
			}
		}
		if x.index == 2 || x.index == 3 {
			if x.value, err = aclOf(x.value); err != nil {
				return nil, fmt.Errorf("%w: %s: %w", ErrUnfit, name, err)
			}
		}
		if len(x.name) > 255 {
			return nil, fmt.Errorf("%w: an extended attribute with a name of %d bytes", ErrUnfit, len(name))
		}
		all = append(all, x)
	}
	slices.SortFunc(all, func(a, b xattr) int {
		return cmp.Or(int(a.index)-int(b.index), len(a.name)-len(b.name), strings.Compare(a.name, b.name))
	})
	return all, nil
}

// aclOf turns an access control list as the kernel tells it into the one that ext4
// keeps: with ids only where there are some.
func aclOf(v []byte) ([]byte, error) {
	le := binary.LittleEndian
	if len(v) < 4 || len(v)%8 != 4 || le.Uint32(v) != 2 {
		return nil, fmt.Errorf("an access control list of %d bytes", len(v))
	}
	out := le.AppendUint32(nil, 1)
	for v = v[4:]; len(v) > 0; v = v[8:] {
		out = append(out, v[:4]...)
		if tag := le.Uint16(v); tag == 2 || tag == 8 { // of one user, one group
			out = append(out, v[4:8]...)
		}
	}
	return out, nil
}

// attributes puts a file's extended attributes into its inode, and what has no
// room there into a block.
func (p *plan) attributes(f *File) error {
	if len(f.Xattrs) == 0 {
		return nil
	}
	all, err := xattrsOf(f)
	if err != nil {
		return err
	}
	var inside, outside []xattr
	body, rest := bodyRoom-4, blockRoom-4 // a zero ends them
	for _, x := range all {
		if n := x.room(); n <= body {
			inside, body = append(inside, x), body-n
		} else {
			outside, rest = append(outside, x), rest-n
		}
	}
	if rest < 0 {
		return fmt.Errorf("%w: extended attributes of %d bytes, where there is room for %d", ErrUnfit, blockRoom-4-rest, blockRoom-4)
	}
	if len(inside) > 0 {
		f.inBody = make([]byte, 4+bodyRoom)
		binary.LittleEndian.PutUint32(f.inBody, xattrMagic)
		putXattrs(f.inBody[4:], 0, inside)
	}
	if len(outside) == 0 {
		return nil
	}
	if f.attrBlock, err = p.space.one(); err != nil {
		return err
	}
	p.bytes(f.attrBlock, p.xattrBlock(f.attrBlock, outside))
	return nil
}

// putXattrs writes attributes into b, entries from its beginning and values from
// its end; offsets are counted from before bytes in front of it. It returns the
// hash of all.
func putXattrs(b []byte, before int, all []xattr) (sum uint32) {
	le := binary.LittleEndian
	at, end := 0, len(b)
	for _, x := range all {
		e := b[at:]
		e[0], e[1] = byte(len(x.name)), x.index
		if len(x.value) > 0 {
			end -= (len(x.value) + 3) &^ 3
			copy(b[end:], x.value)
			le.PutUint16(e[2:], uint16(before+end))
		}
		le.PutUint32(e[8:], uint32(len(x.value)))
		if before > 0 { // in an inode none is needed
			le.PutUint32(e[12:], x.hash())
		}
		copy(e[xattrEntry:], x.name)
		at += x.entry()
		sum = sum<<16 ^ sum>>16 ^ x.hash()
	}
	return sum
}

// hash is that by which blocks with the same attributes are found.
func (x xattr) hash() (h uint32) {
	for _, c := range []byte(x.name) {
		h = h<<5 ^ h>>27 ^ uint32(c)
	}
	padded := append(slices.Clone(x.value), 0, 0, 0)
	for i := 0; i < len(x.value); i += 4 {
		h = h<<16 ^ h>>16 ^ binary.LittleEndian.Uint32(padded[i:])
	}
	return h
}

func (p *plan) xattrBlock(at int64, all []xattr) []byte {
	b, le := make([]byte, Block), binary.LittleEndian
	le.PutUint32(b, xattrMagic)
	le.PutUint32(b[4:], 1) // one file has it
	le.PutUint32(b[8:], 1) // block
	le.PutUint32(b[12:], putXattrs(b[xattrHeader:], xattrHeader, all))
	crc := castagnoli(p.seed, le.AppendUint64(nil, uint64(at)))
	le.PutUint32(b[16:], castagnoli(crc, b))
	return b
}
