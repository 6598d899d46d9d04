package qcow2

import (
	"context"
	"encoding/binary"
	"fmt"
)

const (
	// What of an entry means nothing has to be zero.
	l1Reserved = ^(offsetMask | entryCopied)
	l2Reserved = ^(offsetMask | entryCopied | entryZero)

	maxRefTable = 8 << 20 // bytes, QEMU's own limit
)

// CheckTables reads the tables of the qcow2 file at path, not its data, and says
// whether they can be right: each entry points into the file, to a cluster that
// no other one has. It opens no other file, and takes about a bit of memory for
// each cluster in use. Nobody may be writing to the file. It returns
// ErrNotQCOW2, ErrUnsupported or ErrCorrupt.
func CheckTables(ctx context.Context, path string) error {
	f, err := openFile(path)
	if err != nil {
		return err
	}
	defer f.f.Close()
	c := &claims{bits: f.info.ClusterBits, size: f.size, pages: map[int64]*claimPage{}}
	if err := c.take("the header", 0); err != nil {
		return err
	}
	if err := c.takeRun("the L1 table", f.info.l1Offset, int64(len(f.l1))); err != nil {
		return err
	}
	if f.info.luksLength > 0 {
		if err := c.takeRun("the LUKS header", f.info.luksOffset, f.info.luksLength); err != nil {
			return err
		}
	}
	if err := f.checkRefTable(c); err != nil {
		return err
	}
	table := make([]byte, 1<<f.info.ClusterBits)
	for i := range f.info.l1Entries {
		if err := ctx.Err(); err != nil {
			return err
		}
		entry := binary.BigEndian.Uint64(f.l1[i*8:])
		if entry&l1Reserved != 0 {
			return corrupt("the L1 entry %d is %#x", i, entry)
		}
		at := int64(entry & offsetMask)
		if at == 0 {
			continue
		}
		if err := c.takeRun(fmt.Sprintf("the L2 table %d", i), at, int64(len(table))); err != nil {
			return err
		}
		if _, err := f.f.ReadAt(table, at); err != nil {
			return fmt.Errorf("reading an L2 table: %w", err)
		}
		if err := f.checkL2(c, i, table); err != nil {
			return err
		}
	}
	return nil
}

// checkRefTable checks where the refcount blocks lie.
func (f *file) checkRefTable(c *claims) error {
	var n [4]byte
	if _, err := f.f.ReadAt(n[:], 56); err != nil {
		return fmt.Errorf("reading the header: %w", err)
	}
	length := int64(binary.BigEndian.Uint32(n[:])) << f.info.ClusterBits
	if length <= 0 || length > maxRefTable {
		return corrupt("a refcount table of %d bytes", length)
	}
	if err := c.takeRun("the refcount table", f.info.refcountOffset, length); err != nil {
		return err
	}
	table := make([]byte, length)
	if _, err := f.f.ReadAt(table, f.info.refcountOffset); err != nil {
		return fmt.Errorf("reading the refcount table: %w", err)
	}
	for i := 0; i < len(table); i += 8 {
		entry := binary.BigEndian.Uint64(table[i:])
		if entry&0x1ff != 0 {
			return corrupt("the refcount table's entry %d is %#x", i/8, entry)
		}
		if entry == 0 {
			continue
		}
		if entry > uint64(f.size) {
			return corrupt("a refcount block at %d lies outside the file", entry)
		}
		if err := c.takeRun("a refcount block", int64(entry), 1<<f.info.ClusterBits); err != nil {
			return err
		}
	}
	return nil
}

// checkL2 checks the entries of the L2 table i.
func (f *file) checkL2(c *claims, i int, table []byte) error {
	shift := 62 - (f.info.ClusterBits - 8)
	for j := 0; j < len(table); j += 8 {
		entry := binary.BigEndian.Uint64(table[j:])
		if entry == 0 {
			continue
		}
		if entry&entryCompressed != 0 { // which may lie in a cluster with others
			if at := entry & (1<<shift - 1); at >= uint64(f.size) {
				return corrupt("a compressed cluster at %d lies outside the file", at)
			}
			continue
		}
		if entry&l2Reserved != 0 || f.info.Version < 3 && entry&entryZero != 0 {
			return corrupt("the entry %d of the L2 table %d is %#x", j/8, i, entry)
		}
		if entry&offsetMask == 0 {
			continue
		}
		if err := c.take("a cluster", int64(entry&offsetMask)); err != nil {
			return err
		}
	}
	return nil
}

// claims are the clusters of a file that something has.
type claims struct {
	bits  int
	size  int64
	pages map[int64]*claimPage // of those that have one, so that holes cost nothing
}

type claimPage [512]uint64

const claimPageBits = 512 * 64

// take gives the cluster at an offset to what, unless that is no cluster of the
// file or taken.
func (c *claims) take(what string, at int64) error {
	if at < 0 || at >= c.size || at&(1<<c.bits-1) != 0 {
		return corrupt("%s at %d lies outside the file", what, at)
	}
	n := at >> c.bits
	p := c.pages[n/claimPageBits]
	if p == nil {
		p = &claimPage{}
		c.pages[n/claimPageBits] = p
	}
	n %= claimPageBits
	if p[n/64]&(1<<(n%64)) != 0 {
		return corrupt("%s at %d lies where something else does", what, at)
	}
	p[n/64] |= 1 << (n % 64)
	return nil
}

// takeRun takes the clusters of length bytes from at on, which have to be there
// to the last byte.
func (c *claims) takeRun(what string, at, length int64) error {
	if at < 0 || at > c.size-length {
		return corrupt("%s at %d lies outside the file", what, at)
	}
	for end := at + length; at < end; at += 1 << c.bits {
		if err := c.take(what, at); err != nil {
			return err
		}
	}
	return nil
}
