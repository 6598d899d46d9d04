package libvirt

import (
	"fmt"
	"strconv"

	"libvirt.org/go/libvirtxml"

	"github.com/kamivm/kami/pkg/machine"
)

// namespace marks what is kami's in a domain's metadata.
const namespace = "https://github.com/kamivm/kami/instance/1"

// DomainXML renders a spec as libvirt domain XML. It is pure: one device a
// step, and the same spec gives the same text.
func DomainXML(spec machine.Spec) (string, error) {
	d := &libvirtxml.Domain{
		Type: domainType(spec.Accel), Name: spec.Name, UUID: spec.UUID, Title: spec.Title,
		Metadata: &libvirtxml.DomainMetadata{XML: fmt.Sprintf(`<kami:instance xmlns:kami=%q id=%q/>`, namespace, spec.ID)},
		Memory:   &libvirtxml.DomainMemory{Value: uint(spec.MemoryMiB), Unit: "MiB"},
		VCPU:     &libvirtxml.DomainVCPU{Value: uint(spec.CPUs)},
		Clock:    &libvirtxml.DomainClock{Offset: "utc"},
		// A guest that powers itself off ends; that is how it is noticed.
		OnPoweroff: "destroy", OnReboot: "restart", OnCrash: "destroy",
		Devices: &libvirtxml.DomainDeviceList{},
	}
	if err := renderMachine(d, spec); err != nil {
		return "", err
	}
	renderCPU(d, spec)
	renderIdentity(d, spec)
	renderFirmware(d, spec)
	renderKernel(d, spec.Kernel)
	for i, disk := range spec.Disks {
		if spec.Kernel.Path != "" {
			disk = paravirtual(disk)
		}
		d.Devices.Disks = append(d.Devices.Disks, renderDisk(disk, i))
	}
	renderPorts(d, spec.Kernel.Path == "")
	renderNetwork(d, spec.Network)
	renderConsole(d, spec)
	renderAgent(d, spec)
	renderTPM(d, spec)
	renderRest(d)
	return d.Marshal()
}

func domainType(a machine.Accel) string {
	if a == machine.AccelKVM {
		return "kvm"
	}
	return "qemu"
}

func renderCPU(d *libvirtxml.Domain, spec machine.Spec) {
	switch {
	case spec.CPU != "":
		d.CPU = &libvirtxml.DomainCPU{Mode: "custom", Match: "exact", Check: "none", Model: &libvirtxml.DomainCPUModel{Value: spec.CPU}}
	case spec.Accel == machine.AccelKVM:
		d.CPU = &libvirtxml.DomainCPU{Mode: "host-passthrough"}
	default:
		d.CPU = &libvirtxml.DomainCPU{Mode: "maximum"}
	}
}

// renderIdentity tells the guest who it is: cloud-init takes a guest for one of
// EC2 when the uuid and the serial number are equal and begin with ec2.
func renderIdentity(d *libvirtxml.Domain, spec machine.Spec) {
	entry := func(name, value string) libvirtxml.DomainSysInfoEntry {
		return libvirtxml.DomainSysInfoEntry{Name: name, Value: value}
	}
	d.SysInfo = []libvirtxml.DomainSysInfo{{SMBIOS: &libvirtxml.DomainSysInfoSMBIOS{
		System: &libvirtxml.DomainSysInfoSystem{Entry: []libvirtxml.DomainSysInfoEntry{
			entry("manufacturer", "kami"), entry("product", "instance"),
			entry("serial", spec.UUID), entry("uuid", spec.UUID),
		}},
	}}}
}

// renderDisk renders the i-th disk. The whole chain of layers is written out, so
// that nothing is probed, and layers are shared, so their owner stays.
func renderDisk(disk machine.Disk, i int) libvirtxml.DomainDisk {
	out := libvirtxml.DomainDisk{
		Device: "disk",
		Driver: &libvirtxml.DomainDiskDriver{Name: "qemu", Type: string(disk.Format), Discard: "unmap"},
		Source: &libvirtxml.DomainDiskSource{File: &libvirtxml.DomainDiskSourceFile{File: disk.Path}},
		Target: &libvirtxml.DomainDiskTarget{Dev: targetName(i), Bus: "virtio"},
		Serial: disk.Serial,
	}
	out.Source.Encryption = renderKey(disk.Keys, disk.Path)
	if disk.ReadOnly {
		out.ReadOnly = &libvirtxml.DomainDiskReadOnly{}
	}
	if disk.CDROM {
		// Not SATA: Debian's cloud kernel has no driver for its controller.
		out.Device, out.Driver.Discard, out.Target = "cdrom", "", &libvirtxml.DomainDiskTarget{Dev: "sda", Bus: "scsi"}
		return out
	}
	if disk.Boot {
		out.Boot = &libvirtxml.DomainDeviceBoot{Order: 1}
	}
	if disk.Format == machine.FormatQCOW2 {
		out.BackingStore = renderBacking(disk.Backing, disk.Keys)
	}
	return out
}

func renderBacking(layers []string, keys map[string]machine.Key) *libvirtxml.DomainDiskBackingStore {
	if len(layers) == 0 {
		return &libvirtxml.DomainDiskBackingStore{} // the end of the chain
	}
	return &libvirtxml.DomainDiskBackingStore{
		Format: &libvirtxml.DomainDiskFormat{Type: "qcow2"},
		Source: &libvirtxml.DomainDiskSource{File: &libvirtxml.DomainDiskSourceFile{
			File:     layers[0],
			SecLabel: []libvirtxml.DomainDeviceSecLabel{{Model: "dac", Relabel: "no"}},
		}, Encryption: renderKey(keys, layers[0])},
		BackingStore: renderBacking(layers[1:], keys),
	}
}

