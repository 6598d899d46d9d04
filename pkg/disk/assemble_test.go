package disk

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"unicode/utf16"

	"github.com/kamivm/kami/pkg/ami"
)

// parts is a layout of 32 MiB with files that are easily known again.
func parts(t *testing.T) Layout {
	t.Helper()
	dir := t.TempDir()
	file := func(name string, size int64, at int64, text string) string {
		path := filepath.Join(dir, name)
		f, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteAt([]byte(text), at); err != nil {
			t.Fatal(err)
		}
		if err := f.Truncate(size); err != nil {
			t.Fatal(err)
		}
		return path
	}
	const size = 32 << 20
	return Layout{
		GUID: "11111111-2222-4333-8444-555555555555", Size: size,
		BootCode: bytes.Repeat([]byte{0xbc}, sector), BIOSLoader: bytes.Repeat([]byte{0xcd}, 50*sector+17),
		ESP:  Content{GUID: "aaaaaaaa-2222-4333-8444-55555555555a", Path: file("esp", espSize, 0x6000, "BOOTX64 EFI\x20")},
		Root: Content{GUID: "bbbbbbbb-2222-4333-8444-55555555555b", Path: file("root", Layout{Size: size}.RootSize(), 12<<20, "the root")},
	}
}

func assemble(t *testing.T, l Layout) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.raw")
	if err := Assemble(t.Context(), path, l); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestAssembledDiskIsWhatItIsMadeOf(t *testing.T) {
	l := parts(t)
	b := assemble(t, l)
	if got := int64(len(b)); got != l.Size {
		t.Fatalf("the disk has %d bytes, want %d", got, l.Size)
	}
	for at, want := range map[int]string{
		espStart + 0x6000:              "BOOTX64 EFI\x20",
		int(l.rootStart()) + 12<<20:    "the root",
		0:                              strings.Repeat("\xbc", bootKernelAt),
		bootKernelAt:                   "\x00\x08\x00\x00\x00\x00\x00\x00", // sector 2048
		bootDriveCheck:                 "\x90\x90",
		bootDriveCheck + 2:             strings.Repeat("\xbc", bootCodeSize-bootDriveCheck-2),
		510:                            "\x55\xaa",
		biosStart:                      strings.Repeat("\xcd", coreBlockList),
		biosStart + coreBlockList:      "\x01\x08\x00\x00\x00\x00\x00\x00\x32\x00\x20\x08", // 50 sectors from 2049, to 0x820
		biosStart + coreBlockList + 12: strings.Repeat("\xcd", 50*sector+17-coreBlockList-12) + "\x00",
	} {
		if got := string(b[at : at+len(want)]); got != want {
			t.Errorf("at %d the disk has %.20x, want %.20x", at, got, want)
		}
	}
	got, err := Inspect(t.Context(), bytes.NewReader(b), l.Size)
	if err != nil {
		t.Fatal(err)
	}
	want := Report{
		Table: "gpt", BIOSBootable: true, UEFIBootable: true, Architecture: ami.ArchX8664,
		Partitions: []Partition{
			{Start: biosStart, Size: espStart - biosStart, BIOSBoot: true},
			{Start: espStart, Size: espSize, ESP: true},
			{Start: l.rootStart(), Size: l.RootSize()},
		},
		Claimed: l.rootStart() + l.RootSize(),
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("Inspect says %+v, want %+v", got, want)
	}
}

// entry is what a GPT says of a partition.
type entry struct {
	kind, guid, name string
	first, last      uint64
}

// verify reads the GPT whose header is in sector at, as firmware does: by its
// checksums and its own idea of where it is.
func verify(t *testing.T, b []byte, at, other uint64) (guid string, out []entry) {
	t.Helper()
	le := binary.LittleEndian
	last := uint64(len(b)/sector) - 1
	h := bytes.Clone(b[at*sector : (at+1)*sector])
	sum := le.Uint32(h[16:])
	copy(h[16:20], "\x00\x00\x00\x00")
	if string(h[:8]) != "EFI PART" || le.Uint32(h[8:]) != 0x10000 || le.Uint32(h[12:]) != 92 || crc32.ChecksumIEEE(h[:92]) != sum {
		t.Fatalf("the header in sector %d is not sound: %x", at, h[:92])
	}
	if me, alternate := le.Uint64(h[24:]), le.Uint64(h[32:]); me != at || alternate != other {
		t.Errorf("the header in sector %d says it is in %d and the other in %d, want %d", at, me, alternate, other)
	}
	usable, end := le.Uint64(h[40:]), le.Uint64(h[48:])
	table, count, each := le.Uint64(h[72:]), uint64(le.Uint32(h[80:])), uint64(le.Uint32(h[84:]))
	entries := b[table*sector:][:count*each]
	if got, want := crc32.ChecksumIEEE(entries), le.Uint32(h[88:]); got != want {
		t.Errorf("the entries of the header in sector %d have the checksum %x, want %x", at, got, want)
	}
	if tableEnd := table + count*each/sector; table < 2 || tableEnd > last+1 || table < end && tableEnd > usable || usable > end {
		t.Errorf("the header in sector %d has its table at %d and partitions from %d to %d", at, table, usable, end)
	}
	for ; len(entries) > 0; entries = entries[each:] {
		e := entry{kind: text(entries[:16]), guid: text(entries[16:32]), first: le.Uint64(entries[32:]), last: le.Uint64(entries[40:])}
		if e.kind == "00000000-0000-0000-0000-000000000000" {
			continue
		}
		if e.first < usable || e.last > end {
			t.Errorf("the partition %+v is not from %d to %d", e, usable, end)
		}
		var name []uint16
		for i := 56; i < 128 && le.Uint16(entries[i:]) != 0; i += 2 {
			name = append(name, le.Uint16(entries[i:]))
		}
		e.name = string(utf16.Decode(name))
		out = append(out, e)
	}
	return text(h[56:72]), out
}

