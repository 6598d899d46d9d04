package guestfs

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// headSize is as much of a device as tells what is on it.
const headSize = 128 << 10

// device is the part of a disk that a filesystem lies on.
type device struct {
	r     io.ReaderAt
	size  int64
	left  int64 // of the metadata that may be read
	cache map[int64][]byte
}

// read fills p from off on.
func (d *device) read(ctx context.Context, p []byte, off int64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if off < 0 || off > d.size || int64(len(p)) > d.size-off {
		return fmt.Errorf("%w: it points at byte %d, behind the end of its %d bytes", ErrDamaged, off, d.size)
	}
	n, err := d.r.ReadAt(p, off)
	if errors.Is(err, io.EOF) && n == len(p) {
		err = nil
	}
	if err != nil {
		return fmt.Errorf("reading the disk at %d: %w", off, err)
	}
	return nil
}

// cached is how many pieces of metadata are kept.
const cached = 64

// metadata reads n bytes at off and keeps them for the next time. The caller
// must not change them, and asks for the same n at the same place.
func (d *device) metadata(ctx context.Context, off int64, n int) ([]byte, error) {
	if b, ok := d.cache[off]; ok && len(b) == n {
		return b, nil
	}
	if err := d.charge(n); err != nil {
		return nil, err
	}
	b := make([]byte, n)
	if err := d.read(ctx, b, off); err != nil {
		return nil, err
	}
	if len(d.cache) >= cached {
		clear(d.cache)
	}
	d.cache[off] = b
	return b, nil
}

// charge counts n bytes of metadata.
func (d *device) charge(n int) error {
	if d.left -= int64(n); d.left < 0 {
		return fmt.Errorf("%w: more than %d bytes of metadata", ErrTooLarge, int64(maxMetadata))
	}
	return nil
}

// foreign names what is on a device and is not read here; "" when it is nothing
// that is known.
func foreign(head []byte) string {
	for _, m := range []struct {
		at          int
		magic, name string
	}{
		{0, "XFSB", "xfs"},
		{0x10040, "_BHRfS_M", "btrfs"},
		{0, "LUKS\xba\xbe", "an encrypted device (LUKS)"},
		{512, "LABELONE", "an LVM physical volume"},
		{4096, "\xfc\x4e\x2b\xa9", "a member of a software RAID"},
		{0x10034, "ReIsEr", "reiserfs"},
		{0x8000, "JFS1", "jfs"},
		{1024, "\x10\x20\xf5\xf2", "f2fs"},
		{0, "hsqs", "squashfs"},
		{0x8001, "CD001", "iso9660"},
		{3, "NTFS    ", "ntfs"},
		{3, "EXFAT   ", "exfat"},
		{4086, "SWAPSPACE2", "swap space"},
	} {
		if len(head) >= m.at+len(m.magic) && string(head[m.at:m.at+len(m.magic)]) == m.magic {
			return m.name
		}
	}
	return ""
}

// text is a name that ends with the field or its first zero.
func text(b []byte) string {
	b, _, _ = bytes.Cut(b, []byte{0})
	return string(b)
}

func le16(b []byte, at int) uint16 { return binary.LittleEndian.Uint16(b[at:]) }
func le32(b []byte, at int) uint32 { return binary.LittleEndian.Uint32(b[at:]) }
func be32(b []byte, at int) uint32 { return binary.BigEndian.Uint32(b[at:]) }
