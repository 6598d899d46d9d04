package e2e

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kamivm/kami/pkg/ami"
)

// importSector imports the boot sector into another home.
func importSector(t *testing.T, h *house) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "sector.raw")
	if err := os.WriteFile(path, bootSector(), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, sectorDisk); err != nil {
		t.Fatal(err)
	}
	return h.kami(t, "import", path, "--name", "sector", "-o", "id")
}

func TestUnknownAndMalformed(t *testing.T) {
	parallel(t)
	tests := []struct {
		code ami.Code
		args string
	}{
		{ami.CodeInvalidAMIIDNotFound, "image show ami-0123456789abcdef0"},
		{ami.CodeInvalidAMIIDMalformed, "image show ami-xyz"},
		{ami.CodeInvalidAMIIDNotFound, "launch ami-0123456789abcdef0"},
		{ami.CodeInvalidInstanceIDNotFound, "instance show i-0123456789abcdef0"},
		{ami.CodeInvalidInstanceIDMalformed, "instance terminate i-1"},
		{ami.CodeInvalidInstanceIDNotFound, "image create i-0123456789abcdef0 --name x-y-z"},
		{ami.CodeInvalidSnapshotNotFound, "snapshot delete snap-0123456789abcdef0"},
		{ami.CodeInvalidVolumeNotFound, "volume delete vol-0123456789abcdef0"},
		{ami.CodeInvalidInstanceIDNotFound, "ssh i-0123456789abcdef0 -- true"},
		{ami.CodeInvalidInstanceIDNotFound, "console i-0123456789abcdef0"},
	}
	for _, tt := range tests {
		shared.refuse(t, tt.code, strings.Fields(tt.args)...)
	}
}

// TestNameInUse has to fail before any work begins.
func TestNameInUse(t *testing.T) {
	parallel(t)
	sector(t)
	r := shared.try("build", recipeDir("tiny"), "--name", "sector")
	if r.code == 0 || !strings.Contains(r.stderr, string(ami.CodeInvalidAMINameDuplicate)) {
		t.Errorf("building with a name in use: exit status %d: %s", r.code, r.stderr)
	}
	if r.took.Seconds() > 2 {
		t.Errorf("it took %v to find that the name is in use", r.took)
	}
}

// TestDisksThatReadTheHost offers disks that name files of the host, as an
// attacker would, and disks that are none.
func TestDisksThatReadTheHost(t *testing.T) {
	parallel(t)
	dir := t.TempDir()
	secret := filepath.Join(dir, "secret.raw")
	must(t, os.WriteFile(secret, bytes.Repeat([]byte("secret of the host "), 1<<16), 0o644))
	must(t, os.Truncate(secret, 1<<20))
	qemuImg(t, "create", "-f", "qcow2", "-F", "raw", "-b", secret, filepath.Join(dir, "backing.qcow2"))
	qemuImg(t, "create", "-f", "qcow2", "-o", "data_file="+secret+",data_file_raw=on", filepath.Join(dir, "data.qcow2"), "1M")
	vmdk := "# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\n" +
		"RW 2048 FLAT \"" + secret + "\" 0\nddb.virtualHWVersion = \"4\"\nddb.adapterType = \"ide\"\n"
	must(t, os.WriteFile(filepath.Join(dir, "extent.vmdk"), []byte(vmdk), 0o644))
	qemuImg(t, "create", "-f", "qcow2", filepath.Join(dir, "whole.qcow2"), "16M")
	whole, err := os.ReadFile(filepath.Join(dir, "whole.qcow2"))
	must(t, err)
	must(t, os.WriteFile(filepath.Join(dir, "truncated.qcow2"), whole[:70000], 0o644))
	must(t, os.WriteFile(filepath.Join(dir, "letter.txt"), []byte("Dear kami, this is no disk.\n"), 0o644))
	must(t, os.WriteFile(filepath.Join(dir, "empty.raw"), nil, 0o644))

	h := newHouse(shared.bin, filepath.Join(base, "refuse"))
	for _, name := range []string{"backing.qcow2", "data.qcow2", "extent.vmdk", "truncated.qcow2", "letter.txt", "empty.raw"} {
		said := h.refuse(t, ami.CodeInvalidParameterValue, "import", filepath.Join(dir, name), "--name", "bad-"+name)
		if strings.Contains(said, "secret of the host") {
			t.Errorf("%s: the error shows the host's file", name)
		}
	}
	if got := h.kami(t, "image", "list", "-o", "id"); got != "" {
		t.Errorf("refused imports left images: %s", got)
	}
	for _, d := range []string{"layers", "tmp", "volumes"} {
		if left := h.files(t, d); len(left) > 0 {
			t.Errorf("refused imports left %s in %s", left, d)
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func qemuImg(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), "qemu-img", args...).CombinedOutput(); err != nil {
		t.Fatalf("qemu-img %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}
