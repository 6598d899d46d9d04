package e2e

import (
	"bytes"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/kamivm/kami/pkg/ami"
)

// A stamper is a guest of one sector that counts, and writes each number down in
// the next of some places on its disk, round and round. What the disk holds tells
// how far the guest was at the instant that it is of, and whether there is such an
// instant.
type stamper struct {
	places int // that the guest writes to, each in a cluster of its own
	ticks  int // that it pauses after each number, 18 to the second; 0 for none
}

const (
	stampsFrom = 1 << 20  // of the first place, in bytes
	stampApart = 64 << 10 // from place to place, in bytes
	sectorSize = 512
)

// sector is what the guest writes when it is at a number; 0 is what it boots from.
func (s stamper) sector(number uint32) []byte {
	b := make([]byte, sectorSize)
	copy(b, []byte{
		0x31, 0xc0, // xor ax, ax
		0x8e, 0xd8, // mov ds, ax
		0x8e, 0xd0, // mov ss, ax
		0xbc, 0x00, 0x7c, // mov sp, 0x7c00
		0x88, 0xd3, // mov bl, dl: the drive that was booted from
		0xfb,                         // sti
		0x66, 0xff, 0x06, 0x55, 0x7c, // again: inc dword [number]
		0x66, 0xa1, 0x55, 0x7c, // mov eax, [number]
		0x66, 0x48, // dec eax
		0x66, 0x31, 0xd2, // xor edx, edx
		0x66, 0xf7, 0x36, 0x59, 0x7c, // div dword [places]
		0x66, 0xc1, 0xe2, 0x07, // shl edx, 7: the place, in sectors
		0x66, 0x81, 0xc2, 0x00, 0x08, 0x00, 0x00, // add edx, 2048
		0x66, 0x89, 0x16, 0x4d, 0x7c, // mov [lba], edx
		0x88, 0xda, // mov dl, bl
		0xbe, 0x45, 0x7c, // mov si, packet
		0xb8, 0x00, 0x43, // mov ax, 0x4300: extended write
		0xcd, 0x13, // int 0x13
		0x8b, 0x0e, 0x5d, 0x7c, // mov cx, [ticks]
		0xe3, 0xcd, // jcxz again
		0xf4,       // pause: hlt, until the next tick
		0xe2, 0xfd, // loop pause
		0xeb, 0xc8, // jmp again
		0x90,
		// packet: one sector, this one, from 0000:7c00 to sector lba
		0x10, 0, 1, 0, 0x00, 0x7c, 0, 0,
	})
	le := binary.LittleEndian
	if number > 0 {
		le.PutUint32(b[0x4d:], uint32((stampsFrom+s.place(number)*stampApart)/sectorSize))
	}
	le.PutUint32(b[0x55:], number)
	le.PutUint32(b[0x59:], uint32(s.places))
	le.PutUint16(b[0x5d:], uint16(s.ticks))
	// One bootable Linux partition from sector 1 on.
	copy(b[446:], []byte{0x80, 0, 2, 0, 0x83, 0, 3, 0, 1, 0, 0, 0, 0xff, 0x07, 0, 0})
	b[510], b[511] = 0x55, 0xaa
	return b
}

func (s stamper) place(number uint32) int { return int(number-1) % s.places }

// disk is a disk to boot the guest from. All else on it is noise, so that a
// snapshot takes its time.
func (s stamper) disk() []byte {
	b := make([]byte, stampsFrom+s.places*stampApart)
	rand.NewChaCha8([32]byte{1}).Read(b)
	copy(b, s.sector(0))
	return b
}

// launch imports the guest's disk into a home and launches it.
func (s stamper) launch(t *testing.T, h *house, args ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "stamper.raw")
	must(t, os.WriteFile(path, s.disk(), 0o644))
	h.kami(t, "import", path, "--name", "stamper")
	return h.launch(t, "stamper", append([]string{"--wait", "running"}, args...)...)
}

// stamps are the numbers that a raw disk has at its places, 0 where there is none.
// All else has to be as it was at first.
func (s stamper) stamps(t *testing.T, raw string) []uint32 {
	t.Helper()
	f, err := os.Open(raw)
	must(t, err)
	defer f.Close()
	first := s.disk()
	got := make([]byte, len(first))
	if _, err := io.ReadFull(f, got); err != nil {
		t.Fatal(err)
	}
	out := make([]uint32, s.places)
	for i := range out {
		at := stampsFrom + i*stampApart
		b := got[at : at+sectorSize]
		number := binary.LittleEndian.Uint32(b[0x55:])
		if number > 0 && s.place(number) == i && bytes.Equal(b, s.sector(number)) {
			out[i] = number
			copy(b, first[at:])
		}
	}
	if !bytes.Equal(got, first) {
		t.Errorf("%s differs from the first disk outside of what the guest wrote", raw)
	}
	return out
}

// instant is how far the guest was when its disk held those stamps: all numbers
// up to that are written, over what the disk held before (nil for none), and none
// after it. It fails the test where there is no such number.
func (s stamper) instant(t *testing.T, stamps, before []uint32) uint32 {
	t.Helper()
	for _, at := range append(slices.Clone(stamps), 0) {
		want := make([]uint32, s.places)
		copy(want, before)
		for n := at; n > 0 && n+uint32(s.places) > at; n-- {
			want[s.place(n)] = n
		}
		if slices.Equal(stamps, want) {
			return at
		}
	}
	t.Errorf("the disk is of no instant: %v", stamps)
	return 0
}

// seen is the instant that a snapshot of the guest's root is of, as a volume that
// is made from it shows.
func (s stamper) seen(t *testing.T, h *house, snap string, before []uint32) uint32 {
	t.Helper()
	return s.instant(t, s.stamps(t, rawVolume(t, h, snap)), before)
}

// rawVolume makes a volume from a snapshot, has qemu-img write what it reads as,
// and returns that file.
func rawVolume(t *testing.T, h *house, snap string) string {
	t.Helper()
	if got := show[ami.Snapshot](t, h, "snapshot", snap).State; got != ami.SnapshotCompleted {
		t.Fatalf("%s is %s", snap, got)
	}
	vol := h.kami(t, "volume", "create", "--snapshot", snap, "-o", "id")
	defer h.kami(t, "volume", "delete", vol)
	return rawHead(t, h, vol)
}

// rawHead is what a volume's head reads as while no guest runs on it.
func rawHead(t *testing.T, h *house, vol string) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), vol+".raw")
	qemuImg(t, "convert", "-f", "qcow2", "-O", "raw", filepath.Join(h.home, "regions", "local-1", "volumes", vol+".qcow2"), out)
	return out
}

// rootSnapshot is the snapshot of an image's root.
func rootSnapshot(t *testing.T, h *house, image string) string {
	t.Helper()
	return string(imageSnapshot(t, h, image, show[ami.Image](t, h, "image", image).RootDeviceName))
}

func imageSnapshot(t *testing.T, h *house, image, device string) ami.SnapshotID {
	t.Helper()
	for _, m := range show[ami.Image](t, h, "image", image).BlockDeviceMappings {
		if m.DeviceName == device && m.Ebs != nil {
			return m.Ebs.SnapshotID
		}
	}
	t.Fatalf("image %s has no snapshot of %s", image, device)
	return ""
}

// qemuPID is the process of a guest, 0 when there is none.
func qemuPID(id string) int {
	out, _ := exec.Command("pgrep", "-f", "qemu-system.*guest=kami-"+id).Output()
	pid, _ := strconv.Atoi(strings.TrimSpace(string(out)))
	return pid
}
