package foreign

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"
)

// checked are the formats whose headers are looked into.
var checked = []Format{Raw, QCOW2, VMDK, VHD, VHDX}

// headers are the beginnings of sound files, as long as their tables.
func headers(f *testing.F) [][]byte {
	f.Helper()
	dir := workshop(f)
	out := [][]byte{nil, []byte("# Disk DescriptorFile\n"), []byte("\x1f\x8b"), content()[:512]}
	for name, args := range map[string][]string{
		"a.qcow2":  {"-f", "qcow2", "-o", "cluster_size=512"},
		"b.qcow2":  {"-f", "qcow2", "-o", "cluster_size=512", "-u", "-b", "disk.raw", "-F", "raw"},
		"a.vmdk":   {"-f", "vmdk"},
		"flat":     {"-f", "vmdk", "-o", "subformat=monolithicFlat"},
		"a.stream": {"-f", "vmdk", "-o", "subformat=streamOptimized"},
		"a.vhd":    {"-f", "vpc"},
	} {
		tool(f, dir, "qemu-img", append(append([]string{"create"}, args...), name, "64k")...)
		out = append(out, get(f, dir, name))
	}
	return out
}

// FuzzProbe holds that looking falls over nothing, and finds a known format or
// says that this is none.
func FuzzProbe(f *testing.F) {
	for _, b := range headers(f) {
		f.Add(b, int64(len(b)))
	}
	f.Fuzz(func(t *testing.T, b []byte, said int64) {
		r := bytes.NewReader(b)
		got, err := Probe(r, int64(len(b)))
		switch {
		case err != nil && !errors.Is(err, ErrNotADisk):
			t.Errorf("got error %v, want %v", err, ErrNotADisk)
		case err == nil && got == Auto:
			t.Error("neither a format nor an error")
		}
		again, err2 := Probe(r, int64(len(b)))
		if again != got || (err == nil) != (err2 == nil) {
			t.Errorf("the second look says %q, %v; the first %q, %v", again, err2, got, err)
		}
		// A size that is not true is a file that shrank meanwhile.
		if _, err := Probe(r, said); err != nil && !errors.Is(err, ErrNotADisk) && !errors.Is(err, ErrTruncated) {
			t.Errorf("told of %d bytes: got error %v", said, err)
		}
	})
}

// FuzzCheck holds that no header makes the look into it fall over, and that one
// that is taken names nothing.
func FuzzCheck(f *testing.F) {
	for _, b := range headers(f) {
		for i := range checked {
			f.Add(b, uint8(i))
		}
	}
	f.Fuzz(func(t *testing.T, b []byte, which uint8) {
		format := checked[int(which)%len(checked)]
		err := check(bytes.NewReader(b), int64(len(b)), format)
		if err != nil {
			if !errors.Is(err, ErrForeignFile) && !errors.Is(err, ErrTruncated) && !errors.Is(err, ErrUnsupported) && !errors.Is(err, ErrNotADisk) {
				t.Errorf("%s: got error %v, want one of the package's", format, err)
			}
			return
		}
		switch format {
		case QCOW2:
			if binary.BigEndian.Uint64(b[8:]) != 0 && binary.BigEndian.Uint32(b[16:]) != 0 {
				t.Error("qcow2: a backing file is taken")
			}
		case VMDK:
			if text := b[512:min(len(b), 21*512)]; bytes.Contains(text, []byte("parentFileNameHint")) {
				t.Error("vmdk: a parent is taken")
			}
		case VHD:
			for _, foot := range [][]byte{b[:512], b[len(b)-512:]} {
				if string(foot[:8]) == "conectix" && binary.BigEndian.Uint32(foot[60:]) == 4 {
					t.Error("vhd: a parent is taken")
				}
			}
		}
	})
}

// FuzzGrains gives vmdk headers with all that bounds the walk over their grains.
func FuzzGrains(f *testing.F) {
	f.Add(uint64(128), uint64(128), uint32(512), uint64(1), false, []byte{0, 0, 0, 0})
	f.Add(uint64(1)<<41, uint64(8), uint32(1), uint64(0), true, bytes.Repeat([]byte{1, 0, 0, 0}, 500))
	f.Add(uint64(4096), uint64(8), uint32(4), uint64(0), false, bytes.Repeat([]byte{1, 0, 0, 0}, 500))
	f.Fuzz(func(t *testing.T, capacity, grain uint64, perTable uint32, dir uint64, packed bool, b []byte) {
		err := checkGrains(bytes.NewReader(b), int64(len(b)), capacity%(1<<41), grain, perTable, dir, packed)
		if err != nil && !errors.Is(err, ErrTruncated) && !errors.Is(err, ErrUnsupported) {
			t.Errorf("got error %v, want one of the package's", err)
		}
	})
}

// FuzzArchive holds that no archive makes the look over it fall over, and that
// what it finds are members of it.
func FuzzArchive(f *testing.F) {
	f.Add(description("one.img", "a%20b.img", ""), []byte("SHA256(one.img)= 00\nSHA1 (vm.ovf) = 1\n"), "one.img")
	f.Add([]byte("<Envelope/>"), []byte(""), "../one.vmdk")
	f.Add([]byte("<a xmlns='b'><References><File id='' href='.'/></References><DiskSection><Disk fileRef=' '/></DiskSection></a>"), []byte("SHA512()= "), ".gz")
	f.Fuzz(func(t *testing.T, ovf, mf []byte, name string) {
		members := map[string]bool{name: true, "one.img": true}
		var a archive
		if err := a.describe(ovf, members); err != nil {
			if !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrUnsupported) {
				t.Errorf("got error %v, want one of the package's", err)
			}
			return
		}
		for _, d := range a.disks {
			if !members[d] {
				t.Errorf("the disk %q is none of the archive's", d)
			}
		}
		listed, err := sums(mf, members)
		if err != nil && !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrUnsupported) {
			t.Errorf("got error %v, want one of the package's", err)
		}
		for name, s := range listed {
			if !members[name] {
				t.Errorf("a digest of %q is taken, which is none of the archive's", name)
			}
			if s.hash() == nil || s.want == "" {
				t.Errorf("the digest %+v is taken", s)
			}
		}
	})
}
