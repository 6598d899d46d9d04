package foreign

import (
	"archive/tar"
	"bytes"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// disk is a small raw disk that tells itself from others.
func disk(mark string) []byte {
	b := make([]byte, 64<<10)
	copy(b[512:], mark)
	b[510], b[511] = 0x55, 0xaa
	return b
}

// description is an OVF that names files for disks, in order; an empty name is
// of an empty disk.
func description(files ...string) []byte {
	var refs, disks strings.Builder
	for i, name := range files {
		ref := ""
		if name != "" {
			fmt.Fprintf(&refs, "<File ovf:href=%q ovf:id=\"file%d\" ovf:size=\"65536\"/>", name, i)
			ref = fmt.Sprintf("ovf:fileRef=\"file%d\"", i)
		}
		fmt.Fprintf(&disks, "<Disk ovf:capacity=\"1\" ovf:diskId=\"disk%d\" %s/>", i, ref)
	}
	return []byte(`<?xml version="1.0" encoding="US-ASCII"?><Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1">` +
		"<References>" + refs.String() + "</References><DiskSection><Info/>" + disks.String() + "</DiskSection></Envelope>")
}

// TestDisksOfAnArchive: all of them, in the order of the description, or of the
// archive where it has none.
func TestDisksOfAnArchive(t *testing.T) {
	dir := t.TempDir()
	one, two, iso := member("one.img", disk("one")), member("two.img", disk("two")), member("cd.iso", disk("cd"))
	put(t, dir, "stream.raw", disk("stream"))
	tool(t, dir, "qemu-img", "convert", "-O", "vmdk", "-o", "subformat=streamOptimized", "stream.raw", "stream.vmdk")
	tool(t, dir, "gzip", "-k", "stream.vmdk")
	for name, c := range map[string]struct {
		members     []tar.Header
		want, empty []string // what the disks begin with, and their names
	}{
		"no description":      {[]tar.Header{two, iso, one, member("._one.img", []byte("finder"))}, []string{"two", "one"}, nil},
		"it names none":       {[]tar.Header{two, member("vm.ovf", []byte("<Envelope/>")), one}, []string{"two", "one"}, nil},
		"its order":           {[]tar.Header{member("vm.ovf", description("one.img", "two.img")), two, one}, []string{"one", "two"}, nil},
		"only what it names":  {[]tar.Header{one, two, iso, member("vm.ovf", description("two.img"))}, []string{"two"}, nil},
		"any ending":          {[]tar.Header{iso, member("vm.ovf", description("cd.iso"))}, []string{"cd"}, nil},
		"a folder's":          {[]tar.Header{member("./vm.ovf", description("one.img")), member("./one.img", disk("one"))}, []string{"one"}, nil},
		"an escaped name":     {[]tar.Header{member("vm.ovf", description("a%20b.img")), member("a b.img", disk("a b"))}, []string{"a b"}, nil},
		"a name as it is":     {[]tar.Header{member("vm.ovf", description("a%20b.img")), member("a%20b.img", disk("a b"))}, []string{"a b"}, nil},
		"an empty disk":       {[]tar.Header{member("vm.ovf", description("one.img", "", "two.img")), one, two}, []string{"one", "two"}, []string{"disk1"}},
		"forms of their own":  {[]tar.Header{member("vm.ovf", description("s.vmdk", "one.img")), one, member("s.vmdk", get(t, dir, "stream.vmdk"))}, []string{"stream", "one"}, nil},
		"compressed in it":    {[]tar.Header{member("vm.ovf", description("s", "one.img")), one, member("s", get(t, dir, "stream.vmdk.gz"))}, []string{"stream", "one"}, nil},
		"an archive in it":    {[]tar.Header{member("vm.ovf", description("in.ova", "one.img")), one, member("in.ova", ova(t, two, member("three.img", disk("three"))))}, []string{"two", "three", "one"}, nil},
		"a blank one, behind": {[]tar.Header{one, member("zero.img", make([]byte, 64<<10))}, []string{"one", ""}, nil},
	} {
		put(t, dir, "vm.ova", ova(t, c.members...))
		for _, format := range []Format{Auto, OVA} {
			tmp := t.TempDir()
			disks, err := Open(t.Context(), filepath.Join(dir, "vm.ova"), format, tmp, noStep())
			if err != nil {
				t.Errorf("%s, as %q: %v", name, format, err)
				continue
			}
			var got []string
			for _, d := range disks.Disks {
				mark := make([]byte, 512)
				if _, err := d.ReadAt(mark, 512); err != nil {
					t.Error(err)
				}
				got = append(got, string(bytes.Trim(mark, "\x00")))
			}
			if !slices.Equal(got, c.want) || !slices.Equal(disks.Empty, c.empty) || disks.Blank {
				t.Errorf("%s, as %q: got the disks %q and the empty ones %q, want %q and %q", name, format, got, disks.Empty, c.want, c.empty)
			}
			if err := disks.Close(); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			// What was only on the way is gone.
			if left, _ := filepath.Glob(filepath.Join(tmp, "*")); len(left) != len(c.want) {
				t.Errorf("%s: %d files are left for %d disks", name, len(left), len(c.want))
			}
		}
	}
}

// TestArchivesThatAreRefused, and what is said of them.
func TestArchivesThatAreRefused(t *testing.T) {
	dir := t.TempDir()
	one := member("one.img", disk("one"))
	var many []tar.Header
	var names []string
	for i := range maxDisks + 1 {
		names = append(names, fmt.Sprintf("%d.img", i))
		many = append(many, member(names[i], disk("x")))
	}
	half := ova(t, many[:maxDisks/2+1]...)
	var crowd []tar.Header
	for i := range maxMembers + 1 {
		crowd = append(crowd, member(fmt.Sprint(i), nil))
	}
	chunked := bytes.ReplaceAll(description("one.img"), []byte("ovf:size"), []byte(`ovf:chunkSize="65536" ovf:size`))
	over := bytes.ReplaceAll(description("one.img"), []byte("ovf:fileRef"), []byte(`ovf:parentRef="x" ovf:fileRef`))
	for name, c := range map[string]struct {
		members []tar.Header
		want    error
		says    string
	}{
		"a disk that is not there":    {[]tar.Header{one, member("vm.ovf", description("one.img", "two.img"))}, ErrDamaged, `"two.img", which its description names for the disk "disk1"`},
		"a disk elsewhere":            {[]tar.Header{one, member("vm.ovf", description("http://example.com/a.vmdk"))}, ErrDamaged, "is not in the archive"},
		"a disk of the host":          {[]tar.Header{one, member("vm.ovf", description("/etc/passwd"))}, ErrDamaged, "is not in the archive"},
		"a reference to nothing":      {[]tar.Header{one, member("vm.ovf", bytes.ReplaceAll(description("one.img"), []byte("fileRef=\"file0"), []byte("fileRef=\"x")))}, ErrDamaged, "disk0"},
		"a description that is none":  {[]tar.Header{one, member("vm.ovf", []byte("<Envelope>"))}, ErrDamaged, "its description"},
		"a long description":          {[]tar.Header{one, member("vm.ovf", make([]byte, maxText+1))}, ErrUnsupported, `"vm.ovf" has more than`},
		"a long manifest":             {[]tar.Header{one, member("vm.mf", make([]byte, maxText+1))}, ErrUnsupported, `"vm.mf" has more than`},
		"a disk over another":         {[]tar.Header{one, member("vm.ovf", over)}, ErrUnsupported, "stands on another"},
		"one file for two disks":      {[]tar.Header{one, member("vm.ovf", description("one.img", "one.img"))}, ErrUnsupported, "two disks"},
		"two members of one name":     {[]tar.Header{one, member("./one.img", disk("other"))}, ErrUnsupported, `two members "one.img"`},
		"only empty disks":            {[]tar.Header{member("vm.ovf", description("", ""))}, ErrUnsupported, "without a disk"},
		"no disk":                     {[]tar.Header{member("notes.txt", []byte("hello"))}, ErrUnsupported, "without a disk"},
		"a disk in pieces":            {[]tar.Header{member("one.img.000000000", disk("one")), member("vm.ovf", chunked)}, ErrUnsupported, "make the archive anew without chunkSize"},
		"many disks":                  {many, ErrUnsupported, "17 disks"},
		"many disks that it names":    {append(many, member("vm.ovf", description(names...))), ErrUnsupported, "17 disks"},
		"many disks, in two archives": {[]tar.Header{member("a.img", half), member("b.img", half)}, ErrUnsupported, "more than 16 disks"},
		"many members":                {crowd, ErrUnsupported, "1000 members"},
		"text behind a disk":          {[]tar.Header{one, member("two.img", []byte("hello"))}, ErrUnsupported, `"two.img": this is not a disk`},
	} {
		put(t, dir, "vm.ova", ova(t, c.members...))
		_, err := open(t, filepath.Join(dir, "vm.ova"), Auto)
		if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: got error %v, want %v: %s", name, err, c.want, c.says)
		}
	}
}

