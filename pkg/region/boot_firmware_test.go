package region

import (
	"context"
	"encoding/base64"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/disk/uefivars"
	"github.com/kamivm/kami/pkg/hypervisor"
	"github.com/kamivm/kami/pkg/launch"
	"github.com/kamivm/kami/pkg/machine"
)

// enrolled are variables with a platform key, as EC2 has them.
func enrolled(t *testing.T) string {
	t.Helper()
	global := uefivars.GUID{0x61, 0xdf, 0xe4, 0x8b, 0xca, 0x93, 0xd2, 0x11, 0xaa, 0x0d, 0x00, 0xe0, 0x98, 0x03, 0x2b, 0x8c}
	return get(uefivars.Encode([]uefivars.Var{{Name: "PK", Vendor: global, Attributes: 0x27, Data: []byte("a key")}}))(t)
}

// TestRegisterSupport goes through what does not go together, each with EC2's code.
func TestRegisterSupport(t *testing.T) {
	t.Parallel()
	r, _ := open(t)
	root := mapping(t, "/dev/sda1="+string(rootSnapshot(image(t, r, "base"))))
	yes := true
	for _, tt := range []struct {
		name string
		in   RegisterImageInput
		code ami.Code // "" is taken
	}{
		{"arm64", RegisterImageInput{Architecture: ami.ArchARM64}, ""},
		{"arm64 by uefi", RegisterImageInput{Architecture: ami.ArchARM64, BootMode: ami.BootUEFI}, ""},
		{"arm64 by BIOS", RegisterImageInput{Architecture: ami.ArchARM64, BootMode: ami.BootLegacyBIOS}, ami.CodeInvalidParameterCombination},
		{"arm64 by either", RegisterImageInput{Architecture: ami.ArchARM64, BootMode: ami.BootUEFIPreferred}, ami.CodeInvalidParameterCombination},
		{"i386", RegisterImageInput{Architecture: ami.ArchI386}, ""},
		{"i386 by uefi", RegisterImageInput{Architecture: ami.ArchI386, BootMode: ami.BootUEFI}, ami.CodeInvalidParameterCombination},
		{"a Mac", RegisterImageInput{Architecture: "arm64_mac"}, ami.CodeInvalidParameterValue},
		{"another boot mode", RegisterImageInput{BootMode: "efi"}, ami.CodeInvalidParameterValue},
		{"a TPM", RegisterImageInput{TpmSupport: ami.TPMv2, BootMode: ami.BootUEFI}, ""},
		{"a TPM of arm64", RegisterImageInput{TpmSupport: ami.TPMv2, Architecture: ami.ArchARM64}, ""},
		{"a TPM by no boot mode", RegisterImageInput{TpmSupport: ami.TPMv2}, ami.CodeInvalidParameterCombination},
		{"a TPM by either", RegisterImageInput{TpmSupport: ami.TPMv2, BootMode: ami.BootUEFIPreferred}, ami.CodeInvalidParameterCombination},
		{"an old TPM", RegisterImageInput{TpmSupport: "v1.2", BootMode: ami.BootUEFI}, ami.CodeInvalidParameterValue},
		{"a TPM of a paravirtual one", RegisterImageInput{TpmSupport: ami.TPMv2, VirtualizationType: ami.VirtualizationParavirtual}, ami.CodeInvalidParameterCombination},
		{"variables", RegisterImageInput{UEFIData: enrolled(t), BootMode: ami.BootUEFIPreferred}, ""},
		{"variables by BIOS", RegisterImageInput{UEFIData: enrolled(t)}, ami.CodeInvalidParameterCombination},
		{"no variables", RegisterImageInput{UEFIData: "bm8=", BootMode: ami.BootUEFI}, ami.CodeInvalidParameterValue},
		{"two kinds of variables", RegisterImageInput{UEFIData: enrolled(t), SecureBoot: true, BootMode: ami.BootUEFI}, ami.CodeInvalidParameterCombination},
		{"Secure Boot", RegisterImageInput{SecureBoot: true, BootMode: ami.BootUEFI}, ""},
		{"Secure Boot by BIOS", RegisterImageInput{SecureBoot: true}, ami.CodeInvalidParameterCombination},
		{"networks", RegisterImageInput{EnaSupport: &yes, SriovNetSupport: ami.SriovSimple}, ""},
		{"another network", RegisterImageInput{SriovNetSupport: "hard"}, ami.CodeInvalidParameterValue},
		{"a network of a paravirtual one", RegisterImageInput{EnaSupport: &yes, VirtualizationType: ami.VirtualizationParavirtual}, ami.CodeInvalidParameterCombination},
		{"old metadata", RegisterImageInput{ImdsSupport: "v1.0"}, ami.CodeInvalidParameterValue},
	} {
		tt.in.Name, tt.in.BlockDeviceMappings = tt.name, root
		got, err := r.RegisterImage(t.Context(), tt.in)
		if ami.ErrorCode(err) != tt.code {
			t.Errorf("%s: got the code %q (%v), want %q", tt.name, ami.ErrorCode(err), err, tt.code)
		}
		if err == nil && (got.TpmSupport != tt.in.TpmSupport || (got.UEFIData != "") != (tt.in.UEFIData != "" || tt.in.SecureBoot)) {
			t.Errorf("%s: got %+v", tt.name, got)
		}
	}
	plan := get(r.PlanGarbage(t.Context(), GCInput{}))(t)
	if len(plan.Files) > 0 {
		t.Errorf("refused registrations have left %+v", plan.Files)
	}
}

