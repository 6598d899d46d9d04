package region

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kamivm/kami/pkg/ami"
)

// kernelFile is a file with the header of a kernel of 64 bits, and a text.
func kernelFile(t *testing.T, text string) string {
	t.Helper()
	b := make([]byte, 0x400)
	binary.LittleEndian.PutUint16(b[0x1fe:], 0xaa55)
	copy(b[0x202:], "HdrS")
	binary.LittleEndian.PutUint16(b[0x206:], 0x20f)
	b[0x236] = 1
	return fileOf(t, string(b)+text)
}

func fileOf(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	must(t, os.WriteFile(path, []byte(content), 0o600))
	return path
}

func kernel(t *testing.T, r *Region, name string) ami.KernelID {
	t.Helper()
	i, err := r.RegisterKernel(t.Context(), RegisterKernelInput{File: kernelFile(t, name), Name: name})
	must(t, err)
	return ami.KernelID(i.ImageID)
}

func ramdisk(t *testing.T, r *Region, name string) ami.RamdiskID {
	t.Helper()
	i, err := r.RegisterKernel(t.Context(), RegisterKernelInput{File: fileOf(t, "070701"+name), Name: name, Type: ami.ImageTypeRamdisk})
	must(t, err)
	return ami.RamdiskID(i.ImageID)
}

// pvImage registers a paravirtual image over the snapshot of another one.
func pvImage(t *testing.T, r *Region, of ami.Image, name string, boot PVBoot) ami.Image {
	t.Helper()
	i, err := r.RegisterImage(t.Context(), RegisterImageInput{
		Name: name, VirtualizationType: ami.VirtualizationParavirtual, PVBoot: boot,
		BlockDeviceMappings: []ami.BlockDeviceMapping{{DeviceName: "/dev/sda1", Ebs: &ami.EBSBlockDevice{SnapshotID: rootSnapshot(of)}}},
	})
	must(t, err)
	return i
}

func content(t *testing.T, path string) string {
	t.Helper()
	if path == "" {
		return ""
	}
	return string(get(os.ReadFile(path))(t))
}

func TestRegisterKernel(t *testing.T) {
	t.Parallel()
	r, _ := open(t)
	file := kernelFile(t, "one")
	got, err := r.RegisterKernel(t.Context(), RegisterKernelInput{File: file, Name: "linux", Tags: []ami.Tag{{Key: "a", Value: "b"}}})
	must(t, err)
	if _, err := ami.ParseKernelID(string(got.ImageID)); err != nil || got.ImageType != "kernel" || got.Architecture != ami.ArchX8664 || got.DataBytes != 0x400+3 {
		t.Errorf("got %+v, want a kernel", got)
	}
	if content(t, r.objectPath(got.Data)) != content(t, file) {
		t.Error("the object is not the file")
	}
	all, err := r.DescribeKernels(t.Context(), DescribeInput{})
	must(t, err)
	if len(all) != 2 || all[0].ImageID != ami.ImageID(ami.PVGrub) || all[1].ImageID != got.ImageID {
		t.Errorf("got %+v, want pv-grub and the new one", all)
	}
	byName, err := r.ResolveKernel(t.Context(), "linux", "")
	must(t, err)
	if byName.ImageID != got.ImageID {
		t.Errorf("by its name it is %s", byName.ImageID)
	}
	must(t, r.CreateTags(t.Context(), []string{string(got.ImageID)}, []ami.Tag{{Key: "c", Value: "d"}}, false))
	if images, err := r.DescribeImages(t.Context(), DescribeInput{}); err != nil || len(images) != 0 {
		t.Errorf("got the images %v, %v, want none: kernels are no images to launch", images, err)
	}
	if images, err := r.DescribeImages(t.Context(), DescribeInput{Filters: []Filter{{Name: "image-type", Values: []string{"kernel"}}}}); err != nil || len(images) != 2 {
		t.Errorf("got %v, %v, want both kernels", images, err)
	}
	_, err = r.ResolveImage(t.Context(), string(got.ImageID), false)
	wantCode(t, err, ami.CodeInvalidAMIIDMalformed)
}