// TestManifest: each digest of a manifest is held against its member, wherever
// the manifest stands.
func TestManifest(t *testing.T) {
	dir := t.TempDir()
	b, ovf := disk("one"), description("one.img")
	s1, s256, s512 := fmt.Sprintf("%x", sha1.Sum(b)), fmt.Sprintf("%x", sha256.Sum256(b)), fmt.Sprintf("%x", sha512.Sum512(b))
	other := strings.Repeat("0", 64)
	for name, c := range map[string]struct{ manifest, says string }{
		"SHA-1":                       {"SHA1(one.img)= " + s1 + "\n", ""},
		"SHA-256":                     {"SHA256(one.img)= " + s256 + "\n", ""},
		"SHA-512":                     {"SHA512(one.img)= " + s512 + "\n", ""},
		"as ovftool writes it":        {"SHA256(vm.ovf)= " + fmt.Sprintf("%x", sha256.Sum256(ovf)) + "\r\nSHA256(one.img)= " + s256 + "\r\n", ""},
		"as openssl and sha1sum do":   {"SHA1 (one.img) = " + strings.ToUpper(s1), ""},
		"of a file that is not there": {"SHA256(notes.txt)= " + other + "\n", `"notes.txt", which its manifest lists, is not in the archive`},
		"twice":                       {"SHA256(one.img)= " + s256 + "\nSHA1(./one.img)= " + s1 + "\n", `its manifest lists "one.img" twice`},
		"wrong SHA-1":                 {"SHA1(one.img)= " + other[:40], `"one.img" has the SHA-1 ` + s1 + ", and " + other[:40]},
		"wrong SHA-256":               {"SHA256(one.img)= " + other, `"one.img" has the SHA-256 ` + s256},
		"wrong SHA-512":               {"SHA512(./one.img)= " + other + other, `"one.img" has the SHA-512 ` + s512},
		"of another length":           {"SHA256(one.img)= " + s256[:62], `"one.img" has the SHA-256`},
		"of the description":          {"SHA256(one.img)= " + s256 + "\nSHA256(vm.ovf)= " + other, `"vm.ovf" has the SHA-256`},
		"of what is no disk":          {"SHA256(cd.iso)= " + other, `"cd.iso" has the SHA-256`},
	} {
		mf, rest := member("vm.mf", []byte(c.manifest)), []tar.Header{member("vm.ovf", ovf), member("one.img", b), member("cd.iso", []byte("cd"))}
		for where, members := range map[string][]tar.Header{"before": append([]tar.Header{mf}, rest...), "behind": append(slices.Clone(rest), mf)} {
			put(t, dir, "vm.ova", ova(t, members...))
			_, err := open(t, filepath.Join(dir, "vm.ova"), Auto)
			if c.says == "" && err != nil || c.says != "" && (!errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), c.says)) {
				t.Errorf("%s, %s: got error %v, want one that says %q", name, where, err, c.says)
			}
		}
	}
}

