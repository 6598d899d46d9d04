package pvgrub

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"strings"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/disk/guestfs"
)

// What a kernel can be, by its first bytes. A compressed one is whatever comes
// out of it; a bzImage decompresses itself.
const (
	FormatBzImage    = "bzImage"
	FormatARM64Image = "arm64 Image"
	FormatEFIZboot   = "EFI zboot image"
	FormatELF        = "ELF"
	FormatGzip       = "gzip"
	FormatBzip2      = "bzip2"
	FormatLZO        = "lzo"
	FormatXZ         = "xz"
	FormatLZ4        = "lz4"
	FormatZstd       = "zstd"
)

// openKernel finds a kernel and looks into its first bytes.
func openKernel(ctx context.Context, p place) (File, error) {
	f, err := p.open(ctx)
	if err != nil {
		return File{}, err
	}
	if f.Size() > MaxKernel {
		return File{}, fmt.Errorf("%w: the kernel %s has %d bytes, at most %d are taken", ErrTooLarge, p, f.Size(), MaxKernel)
	}
	out := File{Device: p.on.device(), Path: shown(f.Path()), Size: f.Size(), file: f}
	head := make([]byte, min(f.Size(), 64<<10))
	if err := f.ReadAt(ctx, head, 0); err != nil {
		return File{}, fmt.Errorf("%s: %w", p.on.device(), err)
	}
	out.Format, out.Architecture = sniff(head)
	switch out.Format {
	case "":
		return File{}, fmt.Errorf("%w: %s is %s", ErrNotKernel, p, describe(head))
	case FormatELF:
		if out.PVH, err = hasPVH(ctx, f, head); err != nil {
			return File{}, fmt.Errorf("%s: %w", p.on.device(), err)
		}
	case FormatGzip:
		if z, err := gzip.NewReader(bytes.NewReader(head)); err == nil {
			inner := make([]byte, 4096)
			n, _ := io.ReadFull(z, inner)
			_, out.Architecture = sniff(inner[:n])
		}
	}
	return out, nil
}

// sniff says which kernel begins with head; "" when it is none.
func sniff(head []byte) (format string, arch ami.Architecture) {
	at := func(off int, magic string) bool {
		return len(head) >= off+len(magic) && string(head[off:off+len(magic)]) == magic
	}
	switch {
	case at(0x202, "HdrS") && at(0x1fe, "\x55\xaa"):
		// Documentation/arch/x86/boot.rst: xloadflags, since version 2.12.
		const version, xloadflags, kernel64 = 0x206, 0x236, 1
		arch = ami.ArchI386
		if len(head) > xloadflags && binary.LittleEndian.Uint16(head[version:]) >= 0x20c && head[xloadflags]&kernel64 != 0 {
			arch = ami.ArchX8664
		}
		return FormatBzImage, arch
	case at(0x38, "ARM\x64"):
		return FormatARM64Image, ami.ArchARM64
	case at(0, "MZ") && at(4, "zimg"):
		return FormatEFIZboot, ami.ArchARM64 // x86 has its own
	case at(0, "\x7fELF") && len(head) >= 64:
		switch binary.LittleEndian.Uint16(head[18:]) {
		case 3:
			arch = ami.ArchI386
		case 62:
			arch = ami.ArchX8664
		case 183:
			arch = ami.ArchARM64
		}
		return FormatELF, arch
	}
	for _, c := range []struct{ magic, format string }{
		{"\x1f\x8b\x08", FormatGzip},
		{"BZh", FormatBzip2},
		{"\x89LZO\x00\r\n\x1a\n", FormatLZO},
		{"\xfd7zXZ\x00", FormatXZ},
		{"\x02\x21\x4c\x18", FormatLZ4},
		{"\x28\xb5\x2f\xfd", FormatZstd},
	} {
		if at(0, c.magic) {
			return c.format, ""
		}
	}
	return "", ""
}

