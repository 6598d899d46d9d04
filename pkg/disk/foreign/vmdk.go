package foreign

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"strings"
)

// The parts of a sparse vmdk that bound a look into one.
const (
	vmdkSector      = 512
	vmdkDescriptor  = 1       // sector at which QEMU looks for a parent, whatever the header says
	vmdkDescSectors = 20      // how many of them it reads
	vmdkMaxTables   = 1 << 20 // grain tables: 32 TiB with grains of 64 KiB
	vmdkMaxEntries  = 512     // of a grain table, as QEMU has it
	vmdkAtEnd       = ^uint64(0)
)

// checkVMDK takes sparse disks with their descriptor inside: monolithicSparse
// and streamOptimized. The descriptor may name one extent, and no parent.
func checkVMDK(r io.ReaderAt, size int64) error {
	h := make([]byte, min(vmdkSector, max(size, 0)))
	if err := readAt(r, h, 0); err != nil {
		return err
	}
	if !bytes.HasPrefix(h, []byte("KDMV")) { // a text, which may be short, or an old form
		return fmt.Errorf("%w: the extents of a vmdk descriptor; convert it to a single file where it was made", ErrForeignFile)
	}
	if len(h) < vmdkSector {
		return fmt.Errorf("%w: its header", ErrTruncated)
	}
	le := binary.LittleEndian
	capacity, at, n, dir := le.Uint64(h[12:]), le.Uint64(h[28:]), le.Uint64(h[36:]), le.Uint64(h[56:])
	if capacity == 0 || capacity > 1<<41 {
		return fmt.Errorf("%w: a vmdk of %d sectors", ErrUnsupported, capacity)
	}
	if at == 0 || n == 0 || n > 2048 {
		return fmt.Errorf("%w: a vmdk without a descriptor inside", ErrUnsupported)
	}
	if at > uint64(size)/vmdkSector || (at+n)*vmdkSector > uint64(size) {
		return fmt.Errorf("%w: its descriptor", ErrTruncated)
	}
	text := make([]byte, n*vmdkSector)
	if err := readAt(r, text, int64(at)*vmdkSector); err != nil {
		return err
	}
	if err := checkDescriptor(text); err != nil {
		return err
	}
	fixed := make([]byte, min(vmdkDescSectors*vmdkSector, size-vmdkDescriptor*vmdkSector))
	if err := readAt(r, fixed, vmdkDescriptor*vmdkSector); err != nil {
		return err
	}
	if namesParent(fixed) {
		return fmt.Errorf("%w: a parent disk", ErrForeignFile)
	}
	if dir == vmdkAtEnd { // of a stream, behind everything
		foot := make([]byte, 4)
		if size < 3*vmdkSector || readAt(r, foot, size-2*vmdkSector) != nil || string(foot) != "KDMV" {
			return fmt.Errorf("%w: its footer", ErrTruncated)
		}
		return nil
	}
	return checkGrains(r, size, capacity, le.Uint64(h[20:]), le.Uint32(h[44:]), dir, le.Uint16(h[77:]) != 0)
}

// namesParent looks for the hint anywhere, as QEMU does: it may stand in a
// comment or behind other text.
func namesParent(text []byte) bool {
	return bytes.Contains(bytes.ToLower(text), []byte("parentfilenamehint"))
}

func checkDescriptor(text []byte) error {
	if namesParent(text) {
		return fmt.Errorf("%w: a parent disk", ErrForeignFile)
	}
	text, _, _ = bytes.Cut(text, []byte{0})
	extents := 0
	for _, line := range strings.Split(string(text), "\n") {
		line = strings.TrimSpace(line)
		f := strings.Fields(line)
		lower := strings.ToLower(line)
		switch {
		case strings.HasPrefix(lower, "parentcid") && !strings.HasSuffix(strings.ReplaceAll(lower, " ", ""), "=ffffffff"):
			return fmt.Errorf("%w: a parent disk", ErrForeignFile)
		case len(f) >= 4 && (f[0] == "RW" || f[0] == "RDONLY" || f[0] == "NOACCESS"):
			if extents++; f[2] != "SPARSE" || extents > 1 || strings.ContainsAny(line, "/\\") {
				return fmt.Errorf("%w: the extent %s", ErrForeignFile, line)
			}
		}
	}
	return nil
}

// checkGrains holds every grain against the file's size: a disk that is cut off
// would be read as zeros from there on, and nobody would be told.
func checkGrains(r io.ReaderAt, size int64, capacity, grain uint64, perTable uint32, dir uint64, packed bool) error {
	if grain == 0 || grain > capacity+1<<20 || perTable == 0 || perTable > vmdkMaxEntries {
		return fmt.Errorf("%w: a vmdk with grains of %d sectors, %d a table", ErrUnsupported, grain, perTable)
	}
	sectors := uint64(size) / vmdkSector
	tables := (capacity + grain*uint64(perTable) - 1) / (grain * uint64(perTable))
	if tables > vmdkMaxTables {
		return fmt.Errorf("%w: a vmdk with %d grain tables", ErrUnsupported, tables)
	}
	if dir > sectors || dir*vmdkSector+tables*4 > uint64(size) {
		return fmt.Errorf("%w: its grain directory", ErrTruncated)
	}
	directory := make([]byte, tables*4)
	if err := readAt(r, directory, int64(dir)*vmdkSector); err != nil {
		return err
	}
	le := binary.LittleEndian
	seen := map[uint64]bool{0: true}
	table := make([]byte, perTable*4)
	for i := range tables {
		at := uint64(le.Uint32(directory[i*4:]))
		if seen[at] {
			continue
		}
		seen[at] = true
		if at > sectors || at*vmdkSector+uint64(len(table)) > uint64(size) {
			return fmt.Errorf("%w: a grain table", ErrTruncated)
		}
		if err := readAt(r, table, int64(at)*vmdkSector); err != nil {
			return err
		}
		for j := range uint64(perTable) {
			g := uint64(le.Uint32(table[j*4:]))
			guest := (i*uint64(perTable) + j) * grain
			if g < 2 || guest >= capacity { // not there, or zeros
				continue
			}
			need := uint64(1) // a packed grain says in its header how long it is
			if !packed {
				need = min(grain, capacity-guest)
			}
			if g+need > sectors {
				return fmt.Errorf("%w: its data at %d", ErrTruncated, g*vmdkSector)
			}
		}
	}
	return nil
}
