package launch

import (
	"testing"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/machine"
)

// TestMachinesOfOtherKinds says what becomes of an instance's architecture, firmware
// and TPM in its spec.
func TestMachinesOfOtherKinds(t *testing.T) {
	for _, tt := range []struct {
		name     string
		inst     ami.Instance
		accel    machine.Accel
		cpu      string
		firmware machine.Firmware
		tpm      string
	}{
		{"a PC", ami.Instance{Architecture: ami.ArchX8664, CurrentBootMode: ami.BootLegacyBIOS}, machine.AccelTCG, "", machine.Firmware{}, ""},
		{"Secure Boot and a TPM", ami.Instance{Architecture: ami.ArchX8664, CurrentBootMode: ami.BootUEFI, TpmSupport: ami.TPMv2}, machine.AccelKVM, "", machine.Firmware{UEFI: true, SecureBoot: true, NVRAM: "/n"}, "/t"},
		{"arm64", ami.Instance{Architecture: ami.ArchARM64, CurrentBootMode: ami.BootUEFI}, machine.AccelTCG, emulatedARM, machine.Firmware{UEFI: true, SecureBoot: true, NVRAM: "/n"}, ""},
		{"arm64 at home", ami.Instance{Architecture: ami.ArchARM64, CurrentBootMode: ami.BootUEFI}, machine.AccelKVM, "", machine.Firmware{UEFI: true, SecureBoot: true, NVRAM: "/n"}, ""},
	} {
		spec, err := BuildSpec(Plan{Instance: tt.inst, Accel: tt.accel, Disks: []Disk{{}}, NVRAM: "/n", SecureBoot: true, TPMState: "/t"})
		if err != nil {
			t.Fatal(err)
		}
		if spec.Arch != tt.inst.Architecture || spec.CPU != tt.cpu || spec.Firmware != tt.firmware || spec.TPMState != tt.tpm {
			t.Errorf("%s: got %+v", tt.name, spec)
		}
	}
}

func TestCheckType(t *testing.T) {
	for _, tt := range []struct {
		name string
		arch ami.Architecture
		ok   bool
	}{
		{"t3.micro", ami.ArchX8664, true},
		{"t3.micro", ami.ArchI386, true},
		{"t3.micro", ami.ArchARM64, false},
		{DefaultTypeFor(ami.ArchARM64), ami.ArchARM64, true},
		{"m7g.large", ami.ArchARM64, true},
		{"m7g.large", ami.ArchX8664, false},
		{"r6g.xlarge", ami.ArchI386, false},
	} {
		if _, err := Type(tt.name); err != nil {
			t.Error(err)
		}
		if err := CheckType(tt.name, tt.arch); (err == nil) != tt.ok || err != nil && ami.ErrorCode(err) != ami.CodeInvalidParameterValue {
			t.Errorf("%s for %s: %v", tt.name, tt.arch, err)
		}
	}
}