// renderKey names the secret that opens the file at path, if it is encrypted.
func renderKey(keys map[string]machine.Key, path string) *libvirtxml.DomainDiskEncryption {
	key, ok := keys[path]
	if !ok {
		return nil
	}
	return encryption(key)
}

func encryption(key machine.Key) *libvirtxml.DomainDiskEncryption {
	return &libvirtxml.DomainDiskEncryption{Format: "luks", Secrets: []libvirtxml.DomainDiskSecret{{Type: "passphrase", UUID: key.ID}}}
}

func targetName(i int) string {
	name := ""
	for i++; i > 0; i = (i - 1) / 26 {
		name = string(rune('a'+(i-1)%26)) + name
	}
	return "vd" + name
}

// renderPorts leaves free PCI Express ports for disks plugged in later. With cdrom
// there is a controller for one.
func renderPorts(d *libvirtxml.Domain, cdrom bool) {
	index := func(i uint) *uint { return &i }
	d.Devices.Controllers = append(d.Devices.Controllers, libvirtxml.DomainController{Type: "pci", Index: index(0), Model: "pcie-root"})
	for i := range uint(16) {
		d.Devices.Controllers = append(d.Devices.Controllers, libvirtxml.DomainController{Type: "pci", Index: index(i + 1), Model: "pcie-root-port"})
	}
	if cdrom {
		d.Devices.Controllers = append(d.Devices.Controllers, libvirtxml.DomainController{Type: "scsi", Index: index(0), Model: "virtio-scsi"})
	}
	d.Devices.Controllers = append(d.Devices.Controllers, libvirtxml.DomainController{Type: "usb", Model: "none"})
}

// renderNetwork gives the guest its interface. libvirt 9 knows no port forward
// for user networking, so that interface is given to QEMU by itself.
func renderNetwork(d *libvirtxml.Domain, n machine.Network) {
	if n.Name != "" {
		d.Devices.Interfaces = []libvirtxml.DomainInterface{{
			MAC:    &libvirtxml.DomainInterfaceMAC{Address: n.MAC},
			Source: &libvirtxml.DomainInterfaceSource{Network: &libvirtxml.DomainInterfaceSourceNetwork{Network: n.Name}},
			Model:  &libvirtxml.DomainInterfaceModel{Type: "virtio"},
		}}
		return
	}
	netdev := "user,id=kami0"
	if n.Hostname != "" {
		netdev += ",hostname=" + n.Hostname
	}
	if n.SSHPort != 0 {
		netdev += ",hostfwd=tcp:127.0.0.1:" + strconv.Itoa(n.SSHPort) + "-:22"
	}
	device := "virtio-net-pci,netdev=kami0,mac=" + n.MAC + ",bus=pcie.0,addr=0x10,romfile="
	d.QEMUCommandline = &libvirtxml.DomainQEMUCommandline{}
	for _, arg := range []string{"-netdev", netdev, "-device", device} {
		d.QEMUCommandline.Args = append(d.QEMUCommandline.Args, libvirtxml.DomainQEMUCommandlineArg{Value: arg})
	}
}

// renderConsole keeps the console that the guest writes to.
func renderConsole(d *libvirtxml.Domain, spec machine.Spec) {
	port := uint(0)
	c := spec.Console
	if spec.Kernel.VirtioConsole() {
		d.Devices.Consoles = []libvirtxml.DomainConsole{{
			Source: &libvirtxml.DomainChardevSource{Pty: &libvirtxml.DomainChardevSourcePty{}},
			Target: &libvirtxml.DomainConsoleTarget{Type: "virtio", Port: &port},
			Log:    &libvirtxml.DomainChardevLog{File: c.Log, Append: "on"},
		}}
		return
	}
	d.Devices.Serials = []libvirtxml.DomainSerial{{
		Source: &libvirtxml.DomainChardevSource{Pty: &libvirtxml.DomainChardevSourcePty{}},
		Target: serialTarget(spec.Arch, &port),
		Log:    &libvirtxml.DomainChardevLog{File: c.Log, Append: "on"},
	}}
}

func renderAgent(d *libvirtxml.Domain, spec machine.Spec) {
	if !spec.Agent {
		return
	}
	d.Devices.Channels = []libvirtxml.DomainChannel{{
		Source: &libvirtxml.DomainChardevSource{UNIX: &libvirtxml.DomainChardevSourceUNIX{Mode: "bind", Path: spec.AgentSocket}},
		Target: &libvirtxml.DomainChannelTarget{VirtIO: &libvirtxml.DomainChannelTargetVirtIO{Name: "org.qemu.guest_agent.0"}},
	}}
}

func renderRest(d *libvirtxml.Domain) {
	d.Devices.RNGs = []libvirtxml.DomainRNG{{
		Model:   "virtio",
		Backend: &libvirtxml.DomainRNGBackend{Random: &libvirtxml.DomainRNGBackendRandom{Device: "/dev/urandom"}},
	}}
	d.Devices.MemBalloon = &libvirtxml.DomainMemBalloon{Model: "none"}
}
