// Package foreign opens disks that other programs made, for reading: raw, qcow2,
// vmdk, vhd, vhdx and ova, also compressed with gzip, xz or zstd.
//
// A disk that comes from outside can name other files (backing files, data
// files, extents, parents), by which it could read the host's. So its header is
// looked into by our own code first, and one that names anything is refused;
// only then is another program given the file, with its format said.
package foreign

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/kamivm/kami/pkg/qcow2"
)

// Sentinels, wrapped by what the package returns.
var (
	ErrForeignFile = errors.New("the disk names another file")
	ErrTruncated   = errors.New("the disk is cut off")
	ErrDamaged     = errors.New("the file is damaged")
	ErrNotADisk    = errors.New("this is not a disk")
	ErrNoSpace     = errors.New("no space left")
	ErrUnsupported = errors.New("unsupported disk")
)

// Format is the format of a disk's file.
type Format string

// The formats. Auto is found by looking.
const (
	Auto  Format = ""
	Raw   Format = "raw"
	QCOW2 Format = "qcow2"
	VMDK  Format = "vmdk"
	VHD   Format = "vhd"
	VHDX  Format = "vhdx"
	OVA   Format = "ova"
	GZ    Format = "gz"
	XZ    Format = "xz"
	ZST   Format = "zst"
)

// Formats lists what a person can name.
func Formats() []Format { return []Format{Raw, QCOW2, VMDK, VHD, VHDX, OVA} }

// ParseFormat reads a format's name; "" is Auto.
func ParseFormat(s string) (Format, error) {
	f := Format(strings.ToLower(s))
	if f == Auto || slices.Contains(Formats(), f) {
		return f, nil
	}
	return "", fmt.Errorf("%w: the format %q is not one of %v", ErrUnsupported, s, Formats())
}

// Probe finds out the format by what stands in the file. It returns ErrNotADisk
// for what is none.
func Probe(r io.ReaderAt, size int64) (Format, error) {
	head := make([]byte, min(max(size, 0), 4096))
	if err := readAt(r, head, 0); err != nil {
		return "", err
	}
	has := func(at int, magic string) bool {
		return len(head) >= at+len(magic) && string(head[at:at+len(magic)]) == magic
	}
	switch {
	case has(0, "QFI\xfb"):
		return QCOW2, nil
	case has(0, "KDMV"), has(0, "# Disk DescriptorFile"), has(0, "COWD"):
		return VMDK, nil
	case has(0, "vhdxfile"):
		return VHDX, nil
	case has(0, "conectix"):
		return VHD, nil
	case has(257, "ustar"):
		return OVA, nil
	case has(0, "\x1f\x8b"):
		return GZ, nil
	case has(0, "\xfd7zXZ\x00"):
		return XZ, nil
	case has(0, "\x28\xb5\x2f\xfd"):
		return ZST, nil
	}
	if size >= 512 {
		foot := make([]byte, 8)
		if err := readAt(r, foot, size-512); err != nil {
			return "", err
		}
		if string(foot) == "conectix" {
			return VHD, nil
		}
	}
	if looksRaw(r, head, size) {
		return Raw, nil
	}
	return "", fmt.Errorf("%w: %s", ErrNotADisk, describe(head, size))
}

// looksRaw says whether a raw disk shows a boot sector or a file system.
func looksRaw(r io.ReaderAt, head []byte, size int64) bool {
	if len(head) >= 512 && head[510] == 0x55 && head[511] == 0xaa {
		return true
	}
	for _, fs := range []struct {
		at    int64
		magic string
	}{{1024 + 56, "\x53\xef"}, {0, "XFSB"}, {0x10040, "_BHRfS_M"}, {0x8001, "CD001"}, {0, "hsqs"}, {512, "EFI PART"}} {
		b := make([]byte, len(fs.magic))
		if fs.at+int64(len(b)) <= size && readAt(r, b, fs.at) == nil && string(b) == fs.magic {
			return true
		}
	}
	return false
}

func describe(head []byte, size int64) string {
	switch {
	case size == 0:
		return "it is empty"
	case bytes.HasPrefix(head, []byte("%PDF")):
		return "it looks like a PDF"
	case bytes.HasPrefix(head, []byte("\x7fELF")):
		return "it looks like a program"
	case bytes.HasPrefix(head, []byte("PK\x03\x04")):
		return "it looks like a zip archive"
	case bytes.HasPrefix(bytes.TrimSpace(head), []byte("<")):
		return "it looks like a web page"
	case !slices.ContainsFunc(head, func(c byte) bool { return c < 9 || c > 13 && c < 32 }):
		return "it looks like text"
	}
	return "it has no partition table and no file system"
}