// TestLaunchARM64 launches a machine of another kind than most hosts are.
func TestLaunchARM64(t *testing.T) {
	t.Parallel()
	r, d := open(t)
	root := mapping(t, "/dev/sda1="+string(rootSnapshot(image(t, r, "base"))))
	get(r.RegisterImage(t.Context(), RegisterImageInput{Name: "arm", Architecture: ami.ArchARM64, BlockDeviceMappings: root, UEFIData: enrolled(t)}))(t)
	inst := launched(t, r, RunInstancesInput{Image: "arm"})
	spec, _ := d.Spec(inst.InstanceID)
	if !hypervisor.Native(ami.ArchARM64) && (spec.Accel != machine.AccelTCG || spec.CPU == "") {
		t.Errorf("got %s on the processor %q, want it emulated as one that is quick to", spec.Accel, spec.CPU)
	}
	if spec.Arch != ami.ArchARM64 || !spec.Firmware.UEFI || inst.CurrentBootMode != ami.BootUEFI || inst.InstanceType != "t4g.micro" {
		t.Errorf("got %+v of %s by %s", spec, inst.InstanceType, inst.CurrentBootMode)
	}
	info, err := os.Stat(spec.Firmware.NVRAM)
	if err != nil || info.Size() != 64<<20 || allocated(spec.Firmware.NVRAM) > 2<<20 {
		t.Errorf("got variables of %v (%v), want 64 MiB that are mostly holes", info, err)
	}
	for _, in := range []struct {
		RunInstancesInput
		code ami.Code
	}{
		{RunInstancesInput{Image: "arm", InstanceType: "t3.micro"}, ami.CodeInvalidParameterValue},
		{RunInstancesInput{Image: "base", InstanceType: "m7g.large"}, ami.CodeInvalidParameterValue},
		{RunInstancesInput{Image: "arm", BootMode: ami.BootLegacyBIOS}, ami.CodeInvalidParameterCombination},
	} {
		_, err := r.RunInstances(t.Context(), in.RunInstancesInput)
		wantCode(t, err, in.code)
	}
}

