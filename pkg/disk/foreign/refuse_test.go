package foreign

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const secret = "this stands in a file of the host's"

// edit returns a copy of b with what put over the beginning of old.
func edit(t *testing.T, b []byte, old, what string) []byte {
	t.Helper()
	i := bytes.Index(b, []byte(old))
	if i < 0 || len(what) > len(b)-i {
		t.Fatalf("there is no %q", old)
	}
	out := bytes.Clone(b)
	copy(out[i:], what)
	return out
}

func ova(t *testing.T, members ...tar.Header) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, h := range members {
		body := []byte(h.PAXRecords["KAMI.body"])
		h.PAXRecords = nil
		h.Size, h.Mode = int64(len(body)), 0o644
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// member is a file of an archive.
func member(name string, body []byte) tar.Header {
	return tar.Header{Name: name, Typeflag: tar.TypeReg, PAXRecords: map[string]string{"KAMI.body": string(body)}}
}

// TestForeignFilesAreRefused holds that no disk gets at another file of the
// host, by whatever way its format has of naming one.
func TestForeignFilesAreRefused(t *testing.T) {
	dir := workshop(t)
	put(t, dir, "secret", []byte(secret))
	host := filepath.Join(dir, "secret")
	for _, cmd := range [][]string{
		{"qemu-img", "create", "-f", "qcow2", "-b", host, "-F", "raw", "backing.qcow2", "1M"},
		{"qemu-img", "create", "-f", "qcow2", "-o", "data_file=data.raw", "data.qcow2", "1M"},
		{"qemu-img", "convert", "-O", "vmdk", "disk.raw", "plain.vmdk"},
		{"qemu-img", "create", "-f", "vmdk", "-b", "plain.vmdk", "-F", "vmdk", "over.vmdk"},
		{"qemu-img", "create", "-f", "vmdk", "-o", "subformat=monolithicFlat", "flat.vmdk", "4M"},
		{"qemu-img", "create", "-f", "vmdk", "-o", "subformat=twoGbMaxExtentSparse", "split.vmdk", "4M"},
		{"qemu-img", "convert", "-O", "vpc", "disk.raw", "plain.vhd"},
		{"qemu-img", "convert", "-O", "vhdx", "disk.raw", "plain.vhdx"},
	} {
		tool(t, dir, cmd[0], cmd[1:]...)
	}
	vmdk, flat, vhd, vhdx := get(t, dir, "plain.vmdk"), get(t, dir, "flat.vmdk"), get(t, dir, "plain.vhd"), get(t, dir, "plain.vhdx")
	hint := `parentFileNameHint="` + host + "\"\n"
	// QEMU looks for the hint where the descriptor usually is, whatever the
	// header says; this header leads to another descriptor, which is harmless.
	elsewhere := append(edit(t, vmdk, "# The Disk Data Base", hint), vmdk[512:21*512]...)
	binary.LittleEndian.PutUint64(elsewhere[28:], uint64(len(vmdk)/512))
	flagVHD := func(at int) []byte {
		b := bytes.Clone(vhd)
		binary.BigEndian.PutUint32(b[(at+len(b))%len(b)+60:], 4)
		return b
	}
	flagVHDX := bytes.Clone(vhdx) // the flags of the file parameters lie behind the size of a block
	i := bytes.Index(flagVHDX, []byte{0x37, 0x67, 0xa1, 0xca, 0x36, 0xfa, 0x43, 0x4d})
	table := bytes.LastIndex(flagVHDX[:i], []byte("metadata"))
	flagVHDX[table+int(binary.LittleEndian.Uint32(flagVHDX[i+16:]))+4] |= 2
	for name, b := range map[string][]byte{
		"qcow2 with a backing file":                get(t, dir, "backing.qcow2"),
		"qcow2 with a data file":                   get(t, dir, "data.qcow2"),
		"vmdk with a parent":                       get(t, dir, "over.vmdk"),
		"vmdk with a parent in a comment":          edit(t, vmdk, "# The Disk Data Base", "# "+hint),
		"vmdk with a parent behind other text":     edit(t, vmdk, "# The Disk Data Base", "x "+hint),
		"vmdk with a parent in another descriptor": elsewhere,
		"vmdk with a parent's identifier":          edit(t, vmdk, "parentCID=ffffffff", "parentCID=01234567"),
		"vmdk with a flat extent":                  flat,
		"vmdk with a flat extent of the host":      edit(t, flat, "FLAT", `FLAT "`+host+"\" 0\n"),
		"vmdk with split extents":                  get(t, dir, "split.vmdk"),
		"vmdk with an extent inside that is flat":  edit(t, vmdk, "SPARSE", "FLAT  "),
		"vmdk with an extent in a folder":          edit(t, vmdk, `SPARSE "plain.vmdk"`, `SPARSE "../etc/aa"`),
		"vmdk with two extents":                    edit(t, vmdk, "# The Disk Data Base", "RW 10 SPARSE \"b.vmdk\""),
		"vmdk of version 3":                        append([]byte("COWD"), vmdk[4:]...),
		"vhd with a parent":                        flagVHD(-512),
		"vhd with a parent by its first footer":    flagVHD(0),
		"vhdx with a parent":                       flagVHDX,
	} {
		put(t, dir, "hostile", b)
		put(t, dir, "hostile.ova", ova(t, member("vm.ovf", nil), member("disk.vmdk", b)))
		for _, file := range []string{"hostile", "hostile.ova"} {
			got, err := read(t, filepath.Join(dir, file), Auto)
			if !errors.Is(err, ErrForeignFile) {
				t.Errorf("%s (%s): got error %v, want %v", name, file, err, ErrForeignFile)
			}
			if bytes.Contains(got, []byte(secret)) {
				t.Errorf("%s (%s): a file of the host's was read", name, file)
			}
		}
	}
}

// TestMembersStayInside: nothing is written under a name that an archive gives,
// and links in it lead nowhere.
func TestMembersStayInside(t *testing.T) {
	dir := t.TempDir()
	tmp := filepath.Join(dir, "a", "tmp")
	if err := os.MkdirAll(tmp, 0o700); err != nil {
		t.Fatal(err)
	}
	put(t, dir, "secret.img", content())
	disk := content()
	for name, c := range map[string]struct {
		members []tar.Header
		want    error
	}{
		"climbs out":     {[]tar.Header{member("../../climbed.img", disk)}, nil},
		"is absolute":    {[]tar.Header{member(filepath.Join(dir, "climbed.img"), disk)}, nil},
		"symbolic link":  {[]tar.Header{{Name: "disk.img", Typeflag: tar.TypeSymlink, Linkname: filepath.Join(dir, "secret.img")}}, ErrUnsupported},
		"hard link":      {[]tar.Header{{Name: "disk.img", Typeflag: tar.TypeLink, Linkname: filepath.Join(dir, "secret.img")}}, ErrUnsupported},
		"folder":         {[]tar.Header{{Name: "disk.img/", Typeflag: tar.TypeDir}}, ErrUnsupported},
		"device":         {[]tar.Header{{Name: "disk.img", Typeflag: tar.TypeBlock, Devmajor: 8}}, ErrUnsupported},
		"link, then it":  {[]tar.Header{{Name: "d", Typeflag: tar.TypeSymlink, Linkname: dir}, member("d/climbed.img", disk)}, nil},
		"without a disk": {[]tar.Header{member("vm.ovf", nil), member("notes.txt", disk)}, ErrUnsupported},
	} {
		put(t, dir, "vm.ova", ova(t, c.members...))
		disks, err := Open(t.Context(), filepath.Join(dir, "vm.ova"), Auto, tmp, noStep())
		if !errors.Is(err, c.want) {
			t.Errorf("%s: got error %v, want %v", name, err, c.want)
		}
		if err == nil {
			if got := disks.Disks[0].Size(); got != int64(len(disk)) {
				t.Errorf("%s: %d bytes, want %d", name, got, len(disk))
			}
			disks.Close()
		}
		var names []string
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			names = append(names, e.Name())
		}
		if got, want := strings.Join(names, " "), "a secret.img vm.ova"; got != want {
			t.Fatalf("%s: the folder holds %s, want %s", name, got, want)
		}
	}
}

