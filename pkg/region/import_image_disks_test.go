package region

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kamivm/kami/pkg/ami"
)

// appliance is an OVA of the given members, by name and content in turns, whose
// description names all that are images, in this order, and an empty one.
func appliance(t *testing.T, members ...string) string {
	t.Helper()
	var refs, disks strings.Builder
	for i := 0; i < len(members); i += 2 {
		if strings.HasSuffix(members[i], ".img") {
			fmt.Fprintf(&refs, "<File id=\"f%d\" href=%q/>", i, members[i])
			fmt.Fprintf(&disks, "<Disk diskId=\"d%d\" fileRef=\"f%d\"/>", i, i)
		}
	}
	ovf := "<Envelope><References>" + refs.String() + "</References><DiskSection>" + disks.String() + "<Disk diskId=\"scratch\"/></DiskSection></Envelope>"
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	members = append(members, "box.ovf", ovf)
	for i := len(members) - 2; i >= 0; i -= 2 { // in another order
		must(t, w.WriteHeader(&tar.Header{Name: members[i], Mode: 0o600, Size: int64(len(members[i+1]))}))
		_, err := w.Write([]byte(members[i+1]))
		must(t, err)
	}
	must(t, w.Close())
	path := filepath.Join(t.TempDir(), "box.ova")
	must(t, os.WriteFile(path, buf.Bytes(), 0o600))
	return path
}

func contentOf(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	must(t, err)
	return string(b)
}

// A file with several disks becomes an image with a volume for each.
func TestImportDisks(t *testing.T) {
	t.Parallel()
	l := &listener{}
	r, d := open(t, tellingTo(l))
	root, data := contentOf(t, rawDisk(t, "root")), contentOf(t, rawDisk(t, "data"))
	got, err := r.ImportImage(t.Context(), ImportInput{
		Source: appliance(t, "root.img", root, "data.img", data, "more.img", strings.Repeat("\x00", 3<<20)), Name: "box", Tags: []ami.Tag{{Key: "k", Value: "v"}},
	})
	must(t, err)
	if got.State != ami.ImageAvailable || got.RootDeviceName != "/dev/sda1" || got.BootMode != ami.BootLegacyBIOS || len(got.BlockDeviceMappings) != 3 {
		t.Fatalf("got %+v, want an available image that boots by BIOS, with three volumes", got)
	}
	for i, want := range []struct{ device, content string }{{"/dev/sda1", root}, {"/dev/sdb", data}, {"/dev/sdc", strings.Repeat("\x00", 3<<20)}} {
		m := got.BlockDeviceMappings[i]
		if m.DeviceName != want.device || *m.Ebs.VolumeSize != 1 || !*m.Ebs.DeleteOnTermination {
			t.Errorf("volume %d is %+v, want one of 1 GiB at %s", i, m, want.device)
		}
		snap := get(r.snapshot(t.Context(), m.Ebs.SnapshotID))(t)
		if snap.State != ami.SnapshotCompleted || snap.SizeBytes != int64(len(want.content)) || len(snap.Tags) != 1 {
			t.Errorf("the snapshot of %s is %+v, want it completed, of %d bytes and tagged", want.device, snap, len(want.content))
		}
		out := filepath.Join(t.TempDir(), "out.raw")
		must(t, r.ExportSnapshot(t.Context(), ExportInput{SnapshotID: snap.SnapshotID, Path: out}))
		if contentOf(t, out) != want.content {
			t.Errorf("the snapshot of %s holds another disk", want.device)
		}
	}
	for _, want := range []string{`"data.img" of box.ova becomes the volume at /dev/sdb`, `"more.img" of box.ova becomes the volume at /dev/sdc`, `the disk "scratch" of box.ova is empty`} {
		if !l.noted(want) {
			t.Errorf("the notes %q have no %q", l.notes, want)
		}
	}
	// An instance of it has them all.
	inst := launched(t, r, RunInstancesInput{Image: "box"})
	var devices []string
	for _, bd := range inst.BlockDeviceMappings {
		devices = append(devices, bd.DeviceName)
	}
	if diff := cmp.Diff([]string{"/dev/sda1", "/dev/sdb", "/dev/sdc"}, devices); diff != "" {
		t.Errorf("devices of an instance (-want +got):\n%s", diff)
	}
	if got := look(t, r, d); len(got.Layers) != 3 || len(got.Leases) != 0 {
		t.Errorf("got the layers %v and leases %v, want three layers", got.Layers, got.Leases)
	}
}

