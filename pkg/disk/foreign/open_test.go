package foreign

import (
	"bytes"
	"errors"
	"io"
	"math/rand"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// tool runs a program in dir; what it makes is judged here.
func tool(t testing.TB, dir, name string, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
}

// content is a disk of 2 MiB with a partition table's mark, text, noise and
// holes.
func content() []byte {
	b := make([]byte, 2<<20)
	rng := rand.New(rand.NewSource(1))
	rng.Read(b[512<<10 : 700_000])
	copy(b[1<<20:], strings.Repeat("kami ", 50_000))
	rng.Read(b[len(b)-100_000:])
	b[510], b[511] = 0x55, 0xaa
	return b
}

// workshop is a folder with that disk as disk.raw.
func workshop(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	put(t, dir, "disk.raw", content())
	return dir
}

func put(t testing.TB, dir, name string, b []byte) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func get(t testing.TB, dir, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// open opens a file's disks for the time of the test.
func open(t testing.TB, path string, format Format) (*Disks, error) {
	t.Helper()
	disks, err := Open(t.Context(), path, format, t.TempDir(), noStep())
	if err == nil {
		t.Cleanup(func() { disks.Close() })
	}
	return disks, err
}

// read opens a file's only disk and returns all of its bytes.
func read(t testing.TB, path string, format Format) ([]byte, error) {
	t.Helper()
	disks, err := open(t, path, format)
	if err != nil {
		return nil, err
	}
	if len(disks.Disks) != 1 {
		t.Errorf("%s has %d disks, want 1", filepath.Base(path), len(disks.Disks))
	}
	return all(disks.Disks[0])
}

func all(d Disk) ([]byte, error) { return io.ReadAll(io.NewSectionReader(d, 0, d.Size())) }

// forms are files that hold the same disk, and how others make them of disk.raw.
var forms = []struct {
	name   string
	format Format
	make   [][]string // commands
}{
	{"disk.raw", Raw, nil},
	{"plain.qcow2", QCOW2, [][]string{{"qemu-img", "convert", "-O", "qcow2", "disk.raw", "plain.qcow2"}}},
	{"old.qcow2", QCOW2, [][]string{{"qemu-img", "convert", "-O", "qcow2", "-o", "compat=0.10", "disk.raw", "old.qcow2"}}},
	{"zlib.qcow2", QCOW2, [][]string{{"qemu-img", "convert", "-c", "-O", "qcow2", "disk.raw", "zlib.qcow2"}}},
	{"zstd.qcow2", QCOW2, [][]string{{"qemu-img", "convert", "-c", "-O", "qcow2", "-o", "compression_type=zstd", "disk.raw", "zstd.qcow2"}}},
	{"sparse.vmdk", VMDK, [][]string{{"qemu-img", "convert", "-O", "vmdk", "disk.raw", "sparse.vmdk"}}},
	{"stream.vmdk", VMDK, [][]string{{"qemu-img", "convert", "-O", "vmdk", "-o", "subformat=streamOptimized", "disk.raw", "stream.vmdk"}}},
	{"dynamic.vhd", VHD, [][]string{{"qemu-img", "convert", "-O", "vpc", "-o", "force_size=on", "disk.raw", "dynamic.vhd"}}},
	{"fixed.vhd", VHD, [][]string{{"qemu-img", "convert", "-O", "vpc", "-o", "subformat=fixed,force_size=on", "disk.raw", "fixed.vhd"}}},
	{"disk.vhdx", VHDX, [][]string{{"qemu-img", "convert", "-O", "vhdx", "disk.raw", "disk.vhdx"}}},
	{"fixed.vhdx", VHDX, [][]string{{"qemu-img", "convert", "-O", "vhdx", "-o", "subformat=fixed", "disk.raw", "fixed.vhdx"}}},
	{"vm.ova", OVA, [][]string{
		{"qemu-img", "convert", "-O", "vmdk", "-o", "subformat=streamOptimized", "disk.raw", "vm-disk1.vmdk"},
		{"sh", "-c", "echo '<Envelope/>' >vm.ovf; sha256sum --tag vm.ovf vm-disk1.vmdk >vm.mf; tar --format=ustar -cf vm.ova vm.ovf vm.mf vm-disk1.vmdk"},
	}},
	{"gnu.tar", OVA, [][]string{{"tar", "--format=gnu", "-cf", "gnu.tar", "disk.raw"}}},
	{"sparse.tar", OVA, [][]string{{"sh", "-c", "cp --sparse=always disk.raw s.raw; tar --format=oldgnu -Scf sparse.tar s.raw"}}},
	{"pax.tar", OVA, [][]string{{"sh", "-c", "cp --sparse=always disk.raw s.raw; tar --format=pax -Scf pax.tar s.raw"}}},
}

// wrappings are what any of the forms may come in.
var wrappings = []struct {
	ending string
	format Format
	make   []string
}{
	{".gz", GZ, []string{"gzip", "-1"}},
	{".xz", XZ, []string{"xz", "-0"}},
	{".zst", ZST, []string{"zstd", "-q", "-1"}},
}

func TestEveryFormatReadsTheSame(t *testing.T) {
	dir, want := workshop(t), content()
	expect := func(t *testing.T, name string, format, probed Format) {
		t.Helper()
		f, err := os.Open(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		st, err := f.Stat()
		if err != nil {
			t.Fatal(err)
		}
		if got, err := Probe(f, st.Size()); got != probed || err != nil {
			t.Errorf("Probe says %q, %v; want %q", got, err, probed)
		}
		for _, as := range []Format{Auto, format} {
			got, err := read(t, filepath.Join(dir, name), as)
			if err != nil {
				t.Fatalf("opened as %q: %v", as, err)
			}
			// Some formats round the size up.
			if len(got) < len(want) || !bytes.Equal(got[:len(want)], want) || len(bytes.Trim(got[len(want):], "\x00")) > 0 {
				t.Errorf("opened as %q it reads otherwise: %d bytes, want %d", as, len(got), len(want))
			}
		}
	}
	for _, form := range forms {
		for _, cmd := range form.make {
			tool(t, dir, cmd[0], cmd[1:]...)
		}
		t.Run(form.name, func(t *testing.T) { expect(t, form.name, form.format, form.format) })
		for _, w := range wrappings {
			tool(t, dir, w.make[0], append(w.make[1:], "-k", form.name)...)
			t.Run(form.name+w.ending, func(t *testing.T) { expect(t, form.name+w.ending, form.format, w.format) })
		}
	}
}

// TestRawIsAsSaid: --format raw takes the bytes of a file for what they are.
func TestRawIsAsSaid(t *testing.T) {
	dir := workshop(t)
	tool(t, dir, "qemu-img", "convert", "-O", "qcow2", "disk.raw", "disk.qcow2")
	put(t, dir, "text", []byte("hello"))
	for name, pad := range map[string]int{"disk.qcow2": 0, "text": 507} {
		got, err := read(t, filepath.Join(dir, name), Raw)
		if want := append(get(t, dir, name), make([]byte, pad)...); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s reads as %d bytes, %v; want %d", name, len(got), err, len(want))
		}
	}
}

// TestNamesAreNoProtocols: qemu-img takes what stands before a colon for one.
func TestNamesAreNoProtocols(t *testing.T) {
	dir := workshop(t)
	tool(t, dir, "qemu-img", "convert", "-O", "vmdk", "disk.raw", "a.vmdk")
	tool(t, dir, "mv", "a.vmdk", "nbd:a.vmdk")
	t.Chdir(dir)
	got, err := read(t, "nbd:a.vmdk", Auto)
	if err != nil || !bytes.Equal(got, content()) {
		t.Errorf("it reads otherwise: %d bytes, %v", len(got), err)
	}
}

func TestParseFormat(t *testing.T) {
	for in, want := range map[string]Format{"": Auto, "raw": Raw, "QCOW2": QCOW2, "vmdk": VMDK, "Vhd": VHD, "vhdx": VHDX, "ova": OVA} {
		if got, err := ParseFormat(in); got != want || err != nil {
			t.Errorf("ParseFormat(%q) is %q, %v; want %q", in, got, err, want)
		}
	}
	for _, in := range []string{"gz", "vpc", "raw ", "../raw"} {
		if got, err := ParseFormat(in); !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), in) {
			t.Errorf("ParseFormat(%q) is %q, %v; want %v that says the name", in, got, err, ErrUnsupported)
		}
	}
}
