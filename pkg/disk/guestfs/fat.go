package guestfs

import (
	"context"
	"fmt"
	"math/bits"
	"strings"
)

// fat is a FAT12, FAT16 or FAT32 filesystem.
type fat struct {
	dev      *device
	bits     int   // of an entry of the table
	table    int64 // where it begins, in bytes
	data     int64 // where cluster 2 begins, in bytes
	cluster  int64 // bytes
	clusters uint32
	// The root directory: of FAT32 it begins at a cluster, of the others it lies
	// between the table and the data.
	rootCluster      uint32
	rootAt, rootSize int64
}

func isFAT(head []byte) bool {
	if len(head) < 512 || head[510] != 0x55 || head[511] != 0xaa {
		return false
	}
	each, per, media := le16(head, 11), head[13], head[21]
	return each >= 512 && each <= 4096 && bits.OnesCount16(each) == 1 && bits.OnesCount8(per) == 1 &&
		le16(head, 14) > 0 && head[16] > 0 && (media == 0xf0 || media >= 0xf8) && (head[0] == 0xeb || head[0] == 0xe9)
}

func openFAT(ctx context.Context, d *device, b []byte) (*FS, error) {
	sector := int64(le16(b, 11))
	total, tableSize := int64(le16(b, 19)), int64(le16(b, 22))
	if total == 0 {
		total = int64(le32(b, 32))
	}
	f := &fat{dev: d, cluster: sector * int64(b[13]), table: sector * int64(le16(b, 14))}
	extra := 36 // where the fields of FAT12 and FAT16 go on
	if tableSize == 0 {
		extra, f.bits, tableSize, f.rootCluster = 64, 32, int64(le32(b, 36)), le32(b, 44)
	}
	f.rootAt = f.table + int64(b[16])*tableSize*sector
	f.rootSize = int64(le16(b, 17)) * direntSize
	f.data = f.rootAt + (f.rootSize+sector-1)/sector*sector
	n := (total*sector - f.data) / f.cluster
	if tableSize == 0 || n <= 0 || n >= 1<<28 {
		return nil, fmt.Errorf("%w: FAT of %d sectors with tables of %d", ErrDamaged, total, tableSize)
	}
	if f.bits == 0 {
		const most12 = 4084
		if f.bits = 16; n <= most12 {
			f.bits = 12
		}
	}
	// The table may have room for fewer.
	f.clusters = uint32(min(n, tableSize*sector*8/int64(f.bits)-2))
	out := &FS{kind: "vfat", root: func(context.Context) (node, error) { return f.root(), nil }}
	if b[extra+2] == 0x28 || b[extra+2] == 0x29 {
		if id := le32(b, extra+3); id != 0 {
			out.uuid = fmt.Sprintf("%04X-%04X", id>>16, id&0xffff)
		}
		out.label = strings.TrimRight(string(b[extra+7:extra+18]), " ")
	}
	// The name in the root directory is the one that programs change.
	label := ""
	err := f.root().each(ctx, func(e entry) error {
		if e.volume {
			label = e.short
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("the root directory of the vfat: %w", err)
	}
	if label != "" {
		out.label = label
	}
	if out.label == "NO NAME" {
		out.label = ""
	}
	return out, nil
}

// next is the cluster that follows n in its chain; 0 behind the last.
func (f *fat) next(ctx context.Context, n uint32) (uint32, error) {
	const piece = 4096
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	bit := int64(n) * int64(f.bits)
	var raw [5]byte
	for i := range raw[:(f.bits+7)/8] {
		at := f.table + bit/8 + int64(i)
		if at >= f.dev.size {
			return 0, fmt.Errorf("%w: the FAT ends behind the device", ErrDamaged)
		}
		b, err := f.dev.metadata(ctx, at/piece*piece, int(min(piece, f.dev.size-at/piece*piece)))
		if err != nil {
			return 0, err
		}
		raw[i] = b[at%piece]
	}
	var next, last uint32
	switch f.bits {
	case 12:
		next, last = uint32(le16(raw[:], 0))>>(bit%8)&0xfff, 0xff8
	case 16:
		next, last = uint32(le16(raw[:], 0)), 0xfff8
	default:
		next, last = le32(raw[:], 0)&0x0fffffff, 0x0ffffff8
	}
	if next >= last {
		return 0, nil
	}
	return next, f.check(next)
}

func (f *fat) check(n uint32) error {
	if n < 2 || n-2 >= f.clusters {
		return fmt.Errorf("%w: FAT cluster %d of %d", ErrDamaged, n, f.clusters)
	}
	return nil
}

func (f *fat) root() *fatNode {
	if f.rootCluster == 0 {
		return &fatNode{fs: f, dir: true, fixed: true, bytes: f.rootSize}
	}
	return &fatNode{fs: f, dir: true, first: f.rootCluster}
}