// text writes a GUID as people do: its first three fields are little-endian.
func text(g []byte) string {
	const hex = "0123456789abcdef"
	var b strings.Builder
	for i, at := range []int{3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15} {
		if i == 4 || i == 6 || i == 8 || i == 10 {
			b.WriteByte('-')
		}
		b.WriteByte(hex[g[at]>>4])
		b.WriteByte(hex[g[at]&15])
	}
	return b.String()
}

func TestAssembledTablesAreSound(t *testing.T) {
	for _, c := range []struct{ esp, bios string }{
		{"aaaaaaaa-2222-4333-8444-55555555555a", "aaaaaaaa-2222-4333-8444-555555555550"},
		// Its own GUID, also where the ESP's ends as the other's would.
		{"aaaaaaaa-2222-4333-8444-555555555550", "aaaaaaaa-2222-4333-8444-555555555551"},
	} {
		l := parts(t)
		l.ESP.GUID = c.esp
		b := assemble(t, l)
		last := uint64(l.Size/sector) - 1
		if b[450] != 0xee || binary.LittleEndian.Uint32(b[454:]) != 1 || binary.LittleEndian.Uint32(b[458:]) != uint32(last) {
			t.Errorf("the protective MBR says %x", b[446:462])
		}
		if len(bytes.Trim(b[462:510], "\x00")) > 0 {
			t.Errorf("the MBR has more entries: %x", b[462:510])
		}
		want := []entry{
			{"21686148-6449-6e6f-744e-656564454649", c.bios, "bios", biosStart / sector, espStart/sector - 1},
			{"c12a7328-f81f-11d2-ba4b-00a0c93ec93b", c.esp, "esp", espStart / sector, (espStart+espSize)/sector - 1},
			{"0fc63daf-8483-4772-8e79-3d69d8477de4", l.Root.GUID, "root", uint64(l.rootStart()) / sector, uint64(l.rootStart()+l.RootSize())/sector - 1},
		}
		for _, at := range [][2]uint64{{1, last}, {last, 1}} {
			guid, got := verify(t, b, at[0], at[1])
			if guid != l.GUID {
				t.Errorf("the disk has the GUID %s, want %s", guid, l.GUID)
			}
			if !reflect.DeepEqual(got, want) {
				t.Errorf("in sector %d the partitions are %+v, want %+v", at[0], got, want)
			}
		}
	}
}

func TestAssemblingTwiceGivesTheSame(t *testing.T) {
	if l := parts(t); !bytes.Equal(assemble(t, l), assemble(t, l)) {
		t.Error("the same parts gave two disks")
	}
}

func TestAssembledDiskIsSparse(t *testing.T) {
	l := parts(t)
	path := filepath.Join(t.TempDir(), "disk.raw")
	if err := Assemble(t.Context(), path, l); err != nil {
		t.Fatal(err)
	}
	var st syscall.Stat_t
	if err := syscall.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	if got := st.Blocks * 512; got > 1<<20 {
		t.Errorf("the disk takes %d bytes, want at most 1 MiB", got)
	}
}

func TestAssembleRefuses(t *testing.T) {
	for _, c := range []struct {
		name, says string
		edit       func(*Layout)
	}{
		{"a disk too small", "too small", func(l *Layout) { l.Size = 9 << 20 }},
		{"a disk of no bytes", "too small", func(l *Layout) { l.Size = 0 }},
		{"a root that does not fit", "there is room for", func(l *Layout) { l.Size -= mib }},
		{"an ESP that does not fit", "there is room for", func(l *Layout) { l.ESP.Path = l.Root.Path }},
		{"a root that is missing", "no such file", func(l *Layout) { l.Root.Path += "x" }},
		{"a boot image cut off", "boot image of 511", func(l *Layout) { l.BootCode = l.BootCode[1:] }},
		{"a core image too short", "core image of 512", func(l *Layout) { l.BIOSLoader = l.BIOSLoader[:sector] }},
		{"a core image too long", "core image of", func(l *Layout) { l.BIOSLoader = make([]byte, mib+1) }},
		{"no GUID", `GUID ""`, func(l *Layout) { l.ESP.GUID = "" }},
	} {
		l := parts(t)
		c.edit(&l)
		if err := Assemble(t.Context(), filepath.Join(t.TempDir(), "disk.raw"), l); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: got error %v, want one that says %q", c.name, err, c.says)
		}
	}
	path := filepath.Join(t.TempDir(), "disk.raw")
	if err := os.WriteFile(path, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	err := Assemble(t.Context(), path, parts(t))
	if got, rerr := os.ReadFile(path); !os.IsExist(err) || rerr != nil || string(got) != "mine" {
		t.Errorf("a file that is there: got error %v, and it holds %q", err, got)
	}
}