// TestTruncatedIsRefused cuts every form and wrapping at many places. A disk
// that is cut off must never be read as one that has zeros there.
func TestTruncatedIsRefused(t *testing.T) {
	dir, want := workshop(t), content()
	for _, form := range forms {
		for _, cmd := range form.make {
			tool(t, dir, cmd[0], cmd[1:]...)
		}
		names := []string{form.name}
		if form.format == Raw || form.name == "fixed.vhd" {
			names = nil // nothing in it says how long it is
		}
		for _, w := range wrappings {
			tool(t, dir, w.make[0], append(w.make[1:], "-k", form.name)...)
			names = append(names, form.name+w.ending)
		}
		for _, name := range names {
			whole := get(t, dir, name)
			for _, at := range []int{len(whole) / 4, len(whole) / 2, len(whole) - 150_000, len(whole) - 20_000} {
				if at <= 0 {
					continue
				}
				put(t, dir, "cut", whole[:at])
				got, err := read(t, filepath.Join(dir, "cut"), Auto)
				if err == nil && len(got) >= len(want) && bytes.Equal(got[:len(want)], want) {
					continue // what was cut off held nothing
				}
				if err == nil {
					t.Errorf("%s of %d bytes cut off at %d is read, otherwise than whole", name, len(whole), at)
				}
			}
		}
	}
}

func TestNoDisks(t *testing.T) {
	dir := workshop(t)
	for _, c := range []struct {
		name, data, says string
		format           Format
	}{
		{"empty", "", "it is empty", Auto},
		{"empty, said to be raw", "", "it is empty", Raw},
		{"text", "Dear reader,\n\tthis is no disk.\n", "it looks like text", Auto},
		{"a web page", "\n<!DOCTYPE html><title>404</title>", "it looks like a web page", Auto},
		{"a PDF", "%PDF-1.7\n\x00", "it looks like a PDF", Auto},
		{"a program", "\x7fELF\x02\x01", "it looks like a program", Auto},
		{"a zip archive", "PK\x03\x04\x14\x00", "it looks like a zip archive", Auto},
		{"zeros, then something", strings.Repeat("\x00", 1<<20) + "x", "it has no partition table and no file system", Auto},
		{"zeros said to be qcow2", strings.Repeat("\x00", 1<<20), "it has no partition table and no file system", QCOW2},
		{"said to be qcow2", string(content()), "it was said to be qcow2 and is raw", QCOW2},
		{"said to be vmdk", string(content()), "it was said to be vmdk and is raw", VMDK},
	} {
		put(t, dir, "file", []byte(c.data))
		_, err := read(t, filepath.Join(dir, "file"), c.format)
		if !errors.Is(err, ErrNotADisk) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: got error %v, want %v: %s", c.name, err, ErrNotADisk, c.says)
		}
	}
	for range maxWrappings + 1 {
		tool(t, dir, "gzip", "-f", "disk.raw")
		tool(t, dir, "mv", "disk.raw.gz", "disk.raw")
	}
	if _, err := read(t, filepath.Join(dir, "disk.raw"), Auto); !errors.Is(err, ErrUnsupported) {
		t.Errorf("many wrappings: got error %v, want %v", err, ErrUnsupported)
	}
}
