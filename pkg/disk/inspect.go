package disk

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/kamivm/kami/pkg/ami"
)

// Partition is one entry of a partition table.
type Partition struct {
	Start, Size int64 // bytes
	ESP         bool
	BIOSBoot    bool
}

// Report is what a look into a disk found.
type Report struct {
	Table        string // gpt, mbr or none
	BIOSBootable bool
	UEFIBootable bool
	Architecture ami.Architecture // "" when nothing tells
	Partitions   []Partition
	// Claimed is where the last partition ends by the table, in bytes: more than
	// the disk has where the disk was cut off.
	Claimed int64
}

// slack is how far the partitions of an MBR may end behind the disk: those of
// hybrid images are rounded up to whole cylinders.
const slack = 16 << 20

// Truncated says whether the disk ends before its partitions do.
func (r Report) Truncated(size int64) bool {
	if r.Table == "gpt" {
		return r.Claimed > size
	}
	return r.Claimed > size+slack
}

// BootMode is how an image of the disk should boot; "" when it is not known.
func (r Report) BootMode() ami.BootMode {
	switch {
	case r.UEFIBootable && r.BIOSBootable:
		return ami.BootUEFIPreferred
	case r.UEFIBootable:
		return ami.BootUEFI
	case r.BIOSBootable:
		return ami.BootLegacyBIOS
	}
	return ""
}

const (
	sector        = 512
	maxPartitions = 256
	maxSectors    = 1 << 50 // far beyond any disk, and within an int64 as bytes
	// searchESP bounds how much of a disk's EFI system partitions is searched.
	searchESP = 128 << 20
)

// GUIDs as they lie on the disk: the first three fields little-endian.
var (
	guidESP  = [16]byte{0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b}
	guidBIOS = [16]byte{0x48, 0x61, 0x68, 0x21, 0x49, 0x64, 0x6f, 0x6e, 0x74, 0x4e, 0x65, 0x65, 0x64, 0x45, 0x46, 0x49}
)

// Inspect looks for partitions and boot loaders. The disk is hostile: what it
// says is held against its size, and reading is bounded. A disk on which
// nothing is found is no error.
func Inspect(ctx context.Context, img io.ReaderAt, size int64) (Report, error) {
	r := Report{Table: "none"}
	if size < 2*sector {
		return r, nil
	}
	head := make([]byte, sector)
	if err := readFull(img, head, 0); err != nil {
		return r, err
	}
	if head[510] != 0x55 || head[511] != 0xaa {
		return r, nil
	}
	r.Partitions, r.Claimed = mbrPartitions(head, size)
	if len(r.Partitions) > 0 {
		r.Table = "mbr"
	}
	gpt, claimed, err := gptPartitions(img, size)
	if err != nil {
		return r, err
	}
	if gpt != nil {
		r.Table, r.Partitions, r.Claimed = "gpt", gpt, claimed
	}
	// Boot code begins with a jump or the like; a protective MBR has none.
	r.BIOSBootable = !bytes.Equal(head[:64], make([]byte, 64))
	if r.BIOSBootable {
		r.Architecture = ami.ArchX8664
	}
	budget := int64(searchESP)
	for _, p := range r.Partitions {
		if !p.ESP {
			continue
		}
		p.Size = min(p.Size, budget)
		budget -= p.Size
		arch, err := findLoader(ctx, img, p)
		if err != nil {
			return r, err
		}
		if arch != "" {
			r.UEFIBootable, r.Architecture = true, arch
		}
	}
	return r, nil
}

func readFull(img io.ReaderAt, p []byte, off int64) error {
	n, err := img.ReadAt(p, off)
	if errors.Is(err, io.EOF) && n == len(p) {
		err = nil
	}
	if err != nil {
		return fmt.Errorf("reading the disk at %d: %w", off, err)
	}
	return nil
}

func mbrPartitions(head []byte, size int64) (out []Partition, claimed int64) {
	for i := range 4 {
		e := head[446+16*i:]
		start, n := int64(binary.LittleEndian.Uint32(e[8:]))*sector, int64(binary.LittleEndian.Uint32(e[12:]))*sector
		if e[4] == 0 || e[4] == 0xee || n == 0 {
			continue
		}
		if claimed = max(claimed, start+n); start >= size {
			continue
		}
		out = append(out, Partition{Start: start, Size: min(n, size-start), ESP: e[4] == 0xef})
	}
	return out, claimed
}

// gptPartitions reads the primary GPT; nil when there is none.
func gptPartitions(img io.ReaderAt, size int64) (out []Partition, claimed int64, err error) {
	h := make([]byte, sector)
	if err := readFull(img, h, sector); err != nil {
		return nil, 0, err
	}
	if string(h[:8]) != "EFI PART" {
		return nil, 0, nil
	}
	le := binary.LittleEndian
	at, count, each := le.Uint64(h[72:]), le.Uint32(h[80:]), le.Uint32(h[84:])
	if each < 128 || each > 4096 || at > uint64(size)/sector || count == 0 {
		return nil, 0, nil
	}
	count = min(count, maxPartitions)
	table := make([]byte, int64(count)*int64(each))
	if int64(at)*sector+int64(len(table)) > size {
		return nil, 0, nil
	}
	if err := readFull(img, table, int64(at)*sector); err != nil {
		return nil, 0, err
	}
	out = []Partition{}
	for i := range int64(count) {
		e := table[i*int64(each):]
		kind := [16]byte(e[:16])
		first, last := le.Uint64(e[32:]), le.Uint64(e[40:])
		if kind == [16]byte{} || first > last || last > maxSectors {
			continue
		}
		if claimed = max(claimed, int64(last+1)*sector); first >= uint64(size)/sector {
			continue
		}
		last = min(last, uint64(size)/sector-1)
		out = append(out, Partition{
			Start: int64(first) * sector, Size: int64(last-first+1) * sector, ESP: kind == guidESP, BIOSBoot: kind == guidBIOS,
		})
	}
	return out, claimed, nil
}

// findLoader looks for the removable-media boot loader in an EFI system
// partition: the directory entry of its 8.3 name, in the same form on FAT12, 16
// and 32.
func findLoader(ctx context.Context, img io.ReaderAt, p Partition) (ami.Architecture, error) {
	names := map[string]ami.Architecture{
		"BOOTX64 EFI": ami.ArchX8664, "BOOTAA64EFI": ami.ArchARM64, "BOOTIA32EFI": ami.ArchI386,
	}
	buf := make([]byte, 1<<20)
	for off := int64(0); off < p.Size; off += int64(len(buf)) {
		if err := ctx.Err(); err != nil {
			return "", err
		}
		b := buf[:min(int64(len(buf)), p.Size-off)]
		if err := readFull(img, b, p.Start+off); err != nil {
			return "", err
		}
		for i := 0; i+32 <= len(b); i += 32 {
			if b[i] != 'B' {
				continue
			}
			const archive, directory = 0x20, 0x10
			if arch, ok := names[string(b[i:i+11])]; ok && b[i+11]&directory == 0 && b[i+11]&^(archive|0x07) == 0 {
				return arch, nil
			}
		}
	}
	return "", nil
}