// TestFirmwareLife follows UEFI's variables and the TPM from an image through its
// guest into the next image.
func TestFirmwareLife(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	r, d := h.open(t), h.driver
	root := mapping(t, "/dev/sda1="+string(rootSnapshot(image(t, r, "base"))))
	get(r.RegisterImage(t.Context(), RegisterImageInput{
		Name: "secure", BootMode: ami.BootUEFI, TpmSupport: ami.TPMv2, UEFIData: enrolled(t), BlockDeviceMappings: root,
	}))(t)
	inst := launched(t, r, RunInstancesInput{Image: "secure"})
	spec, _ := d.Spec(inst.InstanceID)
	if !spec.Firmware.SecureBoot || spec.TPMState != r.tpmPath(inst.InstanceID) || inst.TpmSupport != ami.TPMv2 {
		t.Errorf("got %+v, want Secure Boot and a TPM", spec)
	}
	told := get(r.UEFIData(t.Context(), inst.InstanceID))(t)
	want, got := get(uefivars.Decode(enrolled(t)))(t), get(uefivars.Decode(told.UEFIData))(t)
	if diff := cmp.Diff(want, got); diff != "" || told.InstanceID != inst.InstanceID {
		t.Errorf("variables of %s (-want +got):\n%s", told.InstanceID, diff)
	}
	next := get(r.CreateImage(t.Context(), CreateImageInput{InstanceID: inst.InstanceID, Name: "next"}))(t)
	if next.TpmSupport != ami.TPMv2 || next.BootMode != ami.BootUEFI || next.UEFIData == "" {
		t.Errorf("the next image is %+v", next)
	}
	copied := get(h.copied(t, DefaultRegion, CopyImageInput{SourceImageID: "next", Name: "copied"}))(t)
	if got := get(r.image(t.Context(), copied.ImageID))(t); got.TpmSupport != ami.TPMv2 || got.UEFIData != next.UEFIData {
		t.Errorf("the copy is %+v", got)
	}
	terminate(t, r, inst.InstanceID)

	_, err := r.RunInstances(t.Context(), RunInstancesInput{Image: "next", BootMode: ami.BootLegacyBIOS})
	wantCode(t, err, ami.CodeInvalidParameterCombination)
	plain := launched(t, r, RunInstancesInput{Image: "base"})
	_, err = r.UEFIData(t.Context(), plain.InstanceID)
	wantCode(t, err, ami.CodeUnsupportedOperation)
	_, err = r.UEFIData(t.Context(), "i-00000000000000000")
	wantCode(t, err, ami.CodeInvalidInstanceIDNotFound)

	// A host that has not what a guest needs says what to install, and keeps nothing.
	before := len(get(r.DescribeInstances(t.Context(), DescribeInput{}))(t))
	for fault, says := range map[error]string{hypervisor.ErrNoTPM: "swtpm", hypervisor.ErrNoFirmware: "ovmf", hypervisor.ErrNoEmulator: "qemu-system-arm"} {
		d.FailStart = func(machine.Spec) error { return fault }
		_, err = r.RunInstances(t.Context(), RunInstancesInput{Image: "next"})
		wantCode(t, err, ami.CodeUnsupportedOperation)
		var e *ami.Error
		if !errors.As(err, &e) || !strings.Contains(e.Hint, says) {
			t.Errorf("%v: got %v, want a hint of %s", fault, err, says)
		}
	}
	if after := len(get(r.DescribeInstances(t.Context(), DescribeInput{}))(t)); after != before {
		t.Errorf("failed launches have left %d instances", after-before)
	}
}

func TestUEFIText(t *testing.T) {
	flash := get(uefivars.Build(nil, ami.ArchX8664))(t)
	if got := UEFIText(flash); got != base64.StdEncoding.EncodeToString(flash) {
		t.Error("a flash memory is not taken as one")
	}
	if got := UEFIText([]byte(" abc=\n")); got != "abc=" {
		t.Errorf("got %q of a text", got)
	}
}

// TestFirmwareEnd reads what OVMF says when it has come to its end.
func TestFirmwareEnd(t *testing.T) {
	t.Parallel()
	const stuck = "BdsDxe: No bootable option or device was found.\r\nBdsDxe: Press any key to enter the Boot Manager Menu.\r\n"
	for text, want := range map[string]error{
		"": nil,
		"BdsDxe: failed to load Boot0001 \"UEFI Misc Device\" from PciRoot(0x0): Access Denied\r\n":           nil,
		"BdsDxe: failed to load Boot0001 \"UEFI Misc Device\" from PciRoot(0x0): Not Found\r\n" + stuck:       errNoLoader,
		"BdsDxe: failed to load Boot0001 \"UEFI Misc Device\" from PciRoot(0x0): Access Denied\r\n" + stuck:   errRefused,
		"BdsDxe: failed to start Boot0001 \"UEFI Misc Device\" from Pci(0x0): Security Violation\r\n" + stuck: errRefused,
	} {
		if got := firmwareEnd([]byte(text)); !errors.Is(got, want) {
			t.Errorf("%q: got %v, want %v", text, got, want)
		}
	}
	r, _ := open(t)
	root := mapping(t, "/dev/sda1="+string(rootSnapshot(image(t, r, "base"))))
	get(r.RegisterImage(t.Context(), RegisterImageInput{Name: "secure", BootMode: ami.BootUEFI, SecureBoot: true, BlockDeviceMappings: root}))(t)
	inst := launched(t, r, RunInstancesInput{Image: "secure"})
	appendConsole(t, r, inst.InstanceID, "BdsDxe: failed to load Boot0001 \"UEFI Misc Device\" from PciRoot(0x0): Access Denied\r\n"+stuck)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	_, err := r.WaitInstance(ctx, inst.InstanceID, WaitSSH, time.Minute)
	wantCode(t, err, ami.CodeIncorrectInstanceState)
	wantSays(t, err, "Secure Boot is on")
}

