package disk

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/kamivm/kami/pkg/ami"
)

// mbrDisk is a disk of size bytes with boot code and entries {type, start, sectors}.
func mbrDisk(size int, code bool, entries ...[3]uint32) []byte {
	b := make([]byte, size)
	if code {
		copy(b, "\xeb\x63\x90")
	}
	for i, e := range entries {
		at := b[446+16*i:]
		at[4] = byte(e[0])
		binary.LittleEndian.PutUint32(at[8:], e[1])
		binary.LittleEndian.PutUint32(at[12:], e[2])
	}
	b[510], b[511] = 0x55, 0xaa
	return b
}

// gptEntry is an entry of a GPT: its kind, first and last sector.
type gptEntry struct {
	kind        [16]byte
	first, last uint64
}

// gptDisk is a disk with a protective MBR and a primary GPT, without checksums:
// Inspect takes what firmware would mend.
func gptDisk(size int, entries ...gptEntry) []byte {
	b := mbrDisk(size, false, [3]uint32{0xee, 1, uint32(size/sector - 1)})
	h := b[sector:]
	copy(h, "EFI PART")
	binary.LittleEndian.PutUint64(h[72:], 2)
	binary.LittleEndian.PutUint32(h[80:], uint32(len(entries)))
	binary.LittleEndian.PutUint32(h[84:], 128)
	for i, e := range entries {
		at := b[2*sector+128*i:]
		copy(at, e.kind[:])
		binary.LittleEndian.PutUint64(at[32:], e.first)
		binary.LittleEndian.PutUint64(at[40:], e.last)
	}
	return b
}

var linux = [16]byte{0xaf, 0x3d, 0xc6, 0x0f}

func with(b []byte, at int, s string) []byte {
	copy(b[at:], s)
	return b
}

func put64(b []byte, at int, v uint64) []byte {
	binary.LittleEndian.PutUint64(b[at:], v)
	return b
}

func put32(b []byte, at int, v uint32) []byte {
	binary.LittleEndian.PutUint32(b[at:], v)
	return b
}

