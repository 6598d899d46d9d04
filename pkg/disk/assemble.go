package disk

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/diskfs/go-diskfs"
	"github.com/diskfs/go-diskfs/partition/gpt"
	"golang.org/x/sys/unix"
)

// Layout is a disk that boots by BIOS and by UEFI: a BIOS boot partition, an EFI
// system partition and, last so that it can grow, the root.
type Layout struct {
	GUID       string // of the disk
	Size       int64  // bytes
	BootCode   []byte // GRUB's boot.img; nil is a disk that does not boot by BIOS
	BIOSLoader []byte // GRUB's core image
	ESPSize    int64  // bytes, whole MiB; 0 is 4 MiB
	ESP, Root  Content
}

// Content is what fills a partition.
type Content struct {
	GUID string
	Path string // of the file system's image
}

// The places of the partitions, in bytes. The end holds the second GPT.
const (
	mib       = 1 << 20
	biosStart = 1 * mib
	espStart  = 2 * mib
	espSize   = 4 * mib
	espGap    = 2 * mib // behind it
	tailSize  = 1 * mib
)

func (l Layout) espSize() int64 {
	if l.ESPSize == 0 {
		return espSize
	}
	return l.ESPSize
}

func (l Layout) rootStart() int64 { return espStart + l.espSize() + espGap }

// RootSize is how many bytes the root has.
func (l Layout) RootSize() int64 { return l.Size - l.rootStart() - tailSize }

// Assemble writes the disk at path, sparse. The same content gives the same disk.
func Assemble(ctx context.Context, path string, l Layout) error {
	if l.RootSize() < mib || l.ESPSize%mib != 0 {
		return fmt.Errorf("a disk of %d bytes is too small", l.Size)
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(l.Size); err != nil {
		return err
	}
	if err := partition(path, l); err != nil {
		return fmt.Errorf("partitioning: %w", err)
	}
	if l.BootCode != nil {
		if err := installBIOS(f, l.BootCode, l.BIOSLoader); err != nil {
			return fmt.Errorf("boot loader: %w", err)
		}
	}
	for _, part := range []struct {
		c         Content
		at, limit int64
	}{{l.ESP, espStart, l.espSize()}, {l.Root, l.rootStart(), l.RootSize()}} {
		if err := copyImage(ctx, f, part.at, part.limit, part.c.Path); err != nil {
			return fmt.Errorf("copying %s: %w", part.c.Path, err)
		}
	}
	return f.Close()
}

func partition(path string, l Layout) error {
	if len(l.ESP.GUID) != 36 {
		return fmt.Errorf("the GUID %q", l.ESP.GUID)
	}
	bios := l.ESP.GUID[:35] + "0" // its own, and as fixed as the other
	if bios == l.ESP.GUID {
		bios = l.ESP.GUID[:35] + "1"
	}
	d, err := diskfs.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	part := func(index int, start, size int64, kind gpt.Type, name, guid string) *gpt.Partition {
		return &gpt.Partition{Index: index, Start: uint64(start / sector), End: uint64((start+size)/sector - 1), Size: uint64(size), Type: kind, Name: name, GUID: guid}
	}
	return d.Partition(&gpt.Table{
		LogicalSectorSize: sector, PhysicalSectorSize: sector, ProtectiveMBR: true, GUID: l.GUID,
		Partitions: []*gpt.Partition{
			part(1, biosStart, espStart-biosStart, gpt.BIOSBoot, "bios", bios),
			part(2, espStart, l.espSize(), gpt.EFISystemPartition, "esp", l.ESP.GUID),
			part(3, l.rootStart(), l.RootSize(), gpt.LinuxFilesystem, "root", l.Root.GUID),
		},
	})
}

// Where GRUB's boot.img keeps the sector of the core image, and the jump that it
// skips on hard disks; where the first sector of the core image keeps its list
// of blocks (GRUB: include/grub/i386/pc/boot.h, grub-core/boot/i386/pc).
const (
	bootCodeSize   = 440
	bootKernelAt   = 0x5c
	bootDriveCheck = 0x66
	coreBlockList  = 0x1f4
	coreSegment    = 0x820
)

// installBIOS does what grub-bios-setup does, without a device: the boot sector
// learns where the core image is, and the core image where the rest of it is.
func installBIOS(f *os.File, boot, core []byte) error {
	if len(boot) != sector || len(core) < 2*sector || len(core) > espStart-biosStart {
		return fmt.Errorf("a boot image of %d and a core image of %d bytes", len(boot), len(core))
	}
	le := binary.LittleEndian
	boot, core = append([]byte{}, boot...), append([]byte{}, core...)
	le.PutUint64(boot[bootKernelAt:], biosStart/sector)
	boot[bootDriveCheck], boot[bootDriveCheck+1] = 0x90, 0x90
	le.PutUint64(core[coreBlockList:], biosStart/sector+1)
	le.PutUint16(core[coreBlockList+8:], uint16((len(core)+sector-1)/sector-1))
	le.PutUint16(core[coreBlockList+10:], coreSegment)
	if _, err := f.WriteAt(boot[:bootCodeSize], 0); err != nil {
		return err
	}
	_, err := f.WriteAt(core, biosStart)
	return err
}

// copyImage copies the data of a file system's image; its holes stay holes.
func copyImage(ctx context.Context, dst *os.File, at, limit int64, path string) error {
	src, err := os.Open(path)
	if err != nil {
		return err
	}
	defer src.Close()
	st, err := src.Stat()
	if err != nil {
		return err
	}
	if st.Size() > limit {
		return fmt.Errorf("it has %d bytes, there is room for %d", st.Size(), limit)
	}
	for off := int64(0); ; {
		if err := ctx.Err(); err != nil {
			return err
		}
		data, err := unix.Seek(int(src.Fd()), off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil
		}
		if err != nil {
			return err
		}
		hole, err := unix.Seek(int(src.Fd()), data, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		if _, err := io.Copy(io.NewOffsetWriter(dst, at+data), io.NewSectionReader(src, data, hole-data)); err != nil {
			return err
		}
		off = hole
	}
}