// TestManifestOfOtherKinds: a line that cannot be checked is not passed over.
func TestManifestOfOtherKinds(t *testing.T) {
	dir := t.TempDir()
	for _, line := range []string{"MD5(one.img)= 00", "SHA384(one.img)= 00", "SHA3-256(one.img)= 00", "hello"} {
		put(t, dir, "vm.ova", ova(t, member("one.img", disk("one")), member("vm.mf", []byte("\n"+line+"\r\n"))))
		_, err := open(t, filepath.Join(dir, "vm.ova"), Auto)
		if !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), fmt.Sprintf("line %q", line)) {
			t.Errorf("%s: got error %v, want %v that names the line", line, err, ErrUnsupported)
		}
	}
}

// TestDisksOfHoles: a disk that is little but holes is taken up to a bound, and
// refused at once beyond it.
func TestDisksOfHoles(t *testing.T) {
	dir := t.TempDir()
	for size, want := range map[string]error{"1G": nil, "7T": ErrUnsupported} {
		put(t, dir, "one.img", disk("one"))
		tool(t, dir, "truncate", "-s", size, "one.img")
		for _, format := range []string{"oldgnu", "posix"} {
			tool(t, dir, "tar", "--format="+format, "-Scf", "vm.ova", "one.img")
			_, err := open(t, filepath.Join(dir, "vm.ova"), Auto)
			if !errors.Is(err, want) || err != nil && !strings.Contains(err.Error(), "one.img") {
				t.Errorf("%s, %s: got error %v, want %v", size, format, err, want)
			}
		}
	}
}