// describe says what a file is that is no kernel.
func describe(head []byte) string {
	has := func(s string) bool { return strings.HasPrefix(string(head), s) }
	switch {
	case len(head) == 0:
		return "empty"
	case has("MZ"):
		return "an EFI program; a unified kernel image is one, and is not taken apart"
	case has("070701") || has("070702") || has("\xc7\x71"):
		return "a cpio archive, as initial RAM disks are"
	case has("#!"):
		return "a script"
	case len(bytes.Trim(head, "\x00")) == 0:
		return "nothing but zeros at its beginning"
	}
	return fmt.Sprintf("something that begins with % x", head[:min(8, len(head))])
}

// hasPVH looks for the Xen note with the entry point by which QEMU starts an
// uncompressed kernel (XEN_ELFNOTE_PHYS32_ENTRY).
func hasPVH(ctx context.Context, f *guestfs.File, head []byte) (bool, error) {
	const (
		maxHeaders, maxParts, maxNotes = 64, 4, 64 << 10
		headSize32, headSize64         = 32, 56
		little, class64, note          = 1, 2, 4
	)
	if head[5] != little {
		return false, nil
	}
	le := binary.LittleEndian
	wide := head[4] == class64
	table, each, count := uint64(le.Uint32(head[28:])), uint64(le.Uint16(head[42:])), uint64(le.Uint16(head[44:]))
	least := uint64(headSize32)
	if wide {
		table, each, count, least = le.Uint64(head[32:]), uint64(le.Uint16(head[54:])), uint64(le.Uint16(head[56:])), headSize64
	}
	parts := 0
	for i := range min(count, maxHeaders) {
		at := table + i*each
		if each < least || at < table || at > uint64(len(head)) || uint64(len(head))-at < least {
			return false, nil
		}
		h := head[at:]
		if le.Uint32(h) != note {
			continue
		}
		off, size := uint64(le.Uint32(h[4:])), uint64(le.Uint32(h[16:]))
		if wide {
			off, size = le.Uint64(h[8:]), le.Uint64(h[32:])
		}
		if size > maxNotes || off > uint64(f.Size()) || size > uint64(f.Size())-off {
			continue
		}
		if parts++; parts > maxParts {
			return false, nil
		}
		b := make([]byte, size)
		if err := f.ReadAt(ctx, b, int64(off)); err != nil {
			return false, err
		}
		if pvhNote(b) {
			return true, nil
		}
	}
	return false, nil
}

func pvhNote(b []byte) bool {
	const head, phys32Entry = 12, 18
	for len(b) >= head {
		name, desc := int64(binary.LittleEndian.Uint32(b)), int64(binary.LittleEndian.Uint32(b[4:]))
		next := head + (name+3)&^3 + (desc+3)&^3
		if next > int64(len(b)) {
			return false
		}
		if binary.LittleEndian.Uint32(b[8:]) == phys32Entry && string(b[head:head+name]) == "Xen\x00" {
			return true
		}
		b = b[next:]
	}
	return false
}

// openInitrds finds the initial RAM disks of an entry.
func openInitrds(ctx context.Context, places []place) ([]File, error) {
	const most = 16
	if len(places) > most {
		return nil, fmt.Errorf("%w: %d initial RAM disks, at most %d are taken", ErrTooLarge, len(places), most)
	}
	var out []File
	total := int64(0)
	for _, p := range places {
		f, err := p.open(ctx)
		if err != nil {
			return nil, err
		}
		// One alone may be longer than what a sum of them can hold.
		if f.Size() > MaxInitrds || total+f.Size() > MaxInitrds {
			return nil, fmt.Errorf("%w: %s and the initial RAM disks before it have more than %d bytes", ErrTooLarge, p, MaxInitrds)
		}
		total += f.Size()
		out = append(out, File{Device: p.on.device(), Path: shown(f.Path()), Size: f.Size(), file: f})
	}
	return out, nil
}
