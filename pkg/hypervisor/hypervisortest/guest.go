package hypervisortest

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/digest"
	"github.com/kamivm/kami/pkg/machine"
	"github.com/kamivm/kami/pkg/qcow2"
	"github.com/kamivm/kami/pkg/snapshot"
)

// The guest is one sector long: it writes a line to the first serial port,
// writes itself to the disk at WrittenAt through the firmware, says so on the
// serial port, and halts. It runs in real mode, so it is up at once and runs
// also where a hypervisor offers no more than that.
const (
	// BootLine is the last thing that a guest of BootSector says.
	BootLine = "sector: written"
	// WrittenAt is where it writes 512 bytes, in bytes.
	WrittenAt = 1 << 20
)

// BootSector is the first sector of a disk that boots by BIOS. The guest says
// text, then BootLine. text has at most 300 bytes.
func BootSector(text string) []byte {
	code := []byte{
		0x31, 0xc0, // xor ax, ax
		0x8e, 0xd8, // mov ds, ax
		0x8e, 0xc0, // mov es, ax
		0x8e, 0xd0, // mov ss, ax
		0xbc, 0x00, 0x7c, // mov sp, 0x7c00
		0x88, 0xd3, // mov bl, dl: the drive that was booted from
		0xbe, 0x56, 0x7c, // mov si, text
		0xe8, 0x15, 0x00, // call puts
		0xbe, 0x34, 0x7c, // mov si, packet
		0x88, 0xda, // mov dl, bl
		0xb8, 0x00, 0x43, // mov ax, 0x4300: extended write
		0xcd, 0x13, // int 0x13
		0x72, 0x06, // jc halt
		0xbe, 0x44, 0x7c, // mov si, done
		0xe8, 0x03, 0x00, // call puts
		0xf4,       // halt: hlt
		0xeb, 0xfd, // jmp halt
		0xac,       // puts: lodsb
		0x84, 0xc0, // test al, al
		0x74, 0x06, // jz return
		0xba, 0xf8, 0x03, // mov dx, 0x3f8
		0xee,       // out dx, al
		0xeb, 0xf5, // jmp puts
		0xc3, // return: ret
		// packet: one sector from 0000:7c00 to sector 2048
		0x10, 0, 1, 0, 0x00, 0x7c, 0, 0, 0x00, 0x08, 0, 0, 0, 0, 0, 0,
	}
	sector := make([]byte, 512)
	n := copy(sector, code)
	n += copy(sector[n:], BootLine+"\r\n\x00")
	copy(sector[n:440], text+"\r\n\x00")
	// One bootable Linux partition from sector 1 on.
	copy(sector[446:], []byte{0x80, 0, 2, 0, 0x83, 0, 3, 0, 1, 0, 0, 0, 0xff, 0x07, 0, 0})
	sector[510], sector[511] = 0x55, 0xaa
	return sector
}

// diskSize is the size of the suite's disks, in bytes.
const diskSize = 4 << 20

// bitmapName is the dirty bitmap in the suite's heads.
const bitmapName = "kami-suite"

// spec makes a guest of the boot sector: a layer, a head on it, and a console.
func spec(t *testing.T, c Config) machine.Spec {
	t.Helper()
	dir := c.Dir
	id := ami.NewInstanceID()
	store, err := snapshot.Open(filepath.Join(dir, "store"))
	if err != nil {
		t.Fatal(err)
	}
	raw := filepath.Join(t.TempDir(), "sector.raw")
	if err := os.WriteFile(raw, BootSector("guest "+string(id)), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(raw, diskSize); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(raw)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	src, err := qcow2.RawSource(f)
	if err != nil {
		t.Fatal(err)
	}
	layer, err := store.WriteLayer(t.Context(), src, "", ami.NoProgress.Step("", 0))
	if err != nil {
		t.Fatal(err)
	}
	head := newHead(t, dir, layer.Digest, bitmapName)
	chain, err := store.Chain(layer.Digest)
	if err != nil {
		t.Fatal(err)
	}
	return machine.Spec{
		ID: id, Name: "kami-" + string(id), UUID: "ec2e1916-9099-7caf-fd21-" + string(id)[len(id)-12:],
		CPUs: 1, MemoryMiB: 64, Arch: ami.ArchX8664, Accel: c.Accel, CPU: c.CPU,
		Disks:   []machine.Disk{{Device: "/dev/sda1", Serial: "suite", Path: head, Format: machine.FormatQCOW2, Backing: chain, Boot: true}},
		Network: machine.Network{MAC: "52:54:00:00:00:01"},
		Console: machine.Console{Log: filepath.Join(dir, string(id)+".log")},
	}
}

// newHead makes a head beside the store's layers; layer is "" for a blank one.
func newHead(t *testing.T, dir string, layer digest.Digest, bitmap string) string {
	t.Helper()
	path := filepath.Join(dir, "store", "volumes", fmt.Sprintf("%s.qcow2", ami.NewVolumeID()))
	backing := ""
	if layer != "" {
		backing = "../layers/" + layer.Hex() + ".qcow2"
	}
	if err := qcow2.CreateHead(path, diskSize, backing, bitmap); err != nil {
		t.Fatal(err)
	}
	return path
}
