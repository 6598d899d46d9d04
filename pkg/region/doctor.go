package region

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/kamivm/kami/pkg/hypervisor"
	"github.com/kamivm/kami/pkg/hypervisor/libvirt"
	"github.com/kamivm/kami/pkg/hypervisor/qemu"
	"github.com/kamivm/kami/pkg/machine"
)

// Doctor looks at the host and says of each thing that kami needs whether it is
// well, and how to mend it. It changes nothing and needs no region.
func Doctor(ctx context.Context, opts Options) []Check {
	checks := []Check{checkKVM(), checkKVMForQEMU()}
	lv, uri := checkLibvirt(ctx, opts)
	checks = append(checks, lv, checkFirmware())
	for _, t := range tools {
		checks = append(checks, checkTool(t))
	}
	checks = append(checks, checkGuests(ctx, opts)...)
	return append(checks, checkNamespaces(), checkHome(opts.Home), checkPassable(opts.Home, uri), checkSpace(opts.Home))
}

func checkKVM() Check {
	accel, why := hypervisor.ProbeAccel()
	if accel == machine.AccelKVM {
		return Check{Name: "kvm", Status: CheckOK, Detail: "usable"}
	}
	c := Check{Name: "kvm", Status: CheckWarning, Detail: why + "; guests are emulated, and slower"}
	_, err := os.Stat("/dev/kvm")
	switch f, oerr := os.OpenFile("/dev/kvm", os.O_RDWR, 0); {
	case err != nil:
		c.Mend = "modprobe kvm_intel || modprobe kvm_amd; inside a virtual machine, enable nested virtualization on its host"
	case oerr != nil:
		c.Mend = "usermod -aG kvm $USER, then log in again"
	default:
		f.Close()
		c.Mend = "enable VT-x or AMD-V in the firmware, or nested virtualization on the host of this machine"
	}
	return c
}

