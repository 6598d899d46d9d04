package libvirt

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/hypervisor"
	"github.com/kamivm/kami/pkg/machine"
	"github.com/kamivm/kami/pkg/qcow2"
)

// scribbler is a boot sector that writes to one place of every 64 KiB in the
// first 4 MiB of its disk, over and over.
func scribbler() []byte {
	code := []byte{
		0x31, 0xc0, // xor ax, ax
		0x8e, 0xd8, // mov ds, ax
		0x8e, 0xd0, // mov ss, ax
		0xbc, 0x00, 0x7c, // mov sp, 0x7c00
		0x88, 0xd3, // mov bl, dl: the drive that was booted from
		0xbe, 0x24, 0x7c, // again: mov si, packet
		0x88, 0xda, // mov dl, bl
		0xb8, 0x00, 0x43, // mov ax, 0x4300: extended write
		0xcd, 0x13, // int 0x13
		0x81, 0x06, 0x2c, 0x7c, 0x80, 0x00, // add word [lba], 128
		0x81, 0x26, 0x2c, 0x7c, 0xff, 0x1f, // and word [lba], 0x1fff
		0xeb, 0xe9, // jmp again
		0x90,
		// packet: 8 sectors from 0000:7c00 to sector lba
		0x10, 0, 8, 0, 0x00, 0x7c, 0, 0, 0x80, 0, 0, 0, 0, 0, 0, 0,
	}
	sector := make([]byte, 512)
	copy(sector, code)
	copy(sector[446:], []byte{0x80, 0, 2, 0, 0x83, 0, 3, 0, 1, 0, 0, 0, 0xff, 0x07, 0, 0})
	sector[510], sector[511] = 0x55, 0xaa
	return sector
}

// TestOutOfRoom fills the folder of the copies that a view makes, and holds that
// the guest, which is paused then, goes on when the view is closed.
func TestOutOfRoom(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can mount a file system that is small")
	}
	d, err := Open(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	dir := guestDir(t)
	small := filepath.Join(dir, "copies")
	if err := os.Mkdir(small, 0o755); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), "mount", "-t", "tmpfs", "-o", "size=1m,mode=1733", "none", small).CombinedOutput(); err != nil {
		t.Fatalf("mount: %v: %s", err, out)
	}
	t.Cleanup(func() { exec.Command("umount", "-l", small).Run() })
	sockets := filepath.Join(dir, "sockets")
	if err := errors.Join(os.Mkdir(sockets, 0o700), os.Chmod(sockets, os.ModeSticky|0o733)); err != nil {
		t.Fatal(err)
	}
	disk := filepath.Join(dir, "disk.qcow2")
	if err := qcow2.CreateHead(disk, 8<<20, "", "", nil); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "qemu-io", "-f", "qcow2", "-c", "write -P 1 0 8M", "-c", "write -s "+sectorFile(t)+" 0 512", disk)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	id := ami.NewInstanceID()
	spec := machine.Spec{
		ID: id, Name: "kami-" + string(id), UUID: "ec2e1916-9099-7caf-fd21-" + string(id)[len(id)-12:],
		CPUs: 1, MemoryMiB: 64, Arch: ami.ArchX8664, Accel: machine.AccelTCG,
		Disks:   []machine.Disk{{Device: "/dev/sda1", Serial: "room", Path: disk, Format: machine.FormatQCOW2, Boot: true}},
		Network: machine.Network{MAC: "52:54:00:00:00:02"},
		Console: machine.Console{Log: filepath.Join(dir, "console.log")},
	}
	if err := d.Start(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Destroy(context.Background(), id); err != nil {
			t.Error(err)
		}
	})
	v, err := d.Backup(t.Context(), id, hypervisor.Backup{
		Disks: []hypervisor.BackupDisk{{Path: disk}}, SocketDir: sockets, CopiesDir: small,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	wantBecomes(t, d, id, hypervisor.StateIOError)
	if err := v.Close(); !errors.Is(err, hypervisor.ErrOutOfRoom) {
		t.Errorf("Close: %v, want it to say that the guest had no room", err)
	}
	time.Sleep(2 * time.Second) // in which it would be paused again
	wantBecomes(t, d, id, hypervisor.StateRunning)
}

func sectorFile(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "sector")
	if err := os.WriteFile(path, scribbler(), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func wantBecomes(t *testing.T, d *Driver, id ami.InstanceID, want hypervisor.State) {
	t.Helper()
	var got hypervisor.State
	for range 300 {
		var err error
		if got, err = d.State(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		if got == want {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Fatalf("the guest is %s, want %s", got, want)
}
