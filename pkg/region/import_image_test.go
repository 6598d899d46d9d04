package region

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/hypervisor/hypervisortest"
	"github.com/kamivm/kami/pkg/qcow2"
)

// packed writes a disk in another form, under a name that ends so.
func packed(t *testing.T, raw, ending string, wrap func(io.Writer) (io.WriteCloser, error)) string {
	t.Helper()
	b, err := os.ReadFile(raw)
	must(t, err)
	var buf bytes.Buffer
	w, err := wrap(&buf)
	must(t, err)
	_, err = w.Write(b)
	must(t, errors.Join(err, w.Close()))
	path := filepath.Join(t.TempDir(), "disk."+ending)
	must(t, os.WriteFile(path, buf.Bytes(), 0o600))
	return path
}

func asQCOW2(t *testing.T, raw string) string {
	t.Helper()
	in, err := os.Open(raw)
	must(t, err)
	defer in.Close()
	src, err := qcow2.RawSource(in)
	must(t, err)
	out, err := os.Create(filepath.Join(t.TempDir(), "disk.qcow2"))
	must(t, err)
	defer out.Close()
	_, err = qcow2.WriteLayer(t.Context(), out, src, nil, nil, func(int64) {})
	must(t, err)
	return out.Name()
}

func asOVA(t *testing.T, raw string) string {
	t.Helper()
	b, err := os.ReadFile(raw)
	must(t, err)
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for name, body := range map[string][]byte{"box.img": b, "box.ovf": []byte("<Envelope/>")} {
		must(t, w.WriteHeader(&tar.Header{Name: name, Mode: 0o600, Size: int64(len(body))}))
		_, err := w.Write(body)
		must(t, err)
	}
	must(t, w.Close())
	path := filepath.Join(t.TempDir(), "box.ova")
	must(t, os.WriteFile(path, buf.Bytes(), 0o600))
	return path
}

func TestImportFormats(t *testing.T) {
	t.Parallel()
	r, d := open(t)
	raw := rawDisk(t, "formats")
	gz := func(w io.Writer) (io.WriteCloser, error) { return gzip.NewWriter(w), nil }
	tests := []struct {
		name, source, format string
	}{
		{"raw", raw, ""},
		{"raw as was said", raw, "raw"},
		{"qcow2", asQCOW2(t, raw), ""},
		{"qcow2 as was said", asQCOW2(t, raw), "QCOW2"},
		{"raw in gzip", packed(t, raw, "raw.gz", gz), ""},
		{"qcow2 in gzip", packed(t, asQCOW2(t, raw), "qcow2.gz", gz), "qcow2"},
		{"raw in xz", packed(t, raw, "img.xz", func(w io.Writer) (io.WriteCloser, error) { return xz.NewWriter(w) }), ""},
		{"raw in zstd", packed(t, raw, "img.zst", func(w io.Writer) (io.WriteCloser, error) { return zstd.NewWriter(w) }), ""},
		{"an archive", asOVA(t, raw), ""},
		{"a file URL", "file://" + raw, ""},
	}
	var first ami.Snapshot
	for i, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := r.ImportImage(t.Context(), ImportInput{
				Source: tt.source, Format: tt.format, Name: fmt.Sprintf("format-%d", i), Description: "a disk", Tags: []ami.Tag{{Key: "k", Value: "v"}},
			})
			must(t, err)
			snap := get(r.snapshot(t.Context(), rootSnapshot(got)))(t)
			if i == 0 {
				first = snap
			}
			if snap.ContentDigest != first.ContentDigest || snap.Layer != first.Layer {
				t.Errorf("got the content %s in the layer %s, want %s in %s", snap.ContentDigest, snap.Layer, first.ContentDigest, first.Layer)
			}
			size, del := int64(1), true
			want := ami.Image{
				ImageID: got.ImageID, Name: fmt.Sprintf("format-%d", i), Description: "a disk", OwnerID: ami.DefaultAccount,
				State: ami.ImageAvailable, CreationDate: got.CreationDate, Architecture: ami.ArchX8664, VirtualizationType: "hvm",
				Hypervisor: "kvm", ImageType: "machine", RootDeviceType: "ebs", RootDeviceName: "/dev/sda1", BootMode: ami.BootLegacyBIOS,
				BlockDeviceMappings: []ami.BlockDeviceMapping{{DeviceName: "/dev/sda1", Ebs: &ami.EBSBlockDevice{
					SnapshotID: snap.SnapshotID, VolumeSize: &size, DeleteOnTermination: &del, VolumeType: "gp3",
				}}},
				PlatformDetails: "Linux/UNIX", UsageOperation: ami.LinuxUsage, ImageLocation: ami.DefaultAccount + "/" + got.Name, Tags: []ami.Tag{{Key: "k", Value: "v"}}, Consistency: ami.ConsistencyStopped,
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("image (-want +got):\n%s", diff)
			}
			if snap.State != ami.SnapshotCompleted || snap.SizeBytes != 2<<20 || snap.VolumeSize != 1 || snap.Progress != "100%" {
				t.Errorf("got the snapshot %+v, want it completed, of 2 MiB in 1 GiB", snap)
			}
		})
	}
	if got := look(t, r, d); len(got.Layers) != 1 || len(got.Leases) != 0 || len(got.Files) != 0 {
		t.Errorf("got the layers %v, leases %v and files %v; want one layer", got.Layers, got.Leases, got.Files)
	}
}

