package disk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"strings"
	"testing"

	"github.com/kamivm/kami/pkg/ami"
)

// bzImageHead is the header of a kernel of a version of the boot protocol.
func bzImageHead(version, xload uint16) []byte {
	b := make([]byte, 0x600)
	binary.LittleEndian.PutUint16(b[0x1fe:], 0xaa55)
	copy(b[0x202:], "HdrS")
	binary.LittleEndian.PutUint16(b[0x206:], version)
	binary.LittleEndian.PutUint16(b[0x236:], xload)
	return b
}

// withPE adds the header by which UEFI starts a kernel.
func withPE(b []byte, kind uint16) []byte {
	copy(b, "MZ")
	binary.LittleEndian.PutUint32(b[0x3c:], 0x80)
	copy(b[0x80:], "PE\x00\x00")
	binary.LittleEndian.PutUint16(b[0x84:], kind)
	return b
}

// elfHead is an ELF file for a machine whose one segment holds a note.
func elfHead(kind uint16, name string, note uint32) []byte {
	le := binary.LittleEndian
	b := make([]byte, 256)
	copy(b, "\x7fELF\x02\x01\x01")
	le.PutUint16(b[16:], 2)
	le.PutUint16(b[18:], kind)
	le.PutUint32(b[20:], 1)
	le.PutUint64(b[32:], 64) // program headers
	le.PutUint16(b[52:], 64)
	le.PutUint16(b[54:], 56)
	le.PutUint16(b[56:], 1)
	p := b[64:]
	le.PutUint32(p, 4) // PT_NOTE
	le.PutUint64(p[8:], 128)
	le.PutUint64(p[32:], 12+8+8)
	n := b[128:]
	le.PutUint32(n, uint32(len(name)))
	le.PutUint32(n[4:], 8)
	le.PutUint32(n[8:], note)
	copy(n[12:], name)
	return b
}

func TestInspectKernel(t *testing.T) {
	arm := make([]byte, 64)
	copy(arm[0x38:], "ARM\x64")
	for _, tt := range []struct {
		name string
		file []byte
		want Kernel
		says string // of the error
	}{
		{"a bzImage of 64 bits", bzImageHead(0x20f, 1), Kernel{KernelBzImage, ami.ArchX8664}, ""},
		{"a bzImage of 32 bits", bzImageHead(0x20f, 0), Kernel{KernelBzImage, ami.ArchI386}, ""},
		{"an old one says nothing", bzImageHead(0x208, 1), Kernel{KernelBzImage, ami.ArchI386}, ""},
		{"an old one that UEFI can start", withPE(bzImageHead(0x208, 0), 0x8664), Kernel{KernelBzImage, ami.ArchX8664}, ""},
		{"PE for 32 bits", withPE(bzImageHead(0x208, 0), 0x14c), Kernel{KernelBzImage, ami.ArchI386}, ""},
		{"before protocol 2", bzImageHead(0x1ff, 0), Kernel{}, "2.00"},
		{"an ELF file for PVH", elfHead(62, "Xen\x00", 18), Kernel{KernelELF, ami.ArchX8664}, ""},
		{"another note", elfHead(62, "Xen\x00", 17), Kernel{}, "without an entry for PVH"},
		{"another name", elfHead(62, "GNU\x00", 18), Kernel{}, "without an entry for PVH"},
		{"an ELF file for another machine", elfHead(21, "Xen\x00", 18), Kernel{}, "EM_PPC64"},
		{"a torn ELF file", elfHead(62, "Xen\x00", 18)[:40], Kernel{}, ""},
		{"arm64", arm, Kernel{KernelImage, ami.ArchARM64}, ""},
		{"a program for UEFI", withPE(make([]byte, 0x600), 0x8664), Kernel{}, "UEFI"},
		{"packed", []byte("\x1f\x8b\x08 and more"), Kernel{}, "packed with gzip"},
		{"text", []byte("#!/bin/sh\n"), Kernel{}, "neither"},
		{"nothing", nil, Kernel{}, "neither"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := InspectKernel(bytes.NewReader(tt.file), int64(len(tt.file)))
			if got != tt.want {
				t.Errorf("got %+v (%v), want %+v", got, err, tt.want)
			}
			if bad := tt.want == (Kernel{}); bad && (!errors.Is(err, ErrNoKernel) || !strings.Contains(err.Error(), tt.says)) {
				t.Errorf("got the error %v, want one that says %q", err, tt.says)
			}
		})
	}
}

func TestInspectRamdisk(t *testing.T) {
	for file, ok := range map[string]bool{
		"070701000000": true, "070702000000": true, "\x1f\x8b\x08": true, "\xfd7zXZ\x00": true, "\x28\xb5\x2f\xfd": true,
		"\x02\x21\x4c\x18": true, "BZh9": true, "\x89LZO\x00": true, "\x5d\x00\x00": true,
		"": false, "070707": false, "MZ": false, "\x7fELF": false,
	} {
		if err := InspectRamdisk(strings.NewReader(file), int64(len(file))); (err == nil) != ok {
			t.Errorf("%q: got %v, want it taken: %t", file, err, ok)
		}
	}
}

// FuzzInspectKernel: whatever a file says of itself, little of it is read.
func FuzzInspectKernel(f *testing.F) {
	f.Add(bzImageHead(0x20f, 1))
	f.Add(withPE(bzImageHead(0x208, 0), 0x8664))
	f.Add(elfHead(62, "Xen\x00", 18))
	f.Add([]byte("\x1f\x8b\x08"))
	f.Fuzz(func(t *testing.T, b []byte) {
		k, err := InspectKernel(bytes.NewReader(b), int64(len(b)))
		if (err == nil) != (k.Format != "" && k.Architecture != "") {
			t.Errorf("got %+v, %v: want a kernel or an error", k, err)
		}
		_ = InspectRamdisk(bytes.NewReader(b), int64(len(b)))
	})
}