func TestRegisterKernelRefuses(t *testing.T) {
	t.Parallel()
	r, _ := open(t)
	kernel(t, r, "taken")
	for _, tt := range []struct {
		name string
		in   RegisterKernelInput
		code ami.Code
		says string
	}{
		{"what is no kernel", RegisterKernelInput{File: fileOf(t, "text"), Name: "new"}, ami.CodeInvalidParameterValue, "not a kernel"},
		{"a folder", RegisterKernelInput{File: t.TempDir(), Name: "new"}, ami.CodeInvalidParameterValue, "is no file"},
		{"what is not there", RegisterKernelInput{File: "/nowhere", Name: "new"}, ami.CodeInvalidParameterValue, "no such file"},
		{"a kernel as a ramdisk", RegisterKernelInput{File: kernelFile(t, ""), Name: "new", Type: "ramdisk"}, ami.CodeInvalidParameterValue, "no initial RAM disk"},
		{"another architecture", RegisterKernelInput{File: kernelFile(t, ""), Name: "new", Architecture: ami.ArchARM64}, ami.CodeInvalidParameterValue, "not for arm64"},
		{"another type", RegisterKernelInput{File: kernelFile(t, ""), Name: "new", Type: "machine"}, ami.CodeInvalidParameterValue, "machine"},
		{"a name that is taken", RegisterKernelInput{File: kernelFile(t, ""), Name: "taken"}, ami.CodeInvalidAMINameDuplicate, "taken"},
		{"pv-grub's name", RegisterKernelInput{File: kernelFile(t, ""), Name: "pv-grub-x86_64"}, ami.CodeInvalidAMINameDuplicate, string(ami.PVGrub)},
		{"a dry run", RegisterKernelInput{File: kernelFile(t, ""), Name: "new", DryRun: true}, ami.CodeDryRunOperation, "x86_64"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := r.RegisterKernel(t.Context(), tt.in)
			wantCode(t, err, tt.code)
			wantSays(t, err, tt.says)
		})
	}
	if all := get(r.objects())(t); len(all) != 1 {
		t.Errorf("%d objects are there, want the one that was registered", len(all))
	}
}

func TestDeregisterKernel(t *testing.T) {
	t.Parallel()
	r, _ := open(t)
	k := kernel(t, r, "linux")
	pv := pvImage(t, r, image(t, r, "base"), "pv-1", PVBoot{KernelID: k})
	inst := launched(t, r, RunInstancesInput{Image: "pv-1"})
	for _, want := range []string{string(pv.ImageID), string(inst.InstanceID)} {
		err := r.DeregisterKernel(t.Context(), ami.ImageID(k), false)
		wantCode(t, err, ami.CodeDependencyViolation)
		wantSays(t, err, want)
	}
	get(r.DeregisterImage(t.Context(), pv.ImageID, false, false))(t)
	wantCode(t, r.DeregisterKernel(t.Context(), ami.ImageID(k), false), ami.CodeDependencyViolation)
	get(r.TerminateInstances(t.Context(), []ami.InstanceID{inst.InstanceID}, false))(t)
	twin := get(r.RegisterKernel(t.Context(), RegisterKernelInput{File: kernelFile(t, "linux"), Name: "twin"}))(t)
	wantCode(t, r.DeregisterKernel(t.Context(), ami.ImageID(k), true), ami.CodeDryRunOperation)
	get(r.ProtectImage(t.Context(), ami.ImageID(k), false, false))(t)
	wantCode(t, r.DeregisterKernel(t.Context(), ami.ImageID(k), false), ami.CodeOperationNotPermitted)
	get(r.UnprotectImage(t.Context(), ami.ImageID(k), false))(t)
	must(t, r.DeregisterKernel(t.Context(), ami.ImageID(k), false))
	if n := len(get(r.objects())(t)); n != 1 {
		t.Errorf("%d objects are there, want the one that its twin has too", n)
	}
	must(t, r.DeregisterKernel(t.Context(), twin.ImageID, false))
	if n := len(get(r.objects())(t)); n != 0 {
		t.Errorf("%d objects are there, want none", n)
	}
	wantCode(t, r.DeregisterKernel(t.Context(), ami.ImageID(k), false), ami.CodeInvalidAMIIDNotFound)
	wantCode(t, r.DeregisterKernel(t.Context(), ami.ImageID(ami.PVGrub), false), ami.CodeOperationNotPermitted)
	wantCode(t, r.DeregisterKernel(t.Context(), "aki-1", false), ami.CodeInvalidKernelIDMalformed)
	wantCode(t, r.DeregisterKernel(t.Context(), "ari-1", false), ami.CodeInvalidRAMDiskIDMalformed)
}