func TestImportNamesOfFiles(t *testing.T) {
	t.Parallel()
	tests := []struct{ source, want string }{
		{"/tmp/debian-12.qcow2", "debian-12"},
		{"disk.raw.xz", "disk"},
		{"https://example.org/a/b/box.img.zst?token=1", "box"},
		{"box.OVA", "box"},
		{"v1.2", "v1.2"},
	}
	for _, tt := range tests {
		if got := nameOfFile(tt.source); got != tt.want {
			t.Errorf("nameOfFile(%q) = %q, want %q", tt.source, got, tt.want)
		}
	}
}

// uefiDisk has an EFI system partition with a boot loader, and boot code before
// it if bios says so.
func uefiDisk(t *testing.T, loader string, bios bool) string {
	t.Helper()
	b := make([]byte, 3<<20)
	if bios {
		copy(b, hypervisortest.BootSector("both"))
	}
	b[510], b[511] = 0x55, 0xaa
	copy(b[446:], []byte{0, 0, 0, 0, 0xef, 0, 0, 0, 0, 0x08, 0, 0, 0, 0x08, 0, 0})
	copy(b[1<<20+4096:], loader+"\x20")
	return diskOf(t, b, int64(len(b)))
}

func TestImportBootMode(t *testing.T) {
	t.Parallel()
	nothing := diskOf(t, append(make([]byte, 510), 0x55, 0xaa), 1<<20)
	tests := []struct {
		name     string
		source   string
		mode     ami.BootMode
		arch     ami.Architecture
		wantMode ami.BootMode
		wantArch ami.Architecture
	}{
		{"BIOS is found", rawDisk(t, "bios"), "", "", ami.BootLegacyBIOS, ami.ArchX8664},
		{"UEFI is found", uefiDisk(t, "BOOTX64 EFI", false), "", "", ami.BootUEFI, ami.ArchX8664},
		{"arm64 is found", uefiDisk(t, "BOOTAA64EFI", false), "", "", ami.BootUEFI, ami.ArchARM64},
		{"both are found", uefiDisk(t, "BOOTX64 EFI", true), "", "", ami.BootUEFIPreferred, ami.ArchX8664},
		{"nothing is found", nothing, "", "", "", ami.ArchX8664},
		{"the mode is said", rawDisk(t, "said"), ami.BootUEFI, "", ami.BootUEFI, ami.ArchX8664},
		{"both are said", nothing, ami.BootUEFI, ami.ArchARM64, ami.BootUEFI, ami.ArchARM64},
	}
	for i, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l := &listener{}
			r, _ := open(t, tellingTo(l))
			got, err := r.ImportImage(t.Context(), ImportInput{
				Source: tt.source, Name: fmt.Sprintf("boot-%d", i), BootMode: tt.mode, Architecture: tt.arch,
			})
			must(t, err)
			if got.BootMode != tt.wantMode || got.Architecture != tt.wantArch {
				t.Errorf("got %q on %s, want %q on %s", got.BootMode, got.Architecture, tt.wantMode, tt.wantArch)
			}
			if got, want := l.noted("no boot loader was found"), tt.source == nothing; got != want {
				t.Errorf("it was noted that no boot loader was found: %v, want %v", got, want)
			}
		})
	}
}

