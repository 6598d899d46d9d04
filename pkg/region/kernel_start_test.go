package region

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/disk/pvgrub"
	"github.com/kamivm/kami/pkg/machine"
)

func TestStartWithKernel(t *testing.T) {
	t.Parallel()
	r, driver := open(t)
	k, rd := kernel(t, r, "linux"), ramdisk(t, r, "disk")
	pvImage(t, r, image(t, r, "base"), "pv-1", PVBoot{k, rd, ""})
	inst := launched(t, r, RunInstancesInput{Image: "pv-1"})
	spec, _ := driver.Spec(inst.InstanceID)
	if !strings.HasSuffix(content(t, spec.Kernel.Path), "linux") || content(t, spec.Kernel.Initrd) != "070701disk" || spec.Kernel.Cmdline != DefaultCmdline {
		t.Errorf("got %+v, want the kernel, the ramdisk and the default command line", spec.Kernel)
	}
	if dir := r.instanceDir(inst.InstanceID); filepath.Dir(spec.Kernel.Path) != dir {
		t.Errorf("it starts with %s, want a copy of its own", spec.Kernel.Path)
	}
	hvm, _ := driver.Spec(running(t, r).InstanceID)
	if hvm.Kernel != (machine.Kernel{}) {
		t.Errorf("an hvm guest has the kernel %+v", hvm.Kernel)
	}
	// A damaged object starts nothing.
	get(r.StopInstances(t.Context(), StopInput{InstanceIDs: []ami.InstanceID{inst.InstanceID}}))(t)
	i := get(r.ResolveKernel(t.Context(), string(k), ""))(t)
	flip(t, r.objectPath(i.Data), 3, 1)
	_, err := r.StartInstances(t.Context(), []ami.InstanceID{inst.InstanceID}, false)
	wantSays(t, err, "damaged")
	bad := verified(t, r, VerifyInput{})[string(k)]
	if bad.OK || !strings.Contains(bad.Advice, "kami kernel deregister") {
		t.Errorf("verify says %+v of the damaged kernel", bad)
	}
}

// rootWith is a raw disk that is one ext4 file system, with files in it.
func rootWith(t *testing.T, files map[string]string) string {
	t.Helper()
	tree := t.TempDir()
	for name, text := range files {
		must(t, os.MkdirAll(filepath.Dir(filepath.Join(tree, name)), 0o755))
		must(t, os.WriteFile(filepath.Join(tree, name), []byte(text), 0o600))
	}
	disk := diskOf(t, nil, 8<<20)
	out, err := exec.CommandContext(t.Context(), "/sbin/mke2fs", "-q", "-t", "ext4", "-F", "-d", tree, disk).CombinedOutput()
	if err != nil {
		t.Fatalf("mke2fs: %v\n%s", err, out)
	}
	return disk
}

