package libvirt

import (
	"fmt"

	"libvirt.org/go/libvirtxml"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/machine"
)

// renderMachine chooses the machine of an architecture: a PC of PCI Express, or
// arm64's virt with an interrupt controller of its own.
func renderMachine(d *libvirtxml.Domain, spec machine.Spec) error {
	kind := map[ami.Architecture]libvirtxml.DomainOSType{
		ami.ArchX8664: {Arch: "x86_64", Machine: "q35", Type: "hvm"},
		ami.ArchI386:  {Arch: "i686", Machine: "q35", Type: "hvm"},
		ami.ArchARM64: {Arch: "aarch64", Machine: "virt", Type: "hvm"},
	}
	os, ok := kind[spec.Arch]
	if !ok {
		return fmt.Errorf("guests of architecture %s cannot be run by this driver", spec.Arch)
	}
	d.OS = &libvirtxml.DomainOS{Type: &os, SMBios: &libvirtxml.DomainSMBios{Mode: "sysinfo"}}
	d.Features = &libvirtxml.DomainFeatureList{ACPI: &libvirtxml.DomainFeature{}}
	if spec.Arch != ami.ArchARM64 {
		d.Features.APIC = &libvirtxml.DomainFeatureAPIC{}
		return nil
	}
	d.Features.GIC = &libvirtxml.DomainFeatureGIC{}
	if spec.Accel == machine.AccelTCG { // else it is the host's
		d.Features.GIC.Version = "3"
	}
	return nil
}

// renderFirmware has the guest boot by UEFI. Which firmware that is libvirt chooses by
// its features; one with Secure Boot guards the variables of a PC by system management
// mode, which the machine has to have then.
func renderFirmware(d *libvirtxml.Domain, spec machine.Spec) {
	if !spec.Firmware.UEFI {
		return
	}
	feature := libvirtxml.DomainOSFirmwareFeature{Enabled: "no", Name: "secure-boot"}
	if spec.Firmware.SecureBoot {
		feature.Enabled = "yes"
		if spec.Arch != ami.ArchARM64 {
			d.Features.SMM = &libvirtxml.DomainFeatureSMM{State: "on"}
			d.OS.Loader = &libvirtxml.DomainLoader{Secure: "yes"}
		}
	}
	d.OS.Firmware = "efi"
	d.OS.FirmwareInfo = &libvirtxml.DomainOSFirmwareInfo{Features: []libvirtxml.DomainOSFirmwareFeature{feature}}
	d.OS.NVRam = &libvirtxml.DomainNVRam{NVRam: spec.Firmware.NVRAM}
}

func serialTarget(arch ami.Architecture, port *uint) *libvirtxml.DomainSerialTarget {
	if arch == ami.ArchARM64 {
		return &libvirtxml.DomainSerialTarget{Type: "system-serial", Port: port, Model: &libvirtxml.DomainSerialTargetModel{Name: "pl011"}}
	}
	return &libvirtxml.DomainSerialTarget{Type: "isa-serial", Port: port}
}

// renderTPM gives the guest a TPM 2.0, for which libvirt runs swtpm. Where it keeps
// the state is libvirt's: beside its own, by the guest's uuid, until Forget.
func renderTPM(d *libvirtxml.Domain, spec machine.Spec) {
	if spec.TPMState != "" {
		d.Devices.TPMs = []libvirtxml.DomainTPM{tpm(spec.Arch)}
	}
}

func tpm(arch ami.Architecture) libvirtxml.DomainTPM {
	model := "tpm-crb"
	if arch == ami.ArchARM64 {
		model = "tpm-tis"
	}
	return libvirtxml.DomainTPM{Model: model, Backend: &libvirtxml.DomainTPMBackend{
		Emulator: &libvirtxml.DomainTPMBackendEmulator{Version: "2.0", PersistentState: "yes"},
	}}
}