func TestImportChecksums(t *testing.T) {
	t.Parallel()
	path := rawDisk(t, "sums")
	b, err := os.ReadFile(path)
	must(t, err)
	sum, sum5 := fmt.Sprintf("%x", sha256.Sum256(b)), fmt.Sprintf("%x", sha512.Sum512(b))
	wrong, wrong5 := strings.Repeat("0", 64), strings.Repeat("0", 128)
	list := func(text string) string {
		p := filepath.Join(t.TempDir(), "SUMS")
		must(t, os.WriteFile(p, []byte(text), 0o600))
		return p
	}
	tests := []struct {
		name string
		in   ImportInput
		says string // "" where it is taken
	}{
		{"SHA-256", ImportInput{SHA256: sum}, ""},
		{"in capitals", ImportInput{SHA256: strings.ToUpper(sum)}, ""},
		{"both", ImportInput{SHA256: sum, SHA512: sum5}, ""},
		{"as sha256sum writes it", ImportInput{ChecksumFile: list("junk\n" + wrong + "  other\n" + sum + "  disk.raw\n")}, ""},
		{"as sha256sum --tag writes it", ImportInput{ChecksumFile: list("SHA256 (disk.raw) = " + sum + "\n")}, ""},
		{"in binary mode", ImportInput{ChecksumFile: list(sum5 + " *./dir/disk.raw\n")}, ""},
		{"wrong SHA-256", ImportInput{SHA256: wrong}, "has the digest " + sum},
		{"one of two wrong", ImportInput{SHA256: sum, SHA512: wrong5}, "has the digest " + sum5},
		{"wrong in a list", ImportInput{ChecksumFile: list(wrong + "  disk.raw\n")}, "has the digest"},
		{"not in the list", ImportInput{ChecksumFile: list(sum + "  disk.raw.old\n")}, `of "disk.raw"`},
		{"no list", ImportInput{ChecksumFile: filepath.Join(t.TempDir(), "none")}, "cannot be read"},
		{"too short", ImportInput{SHA256: sum[:62]}, "64 hexadecimal digits"},
		{"no digits", ImportInput{SHA512: strings.Repeat("x", 128)}, "128 hexadecimal digits"},
	}
	for i, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r, d := open(t)
			tt.in.Source, tt.in.Name = path, fmt.Sprintf("sums-%d", i)
			before := look(t, r, d)
			_, err := r.ImportImage(t.Context(), tt.in)
			if tt.says == "" {
				must(t, err)
				return
			}
			wantCode(t, err, ami.CodeInvalidParameterValue)
			wantSays(t, err, tt.says)
			if diff := cmp.Diff(before, look(t, r, d)); diff != "" {
				t.Errorf("it left something (-before +after):\n%s", diff)
			}
		})
	}
}

