package hypervisor

import (
	"bufio"
	"fmt"
	"os"
	"runtime"
	"strings"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/machine"
)

// ProbeAccel says how guests are best run on this host, and why not with KVM.
// That /dev/kvm opens is not enough: a host whose processor has no
// virtualization shown may offer it, start guests, and hang them in protected
// mode.
func ProbeAccel() (accel machine.Accel, reason string) {
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return machine.AccelTCG, strings.TrimPrefix(err.Error(), "open ")
	}
	f.Close()
	if runtime.GOARCH != "amd64" {
		return machine.AccelKVM, ""
	}
	flags, err := cpuFlags()
	if err != nil {
		return machine.AccelTCG, fmt.Sprintf("the processor cannot be asked: %v", err)
	}
	if !flags["vmx"] && !flags["svm"] {
		return machine.AccelTCG, "/dev/kvm is there, but the processor shows neither vmx nor svm"
	}
	return machine.AccelKVM, ""
}

// Native says whether the processor of this host runs the instructions of guests of
// an architecture. Others are emulated, whatever the host has.
func Native(arch ami.Architecture) bool {
	switch runtime.GOARCH {
	case "amd64":
		return arch == ami.ArchX8664 || arch == ami.ArchI386
	case "arm64":
		return arch == ami.ArchARM64
	}
	return false
}

func cpuFlags() (map[string]bool, error) {
	f, err := os.Open("/proc/cpuinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	flags := map[string]bool{}
	for sc := bufio.NewScanner(f); sc.Scan(); {
		key, value, _ := strings.Cut(sc.Text(), ":")
		if strings.TrimSpace(key) != "flags" {
			continue
		}
		for _, flag := range strings.Fields(value) {
			flags[flag] = true
		}
		break
	}
	return flags, nil
}