// TestPlatform follows what is on a disk, as EC2 bills it, from an import to a
// registration of its snapshot's copy.
func TestPlatform(t *testing.T) {
	t.Parallel()
	r, _ := open(t)
	_, err := r.ImportImage(t.Context(), ImportInput{Source: rawDisk(t, "w"), Name: "bad", UsageOperation: "RunInstances:9999"})
	wantCode(t, err, ami.CodeInvalidParameterValue)
	win := get(r.ImportImage(t.Context(), ImportInput{Source: rawDisk(t, "w"), Name: "win", UsageOperation: "RunInstances:0002"}))(t)
	check := func(what, usage, details, platform string) {
		t.Helper()
		if usage != "RunInstances:0002" || details != "Windows" || platform != ami.PlatformWindows {
			t.Errorf("%s: got %q, %q and %q, want those of Windows", what, usage, details, platform)
		}
	}
	check("the import", win.UsageOperation, win.PlatformDetails, win.Platform)
	inst := launched(t, r, RunInstancesInput{Image: "win"})
	check("the instance", inst.UsageOperation, inst.PlatformDetails, inst.Platform)
	next := get(r.CreateImage(t.Context(), CreateImageInput{InstanceID: inst.InstanceID, Name: "next", NoReboot: true}))(t)
	check("its image", next.UsageOperation, next.PlatformDetails, next.Platform)
	snap := get(r.CreateSnapshot(t.Context(), CreateSnapshotInput{VolumeID: volumeOf(t, r, inst, "/dev/sda1").VolumeID}))(t)
	snap = get(r.CopySnapshot(t.Context(), CopySnapshotInput{SnapshotID: snap.SnapshotID}))(t)
	again := get(r.RegisterImage(t.Context(), RegisterImageInput{Name: "again", BlockDeviceMappings: mapping(t, "/dev/sda1="+string(snap.SnapshotID))}))(t)
	check("what is registered of its snapshot", again.UsageOperation, again.PlatformDetails, again.Platform)
	image(t, r, "linux")
	for name, want := range map[string][]string{"platform=windows": {"win", "next", "again"}} {
		field, value, _ := strings.Cut(name, "=")
		var got []string
		for _, i := range get(r.DescribeImages(t.Context(), DescribeInput{Filters: []Filter{{Name: field, Values: []string{value}}}}))(t) {
			got = append(got, i.Name)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
	for name, want := range map[string]int{"platform-details=Windows": 1, "usage-operation=RunInstances:0002": 1, "platform-details=Linux/UNIX": 0} {
		field, value, _ := strings.Cut(name, "=")
		if got := get(r.DescribeInstances(t.Context(), DescribeInput{Filters: []Filter{{Name: field, Values: []string{value}}}}))(t); len(got) != want {
			t.Errorf("%s finds %d instances, want %d", name, len(got), want)
		}
	}
}

func TestTypeFor(t *testing.T) {
	if got := typeFor(ami.Image{Architecture: ami.ArchX8664}, ""); got != launch.DefaultType {
		t.Errorf("got the type %s", got)
	}
	if got := typeFor(ami.Image{Architecture: ami.ArchARM64}, "c7g.large"); got != "c7g.large" {
		t.Errorf("got the type %s", got)
	}
}