func TestImportRefuses(t *testing.T) {
	t.Parallel()
	r, d := open(t)
	image(t, r, "used")
	overlay := filepath.Join(t.TempDir(), "overlay.qcow2")
	must(t, qcow2.CreateHead(overlay, 1<<20, "/etc/shadow", "", nil))
	text := filepath.Join(t.TempDir(), "notes.txt")
	must(t, os.WriteFile(text, []byte("no disk at all\n"), 0o600))
	cut := asQCOW2(t, rawDisk(t, "cut"))
	must(t, os.Truncate(cut, 512))
	none := filepath.Join(t.TempDir(), "none.raw")
	tests := []struct {
		name string
		in   ImportInput
		code ami.Code
		says string
	}{
		// The first ones are found before the source is looked for.
		{"a name in use", ImportInput{Source: none, Name: "used"}, ami.CodeInvalidAMINameDuplicate, "is already in use by AMI ami-"},
		{"a bad name", ImportInput{Source: none, Name: "a:b"}, ami.CodeInvalidAMINameMalformed, ""},
		{"a long description", ImportInput{Source: none, Name: "new", Description: strings.Repeat("x", 256)}, ami.CodeInvalidParameterValue, "256"},
		{"a reserved tag", ImportInput{Source: none, Name: "new", Tags: []ami.Tag{{Key: "aws:x"}}}, ami.CodeInvalidTagKeyMalformed, ""},
		{"an unknown format", ImportInput{Source: none, Name: "new", Format: "iso"}, ami.CodeInvalidParameterValue, "iso"},
		{"an unknown boot mode", ImportInput{Source: none, Name: "new", BootMode: "bios"}, ami.CodeInvalidParameterValue, "bios"},
		{"an unknown architecture", ImportInput{Source: none, Name: "new", Architecture: "sparc"}, ami.CodeInvalidParameterValue, "sparc"},
		{"no file", ImportInput{Source: none, Name: "new"}, ami.CodeInvalidParameterValue, "cannot be read"},
		{"a folder", ImportInput{Source: t.TempDir(), Name: "new"}, ami.CodeInvalidParameterValue, "not a regular file"},
		{"text", ImportInput{Source: text, Name: "new"}, ami.CodeInvalidParameterValue, "looks like text"},
		{"another format than was said", ImportInput{Source: rawDisk(t, "x"), Name: "new", Format: "qcow2"}, ami.CodeInvalidParameterValue, "was said to be qcow2"},
		{"a disk over another file", ImportInput{Source: overlay, Name: "new"}, ami.CodeInvalidParameterValue, "/etc/shadow"},
		{"a disk that is cut off", ImportInput{Source: cut, Name: "new"}, ami.CodeInvalidParameterValue, "cut off"},
	}
	before := look(t, r, d)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := r.ImportImage(t.Context(), tt.in)
			wantCode(t, err, tt.code)
			wantSays(t, err, tt.says)
			if diff := cmp.Diff(before, look(t, r, d)); diff != "" {
				t.Errorf("it left something (-before +after):\n%s", diff)
			}
		})
	}
	if _, err := r.ImportImage(t.Context(), ImportInput{Source: text, Name: "said so", Format: "raw"}); err != nil {
		t.Errorf("text that was said to be a disk: got %v, want no error", err)
	}
}

// A command that is interrupted tidies up behind itself.
func TestImportInterrupted(t *testing.T) {
	t.Parallel()
	for _, at := range []string{"reading", "writing"} {
		t.Run(at, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			l := &listener{onStep: func(name string) {
				if strings.HasPrefix(name, at) {
					cancel()
				}
			}}
			r, d := open(t, tellingTo(l))
			before := look(t, r, d)
			if _, err := r.ImportImage(ctx, ImportInput{Source: rawDisk(t, "x"), Name: "new"}); !errors.Is(err, context.Canceled) {
				t.Errorf("got %v, want context.Canceled", err)
			}
			if !slices.ContainsFunc(l.steps, func(s string) bool { return strings.HasPrefix(s, at) }) {
				t.Errorf("got the steps %q, want one of %s", l.steps, at)
			}
			if diff := cmp.Diff(before, look(t, r, d)); diff != "" {
				t.Errorf("it left something (-before +after):\n%s", diff)
			}
		})
	}
}