func TestInspect(t *testing.T) {
	const size = 4 << 20
	esp := gptEntry{guidESP, 2048, 4095}
	for _, c := range []struct {
		name string
		disk []byte
		want Report
		boot ami.BootMode
	}{
		{"no bytes", nil, Report{Table: "none"}, ""},
		{"one sector", mbrDisk(sector, true), Report{Table: "none"}, ""},
		{"zeros", make([]byte, size), Report{Table: "none"}, ""},
		{"no mark", with(mbrDisk(size, true, [3]uint32{0x83, 1, 1}), 510, "\x00\x00"), Report{Table: "none"}, ""},
		{"boot code alone", mbrDisk(size, true), Report{Table: "none", BIOSBootable: true, Architecture: ami.ArchX8664}, ami.BootLegacyBIOS},
		{
			"mbr",
			mbrDisk(size, true, [3]uint32{0x83, 2048, 1024}, [3]uint32{0xef, 4096, 1 << 31}),
			Report{
				Table: "mbr", BIOSBootable: true, Architecture: ami.ArchX8664,
				Partitions: []Partition{{Start: 1 << 20, Size: 512 << 10}, {Start: 2 << 20, Size: 2 << 20, ESP: true}},
			},
			ami.BootLegacyBIOS,
		},
		{
			"mbr of partitions that are not there",
			mbrDisk(size, false, [3]uint32{0, 1, 1}, [3]uint32{0x83, 1, 0}, [3]uint32{0x83, size / sector, 1}, [3]uint32{0x83, 1<<32 - 1, 1<<32 - 1}),
			Report{Table: "none"},
			"",
		},
		{
			"gpt",
			gptDisk(size, gptEntry{guidBIOS, 34, 2047}, esp, gptEntry{}, gptEntry{linux, 4096, 1 << 40}),
			Report{Table: "gpt", Partitions: []Partition{
				{Start: 34 * sector, Size: (2048 - 34) * sector, BIOSBoot: true},
				{Start: 1 << 20, Size: 1 << 20, ESP: true},
				{Start: 2 << 20, Size: 2 << 20},
			}},
			"",
		},
		{
			"gpt of partitions that are not there",
			gptDisk(size, gptEntry{linux, 5, 4}, gptEntry{linux, size / sector, size / sector}, gptEntry{linux, 1<<64 - 1, 1<<64 - 1}),
			Report{Table: "gpt", Partitions: []Partition{}},
			"",
		},
		{"gpt of no entries", gptDisk(size), Report{Table: "none"}, ""},
		{"gpt of small entries", put32(gptDisk(size, esp), sector+84, 64), Report{Table: "none"}, ""},
		{"gpt of huge entries", put32(gptDisk(size, esp), sector+84, 1<<31), Report{Table: "none"}, ""},
		{"gpt behind the disk", put64(gptDisk(size, esp), sector+72, 1<<63), Report{Table: "none"}, ""},
		{"gpt over the disk's end", put64(gptDisk(size, esp), sector+72, size/sector), Report{Table: "none"}, ""},
		{
			"gpt of countless entries", put32(gptDisk(size, esp), sector+80, 1<<32-1),
			Report{Table: "gpt", Partitions: []Partition{{Start: 1 << 20, Size: 1 << 20, ESP: true}}},
			"",
		},
		{
			"loader in the ESP", with(gptDisk(size, esp), 1<<20+0x4000, "BOOTX64 EFI\x20"),
			Report{Table: "gpt", UEFIBootable: true, Architecture: ami.ArchX8664, Partitions: []Partition{{Start: 1 << 20, Size: 1 << 20, ESP: true}}},
			ami.BootUEFI,
		},
		{
			"loader of arm64", with(gptDisk(size, esp), 2<<20-32, "BOOTAA64EFI\x20"),
			Report{Table: "gpt", UEFIBootable: true, Architecture: ami.ArchARM64, Partitions: []Partition{{Start: 1 << 20, Size: 1 << 20, ESP: true}}},
			ami.BootUEFI,
		},
		{
			"folder of the loader's name", with(gptDisk(size, esp), 1<<20+0x4000, "BOOTX64 EFI\x10"),
			Report{Table: "gpt", Partitions: []Partition{{Start: 1 << 20, Size: 1 << 20, ESP: true}}},
			"",
		},
		{
			"loader outside the ESP", with(gptDisk(size, esp), 3<<20, "BOOTX64 EFI\x20"),
			Report{Table: "gpt", Partitions: []Partition{{Start: 1 << 20, Size: 1 << 20, ESP: true}}},
			"",
		},
		{
			"both", with(with(gptDisk(size, esp), 0, "\xeb\x63\x90"), 1<<20, "BOOTX64 EFI\x20"),
			Report{
				Table: "gpt", BIOSBootable: true, UEFIBootable: true, Architecture: ami.ArchX8664,
				Partitions: []Partition{{Start: 1 << 20, Size: 1 << 20, ESP: true}},
			},
			ami.BootUEFIPreferred,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := Inspect(t.Context(), bytes.NewReader(c.disk), int64(len(c.disk)))
			if err != nil {
				t.Fatal(err)
			}
			got.Claimed = 0 // TestTruncated looks at it
			if !reflect.DeepEqual(got, c.want) {
				t.Errorf("got %+v, want %+v", got, c.want)
			}
			if got := got.BootMode(); got != c.boot {
				t.Errorf("got boot mode %q, want %q", got, c.boot)
			}
		})
	}
}

// TestInspectFindsTheLoaderOnEachFAT looks into file systems that others made.
func TestInspectFindsTheLoaderOnEachFAT(t *testing.T) {
	for _, fat := range []struct{ bits, mib int }{{12, 4}, {16, 20}, {32, 40}} {
		path := filepath.Join(t.TempDir(), "esp")
		if err := os.WriteFile(path, make([]byte, fat.mib<<20), 0o600); err != nil {
			t.Fatal(err)
		}
		for _, cmd := range [][]string{
			{"/sbin/mkfs.vfat", "-F", fmt.Sprint(fat.bits), path},
			{"mmd", "-i", path, "::/EFI", "::/EFI/BOOT"},
			{"mcopy", "-i", path, "inspect_test.go", "::/EFI/BOOT/BOOTX64.EFI"},
		} {
			if out, err := exec.CommandContext(t.Context(), cmd[0], cmd[1:]...).CombinedOutput(); err != nil {
				t.Fatalf("%v: %v\n%s", cmd, err, out)
			}
		}
		esp, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		disk := gptDisk(1<<20, gptEntry{guidESP, 2048, 2048 + uint64(len(esp))/sector - 1})
		disk = append(disk, esp...)
		got, err := Inspect(t.Context(), bytes.NewReader(disk), int64(len(disk)))
		if err != nil || !got.UEFIBootable || got.Architecture != ami.ArchX8664 {
			t.Errorf("FAT%d: got %+v, %v; want a disk that boots by UEFI", fat.bits, got, err)
		}
	}
}

// counting counts what is read of a disk of zeros behind its first bytes.
type counting struct {
	head []byte
	size int64
	read int64
}