// TestHolesWithoutEnd: a member that is nothing but a hole is not read for its
// digest.
func TestHolesWithoutEnd(t *testing.T) {
	dir := t.TempDir()
	put(t, dir, "one.img", disk("one"))
	if err := os.Truncate(filepath.Join(dir, "one.img"), 64<<10); err != nil {
		t.Fatal(err)
	}
	tool(t, dir, "truncate", "-s", "8T", "cd.iso")
	put(t, dir, "vm.mf", []byte("SHA256(cd.iso)= 00\n"))
	tool(t, dir, "tar", "--format=oldgnu", "-Scf", "vm.ova", "one.img", "cd.iso", "vm.mf")
	_, err := open(t, filepath.Join(dir, "vm.ova"), Auto)
	if !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), "cd.iso") {
		t.Errorf("got error %v, want %v that names cd.iso", err, ErrUnsupported)
	}
}

// TestBlank: of any format the same is said.
func TestBlank(t *testing.T) {
	dir := t.TempDir()
	put(t, dir, "written.raw", make([]byte, 3<<20))
	tool(t, dir, "truncate", "-s", "8T", "hole.raw")
	for _, cmd := range []string{
		"qemu-img create -f qcow2 a.qcow2 3M", "qemu-img convert -S 0 -O qcow2 written.raw written.qcow2",
		"qemu-img create -f vmdk a.vmdk 3M", "qemu-img create -f vhdx a.vhdx 3M", "qemu-img create -f vpc a.vhd 3M", "gzip -k written.raw",
		"tar -cf a.tar written.raw",
	} {
		words := strings.Fields(cmd)
		tool(t, dir, words[0], words[1:]...)
	}
	late := make([]byte, 3<<20)
	late[len(late)-1] = 1
	put(t, dir, "late.raw", late)
	tool(t, dir, "qemu-img", "convert", "-O", "qcow2", "late.raw", "late.qcow2")
	for name, want := range map[string]bool{
		"written.raw": true, "hole.raw": true, "a.qcow2": true, "written.qcow2": true, "a.vmdk": true, "a.vhdx": true, "a.vhd": true,
		"written.raw.gz": true, "a.tar": true, "late.qcow2": false,
	} {
		disks, err := open(t, filepath.Join(dir, name), Auto)
		if err != nil || disks.Blank != want {
			t.Errorf("%s: got %+v, %v; want it blank: %v", name, disks, err, want)
		}
	}
	if disks, err := open(t, filepath.Join(dir, "late.raw"), Raw); err != nil || disks.Blank {
		t.Errorf("late.raw, said to be raw: got %+v, %v; want it not blank", disks, err)
	}
}