func TestPVGrub(t *testing.T) {
	t.Parallel()
	r, driver := open(t)
	menu := "default 0\ntitle new\nroot (hd0)\nkernel /boot/new root=/dev/vda ro\ninitrd /boot/initrd\ntitle old\nroot (hd0)\nkernel /boot/old root=/dev/vda old\n"
	root := rootWith(t, map[string]string{
		"boot/grub/menu.lst": menu, "boot/new": content(t, kernelFile(t, "new")), "boot/old": content(t, kernelFile(t, "old")), "boot/initrd": "070701x",
	})
	base, err := r.ImportImage(t.Context(), ImportInput{Source: root, Name: "root"})
	must(t, err)
	pvImage(t, r, base, "pv-1", PVBoot{})
	inst := launched(t, r, RunInstancesInput{Image: "pv-1", PVBoot: PVBoot{KernelCmdline: "single"}})
	spec, _ := driver.Spec(inst.InstanceID)
	if !strings.HasSuffix(content(t, spec.Kernel.Path), "new") || content(t, spec.Kernel.Initrd) != "070701x\x00" || spec.Kernel.Cmdline != "root=/dev/vda ro single" {
		t.Errorf("got %+v, want what the default entry says, and what the launch says behind it", spec.Kernel)
	}

	// Another root, as if the guest had upgraded: it is read anew at each start.
	get(r.StopInstances(t.Context(), StopInput{InstanceIDs: []ami.InstanceID{inst.InstanceID}}))(t)
	next, err := r.ImportImage(t.Context(), ImportInput{Source: rootWith(t, map[string]string{
		"boot/grub/menu.lst": "title newest\nroot (hd0)\nkernel /boot/newest root=LABEL=x\n", "boot/newest": content(t, kernelFile(t, "newest")),
	}), Name: "upgraded"})
	must(t, err)
	get(r.ReplaceRootVolume(t.Context(), ReplaceRootInput{InstanceID: inst.InstanceID, SnapshotID: rootSnapshot(next)}))(t)
	get(r.StartInstances(t.Context(), []ami.InstanceID{inst.InstanceID}, false))(t)
	spec, _ = driver.Spec(inst.InstanceID)
	if !strings.HasSuffix(content(t, spec.Kernel.Path), "newest") || spec.Kernel.Initrd != "" || spec.Kernel.Cmdline != "root=LABEL=x single" {
		t.Errorf("got %+v, want what the new root says", spec.Kernel)
	}
	if _, err := os.Stat(r.bootFilePath(inst, "initrd")); !os.IsNotExist(err) {
		t.Errorf("the initial RAM disk of before is there still: %v", err)
	}
	_, err = r.ReplaceRootVolume(t.Context(), ReplaceRootInput{InstanceID: inst.InstanceID, ImageID: base.ImageID})
	wantCode(t, err, ami.CodeInvalidParameterCombination)

	// A root without any configuration: nothing is launched.
	pvImage(t, r, image(t, r, "bare"), "bare-pv", PVBoot{})
	_, err = r.RunInstances(t.Context(), RunInstancesInput{Image: "bare-pv"})
	wantCode(t, err, ami.CodeUnsupportedOperation)
	wantSays(t, err, "pv-grub finds nothing to start")
	if left, _ := r.DescribeInstances(t.Context(), DescribeInput{}); len(left) != 1 {
		t.Errorf("%d instances are left, want the first alone", len(left))
	}
}

// A boot loader can start more than a hypervisor can.
func TestPickEntry(t *testing.T) {
	t.Parallel()
	r, _ := open(t)
	inst := ami.Instance{InstanceID: "i-0123456789abcdef0", Architecture: ami.ArchX8664}
	entry := func(title, format string, arch ami.Architecture, pvh bool) pvgrub.Entry {
		return pvgrub.Entry{Title: title, Kernel: pvgrub.File{Device: "(hd0)", Path: "/" + title, Format: format, Architecture: arch, PVH: pvh}}
	}
	bad := []pvgrub.Entry{
		entry("bare", pvgrub.FormatELF, ami.ArchX8664, false), entry("packed", pvgrub.FormatGzip, "", false),
		entry("arm", pvgrub.FormatBzImage, ami.ArchARM64, false),
	}
	for _, good := range []pvgrub.Entry{
		entry("good", pvgrub.FormatBzImage, ami.ArchX8664, false), entry("good", pvgrub.FormatELF, ami.ArchX8664, true), entry("good", pvgrub.FormatBzImage, ami.ArchI386, false),
	} {
		if got, err := r.pickEntry(inst, append(slices.Clone(bad), good, bad[0])); err != nil || got.Title != "good" {
			t.Errorf("got %q, %v, want the one that can be started", got.Title, err)
		}
	}
	_, err := r.pickEntry(inst, bad)
	for _, part := range []string{"(hd0)/bare", "without an entry for PVH", "in the form of gzip", "for arm64"} {
		wantSays(t, err, part)
	}
	inst.Architecture = ami.ArchI386
	_, err = r.pickEntry(inst, []pvgrub.Entry{entry("wide", pvgrub.FormatBzImage, ami.ArchX8664, false)})
	wantSays(t, err, "is for x86_64, and the guest is of i386")
}