func (c *counting) ReadAt(p []byte, off int64) (int, error) {
	c.read += int64(len(p))
	clear(p)
	if off < int64(len(c.head)) {
		copy(p, c.head[off:])
	}
	return len(p), nil
}

// TestInspectReadsABoundedAmount: each of many partitions calls itself the ESP.
func TestInspectReadsABoundedAmount(t *testing.T) {
	entries := make([]gptEntry, maxPartitions)
	for i := range entries {
		entries[i] = gptEntry{guidESP, 2048, 1 << 40}
	}
	img := &counting{head: gptDisk(1<<20, entries...), size: 1 << 50}
	got, err := Inspect(t.Context(), img, img.size)
	if err != nil || len(got.Partitions) != maxPartitions {
		t.Fatalf("got %d partitions, %v; want %d", len(got.Partitions), err, maxPartitions)
	}
	if limit := int64(searchESP + 4<<20); img.read > limit {
		t.Errorf("%d bytes were read, want at most %d", img.read, limit)
	}
	if got, want := got.Partitions[maxPartitions-1].Size, int64(1<<40-2047)*sector; got != want {
		t.Errorf("the last partition has %d bytes, want %d", got, want)
	}
}

func TestInspectEnds(t *testing.T) {
	b := gptDisk(4<<20, gptEntry{guidESP, 2048, 4095})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Inspect(ctx, bytes.NewReader(b), int64(len(b))); !errors.Is(err, context.Canceled) {
		t.Errorf("called off: got error %v, want %v", err, context.Canceled)
	}
	if _, err := Inspect(t.Context(), bytes.NewReader(b[:1<<20]), int64(len(b))); err == nil {
		t.Error("a disk that ends before its size: got no error")
	}
}

func FuzzInspect(f *testing.F) {
	f.Add([]byte{})
	f.Add(mbrDisk(64<<10, true, [3]uint32{0xef, 1, 100}, [3]uint32{0x83, 100, 100}))
	f.Add(with(gptDisk(64<<10, gptEntry{guidESP, 34, 60}, gptEntry{guidBIOS, 61, 1 << 50}), 40*sector, "BOOTX64 EFI\x20"))
	f.Fuzz(func(t *testing.T, b []byte) {
		size := int64(len(b))
		got, err := Inspect(t.Context(), bytes.NewReader(b), size)
		if err != nil {
			t.Fatalf("what stands on a disk is no error, got %v", err)
		}
		if len(got.Partitions) > maxPartitions {
			t.Errorf("%d partitions", len(got.Partitions))
		}
		if got.UEFIBootable && got.Architecture == "" || (got.Table == "none") != (len(got.Partitions) == 0) && got.Table != "gpt" {
			t.Errorf("got %+v", got)
		}
		for _, p := range got.Partitions {
			if p.Start < 0 || p.Size <= 0 || p.Start+p.Size > size {
				t.Errorf("a disk of %d bytes has the partition %+v", size, p)
			}
		}
	})
}

// TestTruncated cuts off the end of disks whose partitions go up to it.
func TestTruncated(t *testing.T) {
	const whole = 64 << 20
	mbr := make([]byte, whole)
	mbr[510], mbr[511] = 0x55, 0xaa
	mbr[446+4] = 0x83
	binary.LittleEndian.PutUint32(mbr[446+8:], 2048)
	binary.LittleEndian.PutUint32(mbr[446+12:], whole/sector-2048)
	gpt := make([]byte, whole)
	gpt[510], gpt[511] = 0x55, 0xaa
	copy(gpt[sector:], "EFI PART")
	le := binary.LittleEndian
	le.PutUint64(gpt[sector+72:], 2)
	le.PutUint32(gpt[sector+80:], 1)
	le.PutUint32(gpt[sector+84:], 128)
	gpt[2*sector] = 1
	le.PutUint64(gpt[2*sector+32:], 2048)
	le.PutUint64(gpt[2*sector+40:], whole/sector-34)
	for _, tt := range []struct {
		name string
		disk []byte
		size int64
		want bool
	}{
		{"whole mbr", mbr, whole, false},
		{"mbr rounded up", mbr, whole - 1<<20, false},
		{"mbr cut off", mbr, whole / 2, true},
		{"whole gpt", gpt, whole, false},
		{"gpt cut off", gpt, whole - 1<<20, true},
		{"no table", make([]byte, whole), whole / 2, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r, err := Inspect(t.Context(), bytes.NewReader(tt.disk[:tt.size]), tt.size)
			if err != nil {
				t.Fatal(err)
			}
			if got := r.Truncated(tt.size); got != tt.want {
				t.Errorf("Truncated says %v, want %v: %+v", got, tt.want, r)
			}
		})
	}
}