// checkKVMForQEMU finds the trap that makes libvirt probe QEMU anew, for about
// a minute, at every start: the device exists, but the user that the system's
// libvirt runs QEMU as cannot open it.
func checkKVMForQEMU() Check {
	c := Check{Name: "kvm for libvirt", Status: CheckOK, Detail: "nothing stands in libvirt's way"}
	info, err := os.Stat("/dev/kvm")
	if err != nil {
		c.Detail = "no /dev/kvm, so libvirt does not try it"
		return c
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	conf, _ := os.ReadFile("/etc/libvirt/qemu.conf")
	asRoot := strings.Contains("\n"+string(conf), "\nuser = \"root\"")
	worldOpen := info.Mode().Perm()&0o006 == 0o006
	groupOpen := ok && info.Mode().Perm()&0o060 == 0o060 && st.Gid != 0
	if os.Getuid() != 0 || asRoot || worldOpen || groupOpen {
		return c
	}
	return Check{
		Name: c.Name, Status: CheckWarning,
		Detail: fmt.Sprintf("/dev/kvm is %04o, so QEMU under qemu:///system cannot open it and each start takes over a minute", info.Mode().Perm()),
		Mend:   "chgrp kvm /dev/kvm && chmod 0660 /dev/kvm",
	}
}

// checkLibvirt also says where libvirt was found, "" for nowhere.
func checkLibvirt(ctx context.Context, opts Options) (Check, string) {
	c := Check{Name: "libvirt", Status: CheckFailed, Mend: "apt-get install libvirt-daemon-system libvirt-clients; for qemu:///system also: systemctl start libvirtd"}
	instead := ""
	if DriverFits(qemu.Name, opts.Connect) && opts.Driver != libvirt.Name {
		if _, err := qemu.Open(opts.Home); err == nil {
			c.Status, instead = CheckWarning, "; guests are run without it, by the driver "+qemu.Name
		}
	}
	if opts.Driver == qemu.Name || qemu.IsURI(opts.Connect) {
		return Check{Name: c.Name, Status: CheckOK, Detail: "not asked for: the driver is " + qemu.Name}, ""
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	d, err := libvirt.Open(ctx, opts.Connect)
	if err != nil {
		c.Detail = firstLine(err) + instead
		return c, ""
	}
	defer d.Close()
	caps, err := d.Capabilities(ctx)
	if err != nil {
		c.Detail = firstLine(err)
		return c, ""
	}
	return Check{
		Name: "libvirt", Status: CheckOK,
		Detail: fmt.Sprintf("%s answers (libvirt %s, QEMU %s)", d.URI(), caps.LibVersion, caps.HypervisorVersion),
	}, d.URI()
}

func checkFirmware() Check {
	if hasUEFI() {
		return Check{Name: "uefi firmware", Status: CheckOK, Detail: "installed"}
	}
	return Check{
		Name: "uefi firmware", Status: CheckWarning, Detail: "none found: images that ask for UEFI cannot be launched",
		Mend: "apt-get install ovmf",
	}
}

// tool is a program that kami starts, and what for.
type tool struct{ name, use, pkg string }

var tools = [...]tool{
	{"qemu-system-x86_64", "runs guests", "qemu-system-x86"},
	{"qemu-img", "reads vmdk, vhd and vhdx", "qemu-utils"},
	{"ssh", "kami ssh", "openssh-client"},
	{"mmdebstrap", "kami build of Debian", "mmdebstrap"},
	{"mke2fs", "kami build", "e2fsprogs"},
	{"cpio", "kami build tiny", "cpio"},
	{"mkfs.vfat", "kami build", "dosfstools"},
	{"mcopy", "kami build", "mtools"},
	{"grub-mkimage", "kami build", "grub-common grub-pc-bin grub-efi-amd64-bin"},
}

func checkTool(t tool) Check {
	path, err := exec.LookPath(t.name)
	if err != nil { // tools of the administrator are not in everybody's path
		for _, dir := range []string{"/usr/sbin", "/sbin"} {
			if _, serr := os.Stat(filepath.Join(dir, t.name)); serr == nil {
				path, err = filepath.Join(dir, t.name), nil
			}
		}
	}
	if err == nil {
		return Check{Name: t.name, Status: CheckOK, Detail: path}
	}
	c := Check{Name: t.name, Status: CheckWarning, Detail: "not found; needed for: " + t.use, Mend: "apt-get install " + t.pkg}
	if t.name == "qemu-system-x86_64" {
		c.Status = CheckFailed
	}
	return c
}

func checkHome(home string) Check {
	c := Check{Name: "home", Status: CheckOK, Detail: home + " can be written"}
	dir := home
	for { // what is not there yet is made under the nearest folder that is
		info, err := os.Stat(dir)
		if err == nil && !info.IsDir() {
			return Check{Name: c.Name, Status: CheckFailed, Detail: dir + " is not a folder", Mend: "choose another home with --home or KAMI_HOME"}
		}
		if err == nil || dir == filepath.Dir(dir) {
			break
		}
		if !errors.Is(err, os.ErrNotExist) && !errors.Is(err, syscall.ENOTDIR) {
			break
		}
		dir = filepath.Dir(dir)
	}
	const writable = 2 // W_OK
	if err := syscall.Access(dir, writable); err != nil {
		return Check{Name: c.Name, Status: CheckFailed, Detail: fmt.Sprintf("%s cannot be written: %v", dir, err), Mend: "choose another home with --home or KAMI_HOME"}
	}
	return c
}

// checkNamespaces finds whether an ordinary user can build: as many users as a
// system has are mapped into the build by /etc/subuid.
func checkNamespaces() Check {
	c := Check{Name: "building rootless", Status: CheckOK, Detail: "not needed: this is root"}
	if os.Getuid() == 0 {
		return c
	}
	me, err := user.Current()
	if err != nil {
		return Check{Name: c.Name, Status: CheckWarning, Detail: "this user has no name: " + err.Error()}
	}
	if _, err := exec.LookPath("newuidmap"); err != nil {
		return Check{Name: c.Name, Status: CheckWarning, Detail: "newuidmap is not found: kami build needs it", Mend: "apt-get install uidmap"}
	}
	for _, file := range []string{"/etc/subuid", "/etc/subgid"} {
		b, _ := os.ReadFile(file)
		if !strings.Contains("\n"+string(b), "\n"+me.Username+":") {
			return Check{
				Name: c.Name, Status: CheckWarning, Detail: file + " has nothing for " + me.Username + ": kami build cannot make a system's users",
				Mend: "usermod --add-subuids 100000-165535 --add-subgids 100000-165535 " + me.Username,
			}
		}
	}
	c.Detail = "users can be mapped"
	return c
}

// checkPassable finds whether the user that the system's libvirt runs QEMU as
// can reach the guests' disks.
func checkPassable(home, uri string) Check {
	c := Check{Name: "home for libvirt", Status: CheckOK, Detail: "guests run as this user"}
	if uri != libvirt.System {
		return c
	}
	c.Detail = "QEMU's user can reach it"
	for dir := home; dir != filepath.Dir(dir); dir = filepath.Dir(dir) {
		if info, err := os.Stat(dir); err == nil && info.Mode().Perm()&0o001 == 0 {
			return Check{
				Name: c.Name, Status: CheckFailed, Detail: fmt.Sprintf("%s is %04o: guests of qemu:///system run as another user, who cannot pass through it", dir, info.Mode().Perm()),
				Mend: "chmod o+x " + dir + ", or choose another home with --home or KAMI_HOME",
			}
		}
	}
	return c
}

// lowSpace is where the doctor begins to worry, in bytes: a Debian build needs
// about this much.
const lowSpace = 5 << 30

func checkSpace(home string) Check {
	dir := home
	var st syscall.Statfs_t
	for syscall.Statfs(dir, &st) != nil {
		if dir == filepath.Dir(dir) {
			return Check{Name: "disk space", Status: CheckFailed, Detail: home + " cannot be looked at"}
		}
		dir = filepath.Dir(dir)
	}
	free := int64(st.Bavail) * st.Bsize
	c := Check{Name: "disk space", Status: CheckOK, Detail: fmt.Sprintf("%.1f GiB free at %s", float64(free)/gib, dir)}
	if free < lowSpace {
		c.Status, c.Mend = CheckWarning, "kami store gc, or choose another home with --home or KAMI_HOME"
	}
	return c
}
