package disk

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/kamivm/kami/pkg/ami"
)

// KernelFormat is how a kernel's file is made.
type KernelFormat string

// The formats of kernels that a guest can be started with directly.
const (
	KernelBzImage KernelFormat = "bzImage"
	KernelELF     KernelFormat = "elf"
	KernelImage   KernelFormat = "arm64 Image"
)

// ErrNoKernel is what InspectKernel returns, wrapped, for a file that no guest can
// be started with.
var ErrNoKernel = errors.New("not a kernel")

// Kernel is what a kernel's header says.
type Kernel struct {
	Format       KernelFormat
	Architecture ami.Architecture
}

// The header of Linux on x86 (Documentation/arch/x86/boot.rst), and that of arm64.
const (
	setupSignature = 0x1fe
	setupMagic     = 0x202
	setupVersion   = 0x206
	setupXLoad     = 0x236 // from version 2.12 on
	xloadKernel64  = 1
	armMagic       = 0x38
	headerSize     = 0x400
)

// InspectKernel finds what kernel the size bytes of r are. It reads headers only.
func InspectKernel(r io.ReaderAt, size int64) (Kernel, error) {
	head := make([]byte, headerSize) // what is not there is zero
	if _, err := r.ReadAt(head[:min(size, headerSize)], 0); err != nil && !errors.Is(err, io.EOF) {
		return Kernel{}, err
	}
	le := binary.LittleEndian
	switch {
	case le.Uint16(head[setupSignature:]) == 0xaa55 && string(head[setupMagic:setupMagic+4]) == "HdrS":
		return bzImage(head)
	case string(head[armMagic:armMagic+4]) == "ARM\x64":
		return Kernel{KernelImage, ami.ArchARM64}, nil
	case string(head[:4]) == elf.ELFMAG:
		return elfKernel(io.NewSectionReader(r, 0, size))
	case string(head[:2]) == "MZ":
		return Kernel{}, fmt.Errorf("%w: it is a program for UEFI, which only firmware can start", ErrNoKernel)
	}
	if how := packed(head); how != "" {
		return Kernel{}, fmt.Errorf("%w: it is packed with %s; unpack it first", ErrNoKernel, how)
	}
	return Kernel{}, fmt.Errorf("%w: neither a bzImage nor an ELF file with an entry for PVH", ErrNoKernel)
}

// bzImage tells 64 from 32 bits by the flags that newer kernels have, and else by
// the PE header of those that UEFI can start.
func bzImage(head []byte) (Kernel, error) {
	le := binary.LittleEndian
	k := Kernel{KernelBzImage, ami.ArchI386}
	pe := int64(le.Uint32(head[0x3c:]))
	switch {
	case le.Uint16(head[setupVersion:]) < 0x0200:
		return Kernel{}, fmt.Errorf("%w: its boot protocol is older than 2.00", ErrNoKernel)
	case le.Uint16(head[setupVersion:]) >= 0x020c && le.Uint16(head[setupXLoad:])&xloadKernel64 != 0,
		string(head[:2]) == "MZ" && pe+6 <= headerSize && le.Uint16(head[pe+4:]) == 0x8664:
		k.Architecture = ami.ArchX8664
	}
	return k, nil
}

// maxNotes bounds how much of an ELF file's notes is read, in bytes.
const maxNotes = 1 << 20

// elfKernel takes an ELF file that says where PVH enters it, which is the only way
// into one that QEMU knows.
func elfKernel(r io.ReaderAt) (Kernel, error) {
	f, err := elf.NewFile(r)
	if err != nil {
		return Kernel{}, fmt.Errorf("%w: %w", ErrNoKernel, err)
	}
	k := Kernel{Format: KernelELF}
	switch f.Machine {
	case elf.EM_X86_64:
		k.Architecture = ami.ArchX8664
	case elf.EM_386:
		k.Architecture = ami.ArchI386
	default:
		return Kernel{}, fmt.Errorf("%w: an ELF file for %s", ErrNoKernel, f.Machine)
	}
	for _, p := range f.Progs {
		if p.Type != elf.PT_NOTE {
			continue
		}
		notes, err := io.ReadAll(io.NewSectionReader(p, 0, min(int64(p.Filesz), maxNotes)))
		if err == nil && hasPVH(notes, f.ByteOrder) {
			return k, nil
		}
	}
	return Kernel{}, fmt.Errorf("%w: an ELF file without an entry for PVH (a kernel made with CONFIG_PVH has one)", ErrNoKernel)
}

// hasPVH says whether there is Xen's note 18, PHYS32_ENTRY, among notes.
func hasPVH(notes []byte, order binary.ByteOrder) bool {
	const physEntry = 18
	pad := func(n uint32) int { return int(min(int64(n)+3, maxNotes+3) &^ 3) }
	for len(notes) >= 12 {
		name, desc, kind := order.Uint32(notes), order.Uint32(notes[4:]), order.Uint32(notes[8:])
		notes = notes[12:]
		if pad(name) > len(notes) {
			return false
		}
		if kind == physEntry && bytes.Equal(bytes.TrimRight(notes[:name], "\x00"), []byte("Xen")) {
			return true
		}
		notes = notes[pad(name):]
		notes = notes[min(pad(desc), len(notes)):]
	}
	return false
}

// InspectRamdisk finds whether the size bytes of r begin as an initial RAM disk
// does: a cpio archive, as it is or packed.
func InspectRamdisk(r io.ReaderAt, size int64) error {
	head := make([]byte, min(size, headerSize))
	if _, err := r.ReadAt(head, 0); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if bytes.HasPrefix(head, []byte("070701")) || bytes.HasPrefix(head, []byte("070702")) || packed(head) != "" {
		return nil
	}
	return errors.New("neither a cpio archive nor one that is packed as kernels can unpack it")
}

// packed names the packing that a file begins with, "" for none that Linux knows.
func packed(head []byte) string {
	for _, p := range []struct{ magic, name string }{
		{"\x1f\x8b", "gzip"},
		{"\xfd7zXZ\x00", "xz"},
		{"\x28\xb5\x2f\xfd", "zstd"},
		{"\x02\x21\x4c\x18", "lz4"},
		{"\x5d\x00\x00", "lzma"},
		{"BZh", "bzip2"},
		{"\x89LZO\x00", "lzop"},
	} {
		if bytes.HasPrefix(head, []byte(p.magic)) {
			return p.name
		}
	}
	return ""
}