func TestParavirtualRecords(t *testing.T) {
	t.Parallel()
	r, _ := open(t)
	base, k, other, rd := image(t, r, "base"), kernel(t, r, "linux"), kernel(t, r, "other"), ramdisk(t, r, "disk")
	for _, tt := range []struct {
		name string
		virt string
		boot PVBoot
		mode ami.BootMode
		code ami.Code
	}{
		{"hvm with a kernel", "hvm", PVBoot{KernelID: k}, "", ami.CodeInvalidParameterCombination},
		{"hvm by default, with a command line", "", PVBoot{KernelCmdline: "x"}, "", ami.CodeInvalidParameterCombination},
		{"another kind", "xen", PVBoot{}, "", ami.CodeInvalidParameterValue},
		{"pv-grub with a ramdisk", "paravirtual", PVBoot{RamdiskID: rd}, "", ami.CodeInvalidParameterCombination},
		{"a boot mode", "paravirtual", PVBoot{}, ami.BootUEFI, ami.CodeInvalidParameterCombination},
		{"no id of a kernel", "paravirtual", PVBoot{KernelID: "ami-0123456789abcdef0"}, "", ami.CodeInvalidKernelIDMalformed},
		{"no id of a ramdisk", "paravirtual", PVBoot{KernelID: k, RamdiskID: "ari-0"}, "", ami.CodeInvalidRAMDiskIDMalformed},
		{"no such kernel", "paravirtual", PVBoot{KernelID: "aki-0123456789abcdef0"}, "", ami.CodeInvalidAMIIDNotFound},
		{"no such ramdisk", "paravirtual", PVBoot{KernelID: k, RamdiskID: "ari-0123456789abcdef0"}, "", ami.CodeInvalidAMIIDNotFound},
		{"a line break", "paravirtual", PVBoot{KernelID: k, KernelCmdline: "a\nb"}, "", ami.CodeInvalidParameterValue},
		{"more than a kernel takes", "paravirtual", PVBoot{KernelID: k, KernelCmdline: strings.Repeat("a", 2048)}, "", ami.CodeInvalidParameterValue},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := r.RegisterImage(t.Context(), RegisterImageInput{
				Name: "new", VirtualizationType: tt.virt, PVBoot: tt.boot, BootMode: tt.mode,
				BlockDeviceMappings: []ami.BlockDeviceMapping{{DeviceName: "/dev/sda1", Ebs: &ami.EBSBlockDevice{SnapshotID: rootSnapshot(base)}}},
			})
			wantCode(t, err, tt.code)
		})
	}
	if got := pvImage(t, r, base, "grub", PVBoot{}); got.KernelID != ami.PVGrub || got.VirtualizationType != "paravirtual" {
		t.Errorf("got %+v, want pv-grub where no kernel is named", got)
	}
	pv := pvImage(t, r, base, "pv-1", PVBoot{k, rd, "root=/dev/vda1 quiet"})

	// What the image says, the instance has, and the next image; a launch may say
	// otherwise.
	inst := launched(t, r, RunInstancesInput{Image: "pv-1"})
	if inst.VirtualizationType != "paravirtual" || inst.KernelID != k || inst.RamdiskID != rd || inst.KernelCmdline != pv.KernelCmdline || inst.CurrentBootMode != "" {
		t.Errorf("got %+v, want it as its image", inst)
	}
	next, err := r.CreateImage(t.Context(), CreateImageInput{InstanceID: inst.InstanceID, Name: "next"})
	must(t, err)
	if next.VirtualizationType != "paravirtual" || next.KernelID != k || next.RamdiskID != rd || next.KernelCmdline != pv.KernelCmdline {
		t.Errorf("got %+v, want it as its instance", next)
	}
	inst = launched(t, r, RunInstancesInput{Image: "pv-1", PVBoot: PVBoot{KernelID: other}})
	if inst.KernelID != other || inst.RamdiskID != "" || inst.KernelCmdline != pv.KernelCmdline {
		t.Errorf("got %+v, want the other kernel without the first one's ramdisk", inst)
	}
	for _, tt := range []struct {
		in   RunInstancesInput
		code ami.Code
	}{
		{RunInstancesInput{Image: "base", PVBoot: PVBoot{KernelID: k}}, ami.CodeInvalidParameterCombination},
		{RunInstancesInput{Image: "pv-1", BootMode: ami.BootUEFI}, ami.CodeInvalidParameterCombination},
		{RunInstancesInput{Image: "pv-1", PVBoot: PVBoot{KernelID: "aki-x"}}, ami.CodeInvalidKernelIDMalformed},
		{RunInstancesInput{Image: "pv-1", PVBoot: PVBoot{RamdiskID: "ari-0123456789abcdef0"}}, ami.CodeInvalidAMIIDNotFound},
		{RunInstancesInput{Image: string(k)}, ami.CodeInvalidAMIIDMalformed},
	} {
		_, err := r.RunInstances(t.Context(), tt.in)
		wantCode(t, err, tt.code)
	}
	found, err := r.DescribeImages(t.Context(), DescribeInput{Filters: []Filter{{Name: "virtualization-type", Values: []string{"paravirtual"}}, {Name: "kernel-id", Values: []string{string(k)}}}})
	must(t, err)
	if len(found) != 2 {
		t.Errorf("got %d images, want the two that start with the kernel", len(found))
	}
}

// A recipe that stands on another one takes an image of the same kind.
func TestBaseOfTheSameKind(t *testing.T) {
	t.Parallel()
	r, _ := open(t)
	hvm := image(t, r, "built-hvm")
	pv := pvImage(t, r, hvm, "built-pv", PVBoot{})
	_, err := r.baseOf(t.Context(), "rec", "paravirtual", ami.ArchX8664)
	wantCode(t, err, ami.CodeInvalidAMIIDNotFound)
	for _, i := range []ami.Image{hvm, pv} {
		must(t, r.CreateTags(t.Context(), []string{string(i.ImageID)}, []ami.Tag{{Key: TagRecipe, Value: "rec"}}, false))
	}
	for kind, want := range map[string]ami.ImageID{"": hvm.ImageID, "hvm": hvm.ImageID, "paravirtual": pv.ImageID} {
		if got, err := r.baseOf(t.Context(), "rec", kind, ami.ArchX8664); err != nil || got.ImageID != want {
			t.Errorf("%q: got %s, %v, want %s", kind, got.ImageID, err, want)
		}
	}
	_, err = r.baseOf(t.Context(), "built-hvm", "paravirtual", ami.ArchX8664)
	wantCode(t, err, ami.CodeInvalidParameterCombination)
}
