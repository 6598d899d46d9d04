package guestfs

import "fmt"

// inlineRest is the second part of what lies in the inode itself: the value of
// its attribute system.data. The first part is where others have their map.
func (n *inode) inlineRest() ([]byte, error) {
	const (
		small      = 128 // what every inode has
		attrMagic  = 0xea020000
		entrySize  = 16
		systemData = 7
	)
	damaged := fmt.Errorf("%w: attributes of inode %d", ErrDamaged, n.num)
	if len(n.raw) < small+4 {
		return nil, nil
	}
	at := small + int(le16(n.raw, small))
	if at%4 != 0 || at > len(n.raw)-4 {
		return nil, damaged
	}
	if le32(n.raw, at) != attrMagic {
		return nil, nil
	}
	values := n.raw[at+4:]
	for e := values; len(e) >= entrySize && le32(e, 0) != 0; {
		name := int(e[0])
		next := (entrySize + name + 3) &^ 3
		if next > len(e) {
			return nil, damaged
		}
		if e[1] == systemData && string(e[entrySize:entrySize+name]) == "data" {
			off, size := int(le16(e, 2)), int(le32(e, 8))
			if le32(e, 4) != 0 || size < 0 || off > len(values) || size > len(values)-off {
				return nil, damaged
			}
			return values[off : off+size], nil
		}
		e = e[next:]
	}
	return nil, nil
}

func (n *inode) readInline(p []byte, off int64) error {
	rest, err := n.inlineRest()
	if err != nil {
		return err
	}
	whole := append(n.block[:len(n.block):len(n.block)], rest...)
	if n.bytes > int64(len(whole)) {
		return fmt.Errorf("%w: inode %d has %d bytes of %d", ErrDamaged, n.num, len(whole), n.bytes)
	}
	copy(p, whole[off:])
	return nil
}

// eachInline reads a directory in its inode: the parent's number, then entries in
// both parts. It has no . and no .. entry.
func (n *inode) eachInline(seen *int, do func(name string, num uint32) error) error {
	if err := n.entries(n.block[4:], seen, do); err != nil {
		return err
	}
	rest, err := n.inlineRest()
	if err != nil {
		return err
	}
	return n.entries(rest, seen, do)
}