func readAt(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	if errors.Is(err, io.EOF) && n == len(p) {
		return nil
	}
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: it ends at %d", ErrTruncated, off+int64(n))
	}
	return err
}

// check looks into the header of a disk and refuses what names other files, and
// what is cut off.
func check(r io.ReaderAt, size int64, format Format) error {
	switch format {
	case QCOW2:
		return checkQCOW2(r, size)
	case VMDK:
		return checkVMDK(r, size)
	case VHD:
		return checkVHD(r, size)
	case VHDX:
		return checkVHDX(r, size)
	case Raw:
		if size == 0 {
			return fmt.Errorf("%w: it is empty", ErrNotADisk)
		}
	}
	return nil
}

func checkQCOW2(r io.ReaderAt, size int64) error {
	info, err := qcow2.Inspect(r, size)
	switch {
	case errors.Is(err, qcow2.ErrNotQCOW2):
		return fmt.Errorf("%w: %w", ErrNotADisk, err)
	case errors.Is(err, qcow2.ErrCorrupt):
		return fmt.Errorf("%w: %w", ErrTruncated, err)
	case err != nil:
		return fmt.Errorf("%w: %w", ErrUnsupported, err)
	case info.BackingName != "":
		return fmt.Errorf("%w: the backing file %q", ErrForeignFile, info.BackingName)
	case info.DataFile:
		return fmt.Errorf("%w: the data file %q", ErrForeignFile, info.DataFileName)
	case info.Encrypted:
		return fmt.Errorf("%w: it is encrypted", ErrUnsupported)
	case info.ExtendedL2:
		return fmt.Errorf("%w: it has extended L2 entries; convert it with qemu-img first", ErrUnsupported)
	}
	return nil
}

// checkVHD takes fixed and dynamic disks; a differencing one has a parent.
func checkVHD(r io.ReaderAt, size int64) error {
	foot := make([]byte, 512)
	if size < 512 {
		return fmt.Errorf("%w: its footer", ErrTruncated)
	}
	if err := readAt(r, foot, size-512); err != nil {
		return err
	}
	if string(foot[:8]) != "conectix" {
		return fmt.Errorf("%w: its footer", ErrTruncated)
	}
	// A dynamic disk begins with a copy of its footer, which readers may prefer.
	head := make([]byte, 512)
	if err := readAt(r, head, 0); err != nil {
		return err
	}
	for _, b := range [][]byte{foot, head} {
		if string(b[:8]) != "conectix" {
			continue
		}
		switch kind := binary.BigEndian.Uint32(b[60:]); kind {
		case 2, 3:
		case 4:
			return fmt.Errorf("%w: a parent disk", ErrForeignFile)
		default:
			return fmt.Errorf("%w: a vhd of type %d", ErrUnsupported, kind)
		}
	}
	return nil
}

// checkVHDX looks for the parent locator in the region of metadata ([MS-VHDX],
// 2.6): a fixed region table at 192 KiB names that region.
func checkVHDX(r io.ReaderAt, size int64) error {
	table := make([]byte, 64<<10)
	if size < 320<<10 {
		return fmt.Errorf("%w: its region table", ErrTruncated)
	}
	if err := readAt(r, table, 192<<10); err != nil {
		return err
	}
	le := binary.LittleEndian
	metadata := [16]byte{0x06, 0xa2, 0x7c, 0x8b, 0x90, 0x47, 0x9a, 0x4b, 0xb8, 0xfe, 0x57, 0x5f, 0x05, 0x0f, 0x88, 0x6e}
	fileParameters := [16]byte{0x37, 0x67, 0xa1, 0xca, 0x36, 0xfa, 0x43, 0x4d, 0xb3, 0xb6, 0x33, 0xf0, 0xaa, 0x44, 0xe7, 0x6b}
	for i := range min(le.Uint32(table[8:]), 2047) {
		e := table[16+32*i:]
		if [16]byte(e[:16]) != metadata {
			continue
		}
		at := le.Uint64(e[16:])
		if at > uint64(size)-64<<10 {
			return fmt.Errorf("%w: its metadata", ErrTruncated)
		}
		meta := make([]byte, 64<<10)
		if err := readAt(r, meta, int64(at)); err != nil {
			return err
		}
		for j := range min(le.Uint16(meta[10:]), 2047) {
			m := meta[32+32*int(j):]
			if [16]byte(m[:16]) != fileParameters {
				continue
			}
			b := make([]byte, 8)
			if err := readAt(r, b, int64(at)+int64(le.Uint32(m[16:]))); err != nil {
				return err
			}
			if le.Uint32(b[4:])&2 != 0 {
				return fmt.Errorf("%w: a parent disk", ErrForeignFile)
			}
			return nil
		}
	}
	return fmt.Errorf("%w: a vhdx without metadata", ErrTruncated)
}
