package qemu

import (
	"errors"
	"fmt"
	"os/exec"
	"runtime"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/hypervisor"
	"github.com/kamivm/kami/pkg/machine"
)

// host is what a guest's command has to know of the host.
type host struct {
	program  string   // QEMU's path
	firmware firmware // for UEFI
	tscKHz   int64    // of the processor's time stamp counter, where a guest has to be told
}

// lookAt finds what the host has for a guest.
func (d *Driver) lookAt(spec machine.Spec) (h host, err error) {
	if h.program, err = program(spec.Arch); err != nil {
		return h, err
	}
	if spec.TPMState != "" {
		if err := hypervisor.ProbeTPM(); err != nil {
			return h, err
		}
	}
	switch {
	case spec.Kernel.Path != "":
		if spec.Accel == machine.AccelTCG && spec.Arch != ami.ArchARM64 {
			h.tscKHz = d.tscKHz()
		}
	case spec.Firmware.UEFI:
		h.firmware, err = findFirmware(spec.Arch, spec.Firmware.SecureBoot)
	}
	return h, err
}

// program finds the QEMU for guests of an architecture.
func program(arch ami.Architecture) (string, error) {
	names := map[ami.Architecture][]string{
		ami.ArchX8664: {"qemu-system-x86_64"},
		ami.ArchI386:  {"qemu-system-i386", "qemu-system-x86_64"},
		ami.ArchARM64: {"qemu-system-aarch64"},
	}[arch]
	if len(names) == 0 {
		return "", fmt.Errorf("guests of architecture %s cannot be run by this driver", arch)
	}
	var errs []error
	for _, name := range names {
		path, err := exec.LookPath(name)
		if err == nil {
			return path, nil
		}
		errs = append(errs, err)
	}
	return "", fmt.Errorf("%w: guests of architecture %s cannot be run here: %w", hypervisor.ErrNoEmulator, arch, errors.Join(errs...))
}

func hostArchitecture() ami.Architecture {
	switch runtime.GOARCH {
	case "arm64":
		return ami.ArchARM64
	case "386":
		return ami.ArchI386
	}
	return ami.ArchX8664
}
