package hypervisortest

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/machine"
	"github.com/kamivm/kami/pkg/qcow2"
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
	layer := newLayer(t, dir, BootSector("guest "+string(id)))
	head := newHead(t, dir, filepath.Base(layer), bitmapName)
	return machine.Spec{
		ID: id, Name: "kami-" + string(id), UUID: "ec2e1916-9099-7caf-fd21-" + string(id)[len(id)-12:],
		CPUs: 1, MemoryMiB: 64, Arch: ami.ArchX8664, Accel: c.Accel, CPU: c.CPU,
		Disks:   []machine.Disk{{Device: "/dev/sda1", Serial: "suite", Path: head, Format: machine.FormatQCOW2, Backing: []string{layer}, Boot: true}},
		Network: machine.Network{MAC: "52:54:00:00:00:01"},
		Console: machine.Console{Log: filepath.Join(dir, string(id)+".log")},
	}
}

// newLayer makes a layer of a disk that begins with sector, as the store has it.
func newLayer(t *testing.T, dir string, sector []byte) string {
	t.Helper()
	for _, d := range []string{"layers", "volumes"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	raw, err := os.Create(filepath.Join(t.TempDir(), "sector.raw"))
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	if _, err := raw.Write(sector); err != nil {
		t.Fatal(err)
	}
	if err := raw.Truncate(diskSize); err != nil {
		t.Fatal(err)
	}
	src, err := qcow2.RawSource(raw)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.CreateTemp(filepath.Join(dir, "layers"), "new-*")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	res, err := qcow2.WriteLayer(t.Context(), f, src, nil, nil, func(int64) {})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "layers", res.Layer.Hex()+".qcow2")
	if err := errors.Join(f.Chmod(0o444), os.Rename(f.Name(), path)); err != nil {
		t.Fatal(err)
	}
	return path
}

// newHead makes a head on a layer of that name, or a blank one.
func newHead(t *testing.T, dir, layer, bitmap string) string {
	t.Helper()
	path := filepath.Join(dir, "volumes", string(ami.NewVolumeID())+".qcow2")
	backing := ""
	if layer != "" {
		backing = "../layers/" + layer
	}
	if err := qcow2.CreateHead(path, diskSize, backing, bitmap, nil); err != nil {
		t.Fatal(err)
	}
	return path
}
