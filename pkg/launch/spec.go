package launch

import (
	"errors"
	"fmt"
	"strings"

	"github.com/google/uuid"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/machine"
)

// Plan is an instance and where its parts lie on this host. Paths are absolute.
type Plan struct {
	Instance   ami.Instance
	Disks      []Disk // root first
	Seed       string
	NVRAM      string         // for UEFI
	SecureBoot bool           // by what is in NVRAM
	TPMState   string         // folder, for a TPM
	Kernel     machine.Kernel // of a paravirtual instance
	ConsoleLog string
	Accel      machine.Accel
	SSHPort    int // on 127.0.0.1, with user networking
	// Metadata is the program that answers for the metadata service, nil for none.
	Metadata []string
	// AgentSocket is a short path for the guest agent's channel, "" to let the
	// hypervisor choose one.
	AgentSocket string
}

// Disk is a volume behind a device name.
type Disk struct {
	Device   string
	VolumeID ami.VolumeID
	Path     string
	Backing  []string // nearest first
	Keys     map[string]machine.Key
}

// emulatedARM is the processor of an emulated arm64 guest: that of the first ones of
// EC2. The most that QEMU can emulate takes several times as long, for it signs
// every pointer.
const emulatedARM = "cortex-a72"

// BuildSpec turns a plan into a machine.
func BuildSpec(p Plan) (machine.Spec, error) {
	if len(p.Disks) == 0 {
		return machine.Spec{}, errors.New("an instance without disks cannot boot")
	}
	inst := p.Instance
	spec := Identity(inst, p.Accel)
	spec.Network = machine.Network{MAC: inst.MAC, Name: inst.Network, SSHPort: p.SSHPort, Hostname: inst.Hostname, Metadata: p.Metadata}
	spec.Console = machine.Console{Log: p.ConsoleLog}
	spec.Agent, spec.AgentSocket = true, p.AgentSocket
	if inst.VirtualizationType == ami.VirtualizationParavirtual {
		if p.Kernel.Path == "" {
			return machine.Spec{}, errors.New("a paravirtual instance without a kernel cannot boot")
		}
		spec.Kernel = p.Kernel
	} else if inst.CurrentBootMode == ami.BootUEFI {
		spec.Firmware = machine.Firmware{UEFI: true, SecureBoot: p.SecureBoot, NVRAM: p.NVRAM}
	}
	if inst.TpmSupport != "" {
		spec.TPMState = p.TPMState
	}
	if spec.Arch == ami.ArchARM64 && spec.Accel == machine.AccelTCG {
		spec.CPU = emulatedARM
	}
	for _, d := range p.Disks {
		md := MachineDisk(d)
		md.Boot = ami.DeviceKey(d.Device) == ami.DeviceKey(inst.RootDeviceName)
		spec.Disks = append(spec.Disks, md)
	}
	if p.Seed != "" {
		spec.Disks = append(spec.Disks, machine.Disk{Device: "seed", Path: p.Seed, Format: machine.FormatRaw, ReadOnly: true, CDROM: true})
	}
	return spec, nil
}

// Identity is who a machine is and how large, without anything that it has.
func Identity(inst ami.Instance, accel machine.Accel) machine.Spec {
	return machine.Spec{
		ID: inst.InstanceID, Name: "kami-" + string(inst.InstanceID), UUID: UUID(inst.InstanceID),
		CPUs: inst.CPUs, MemoryMiB: inst.MemoryMiB, Arch: inst.Architecture, Accel: accel,
		Title: fmt.Sprintf("%s of %s", inst.InstanceID, inst.ImageID),
	}
}

// MachineDisk is a volume as a guest's disk.
func MachineDisk(d Disk) machine.Disk {
	return machine.Disk{
		Device: d.Device, Serial: strings.ReplaceAll(string(d.VolumeID), "-", ""),
		Path: d.Path, Format: machine.FormatQCOW2, Backing: d.Backing, Keys: d.Keys,
	}
}

// UUID is the SMBIOS uuid of an instance. It begins with ec2, by which
// cloud-init takes the guest for one of EC2, and stays the same over restarts.
func UUID(id ami.InstanceID) string {
	return "ec2" + uuid.NewSHA1(uuid.NameSpaceOID, []byte("kami/"+string(id))).String()[3:]
}

// NewMAC returns a random address in QEMU's range.
func NewMAC() string {
	u := uuid.New()
	return fmt.Sprintf("52:54:00:%02x:%02x:%02x", u[0], u[1], u[2])
}

// Hostname is the name that a guest has when none was asked for.
func Hostname(id ami.InstanceID) string { return string(id) }