// All disks are imported, or nothing is.
func TestImportDisksAllOrNone(t *testing.T) {
	t.Parallel()
	root := contentOf(t, rawDisk(t, "root"))
	short := []byte(root)
	short[446+4] = 0x83 // a partition of 2 GiB
	copy(short[446+8:], []byte{0, 8, 0, 0, 0, 0, 0x40, 0})
	for name, tt := range map[string]struct {
		source, says string
	}{
		"the second is cut off":  {appliance(t, "root.img", root, "data.img", string(short)), `"data.img": the disk is cut off`},
		"the second is no disk":  {appliance(t, "root.img", root, "data.img", "hello"), `"data.img": this is not a disk`},
		"the manifest is wrong":  {appliance(t, "root.img", root, "box.mf", "SHA256(root.img)= 00\n"), `"root.img" has the SHA-256`},
		"the first one is blank": {appliance(t, "root.img", strings.Repeat("\x00", 1<<20), "data.img", root), "the disk is blank"},
	} {
		t.Run(name, func(t *testing.T) {
			r, d := open(t)
			before := look(t, r, d)
			_, err := r.ImportImage(t.Context(), ImportInput{Source: tt.source, Name: "new"})
			wantCode(t, err, ami.CodeInvalidParameterValue)
			wantSays(t, err, tt.says)
			if diff := cmp.Diff(before, look(t, r, d)); diff != "" {
				t.Errorf("it left something (-before +after):\n%s", diff)
			}
		})
	}
	t.Run("interrupted at the second", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		writes := 0
		l := &listener{onStep: func(step string) {
			if strings.HasPrefix(step, "writing") {
				if writes++; writes == 2 {
					cancel()
				}
			}
		}}
		r, d := open(t, tellingTo(l))
		before := look(t, r, d)
		_, err := r.ImportImage(ctx, ImportInput{Source: appliance(t, "root.img", root, "data.img", contentOf(t, rawDisk(t, "data"))), Name: "new"})
		if err == nil || writes != 2 {
			t.Errorf("got %v after %d writes, want an error in the second", err, writes)
		}
		after := look(t, r, d)
		after.Layers = before.Layers // that of the first is garbage, and collected as such
		if diff := cmp.Diff(before, after); diff != "" {
			t.Errorf("it left something (-before +after):\n%s", diff)
		}
	})
}

// A blank disk is refused in any format, and taken by who says how it boots.
func TestImportBlank(t *testing.T) {
	t.Parallel()
	r, d := open(t)
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "blank.raw"), make([]byte, 2<<20), 0o600))
	for _, format := range []string{"qcow2", "vmdk", "vhdx", "vpc"} {
		out, err := exec.CommandContext(t.Context(), "qemu-img", "create", "-f", format, filepath.Join(dir, "blank."+format), "2M").CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	for _, tt := range []struct{ file, format string }{
		{"blank.raw", ""}, {"blank.raw", "raw"}, {"blank.qcow2", ""}, {"blank.qcow2", "qcow2"}, {"blank.vmdk", ""}, {"blank.vhdx", ""}, {"blank.vpc", ""},
	} {
		in := ImportInput{Source: filepath.Join(dir, tt.file), Format: tt.format, Name: "blank-" + tt.file + tt.format}
		before := look(t, r, d)
		_, err := r.ImportImage(t.Context(), in)
		wantCode(t, err, ami.CodeInvalidParameterValue)
		wantSays(t, err, tt.file+" cannot be imported: the disk is blank: all of its ")
		if diff := cmp.Diff(before, look(t, r, d)); diff != "" {
			t.Errorf("%s left something (-before +after):\n%s", tt.file, diff)
		}
		in.BootMode = ami.BootLegacyBIOS
		if got, err := r.ImportImage(t.Context(), in); err != nil || got.BootMode != ami.BootLegacyBIOS {
			t.Errorf("%s, which was said to boot: got %+v, %v", tt.file, got, err)
		}
	}
}
