package ami

import (
	"strings"
	"testing"

	"github.com/kamivm/kami/pkg/digest"
)

// What is signed is these bytes: a change of them breaks every signature there is.
func TestImageManifestText(t *testing.T) {
	size := int64(20)
	sum := func(s string) digest.Digest { return digest.Of([]byte(s)) }
	whole := Image{
		Architecture: ArchX8664, BootMode: BootUEFI, VirtualizationType: VirtualizationParavirtual, RootDeviceName: "/dev/sda1",
		TpmSupport: "v2.0", ImdsSupport: "v2.0", UEFIData: sum("vars"), KernelID: PVGrub, RamdiskID: "ari-1", KernelCmdline: "ro quiet",
		BlockDeviceMappings: []BlockDeviceMapping{
			{DeviceName: "/dev/sda1", Ebs: &EBSBlockDevice{SnapshotID: "snap-1", VolumeSize: &size}},
			{DeviceName: "/dev/sdb", Ebs: &EBSBlockDevice{VolumeSize: &size}},
			{DeviceName: "/dev/sdc", VirtualName: "ephemeral0"},
		},
	}
	snaps := []Snapshot{{SnapshotID: "snap-1", SizeBytes: 1 << 30, ContentDigest: sum("disk")}}
	kernels := []Image{{ImageID: "ari-1", Data: sum("initrd")}}
	store := Image{
		Architecture: ArchARM64, VirtualizationType: VirtualizationHVM, RootDeviceName: "/dev/sda1",
		Bundle: &BundleSource{SizeBytes: 4096, ContentDigest: sum("blob")},
	}
	for _, tt := range []struct {
		name  string
		image Image
		want  string
	}{
		{"all there is", whole, `kami-image 1
architecture x86_64
boot-mode uefi
virtualization-type paravirtual
root-device /dev/sda1
tpm-support v2.0
imds-support v2.0
uefi-data sha256:` + sum("vars").Hex() + `
kernel pv-grub
ramdisk sha256:` + sum("initrd").Hex() + `
kernel-command-line ro quiet
disk /dev/sda1 1073741824 sha256:` + sum("disk").Hex() + `
blank /dev/sdb 21474836480
virtual /dev/sdc ephemeral0
`},
		{"a bundle", store, `kami-image 1
architecture arm64
virtualization-type hvm
root-device /dev/sda1
bundle /dev/sda1 4096 sha256:` + sum("blob").Hex() + `
`},
	} {
		m, err := NewImageManifest(tt.image, snaps, kernels)
		if err != nil {
			t.Fatalf("%s: %v", tt.name, err)
		}
		if got, err := m.Text(); err != nil || string(got) != tt.want {
			t.Errorf("%s: got\n%s%v, want\n%s", tt.name, got, err, tt.want)
		}
	}
	for name, edit := range map[string]func(i *Image, s *Snapshot){
		"no such snapshot": func(i *Image, _ *Snapshot) { i.BlockDeviceMappings[0].Ebs.SnapshotID = "snap-2" },
		"no digest":        func(_ *Image, s *Snapshot) { s.ContentDigest = "" },
		"no such kernel":   func(i *Image, _ *Snapshot) { i.KernelID = "aki-1" },
	} {
		i, s := whole, snaps[0]
		ebs := *whole.BlockDeviceMappings[0].Ebs
		i.BlockDeviceMappings = []BlockDeviceMapping{{DeviceName: "/dev/sda1", Ebs: &ebs}}
		edit(&i, &s)
		if _, err := NewImageManifest(i, []Snapshot{s}, kernels); ErrorCode(err) != CodeUnsupportedOperation {
			t.Errorf("%s: got %v, want %s", name, err, CodeUnsupportedOperation)
		}
	}
	broken := ImageManifest{KernelCmdline: "ro\nkernel pv-grub"}
	if _, err := broken.Text(); ErrorCode(err) != CodeUnsupportedOperation || !strings.Contains(err.Error(), "kernel-command-line") {
		t.Errorf("got %v of a line that is two", err)
	}
}
