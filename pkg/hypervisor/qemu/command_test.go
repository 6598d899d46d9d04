package qemu

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/machine"
)

var update = flag.Bool("update", false, "write the golden files anew")

// testSpec is a guest with all that most have.
func testSpec() machine.Spec {
	return machine.Spec{
		ID: "i-0123456789abcdef0", Name: "kami-i-0123456789abcdef0", UUID: "ec2e1916-9099-7caf-fd21-012345abcdef",
		CPUs: 2, MemoryMiB: 1024, Arch: ami.ArchX8664, Accel: machine.AccelTCG, Title: "i-0123456789abcdef0 of ami-0123456789abcdef0",
		Disks: []machine.Disk{
			{Device: "/dev/sda1", Serial: "vol0123456789abcdef0", Path: "/kami/volumes/root.qcow2", Format: machine.FormatQCOW2, Boot: true, Backing: []string{"/kami/layers/b.qcow2", "/kami/layers/a.qcow2"}},
			{Device: "seed", Path: "/kami/seed.iso", Format: machine.FormatRaw, ReadOnly: true, CDROM: true},
		},
		Network: machine.Network{MAC: "52:54:00:12:34:56", SSHPort: 2222, Hostname: "web"},
		Console: machine.Console{Log: "/kami/console.log"}, Agent: true,
	}
}

// testHost is a host that has everything.
func testHost() host { return host{program: "/usr/bin/qemu-system-x86_64", tscKHz: 2596157} }

const secretText = "not to be seen"

func TestCommand(t *testing.T) {
	arm := func(s *machine.Spec, h *host) {
		s.Arch, h.program = ami.ArchARM64, "/usr/bin/qemu-system-aarch64"
		h.firmware = firmware{"/usr/share/AAVMF/AAVMF_CODE.fd", "raw", "/usr/share/AAVMF/AAVMF_VARS.fd", "raw"}
		s.Firmware = machine.Firmware{UEFI: true, NVRAM: "/kami/nvram.fd"}
	}
	tests := []struct {
		name   string
		change func(*machine.Spec, *host)
	}{
		{"bios", func(*machine.Spec, *host) {}},
		{"kvm", func(s *machine.Spec, _ *host) { s.Accel = machine.AccelKVM }},
		{"cpu-model", func(s *machine.Spec, _ *host) { s.CPU = "qemu64" }},
		{"uefi", func(s *machine.Spec, h *host) {
			h.firmware = firmware{"/usr/share/OVMF/OVMF_CODE_4M.fd", "raw", "/usr/share/OVMF/OVMF_VARS_4M.fd", "raw"}
			s.Firmware = machine.Firmware{UEFI: true, NVRAM: "/kami/nvram.fd"}
		}},
		{"secure-boot", func(s *machine.Spec, h *host) {
			h.firmware = firmware{"/usr/share/OVMF/OVMF_CODE_4M.ms.fd", "raw", "/usr/share/OVMF/OVMF_VARS_4M.ms.fd", "raw"}
			s.Firmware = machine.Firmware{UEFI: true, SecureBoot: true, NVRAM: "/kami/nvram.fd"}
		}},
		{"tpm", func(s *machine.Spec, _ *host) { // behind an encrypted disk's key
			s.TPMState, s.Disks[0].Keys = "/kami/tpm", map[string]machine.Key{s.Disks[0].Path: {ID: "0b6f1c56-9c0a-4e6c-8f0e-5a8f4f6f3f11", Passphrase: []byte(secretText)}}
		}},
		{"arm64-tpm", func(s *machine.Spec, h *host) {
			arm(s, h)
			s.CPU, s.TPMState = "cortex-a72", "/kami/tpm"
		}},
		{"i386", func(s *machine.Spec, h *host) { s.Arch, h.program = ami.ArchI386, "/usr/bin/qemu-system-i386" }},
		{"arm64", arm},
		{"kernel", func(s *machine.Spec, _ *host) {
			s.Kernel = machine.Kernel{Path: "/kami/kernel", Initrd: "/kami/initrd", Cmdline: `root=/dev/vda ro console=ttyS0 a="<b>" 'c' &`}
		}},
		{"kernel-hvc", func(s *machine.Spec, _ *host) { // no ramdisk, and the console on virtio
			s.Kernel = machine.Kernel{Path: "/kami/kernel", Cmdline: "root=/dev/vda ro console=hvc0"}
		}},
		{"kernel-kvm", func(s *machine.Spec, h *host) {
			s.Accel, h.tscKHz, s.Kernel = machine.AccelKVM, 0, machine.Kernel{Path: "/kami/kernel"}
		}},
		{"volumes", func(s *machine.Spec, _ *host) {
			s.Disks = append(
				s.Disks[:1:1],
				machine.Disk{Device: "/dev/sdf", Serial: "vol1", Path: "/kami/volumes/data.qcow2", Format: machine.FormatQCOW2},
				machine.Disk{Device: "/dev/sdg", Serial: "vol2", Path: "/kami/volumes/raw", Format: machine.FormatRaw, ReadOnly: true},
			)
		}},
		{"encrypted", func(s *machine.Spec, _ *host) { // over layers of which only one is
			key := machine.Key{ID: "0b6f1c56-9c0a-4e6c-8f0e-5a8f4f6f3f11", Passphrase: []byte(secretText)}
			s.Disks[0].Keys = map[string]machine.Key{s.Disks[0].Path: key, "/kami/layers/b.qcow2": key}
		}},
		{"bare", func(s *machine.Spec, _ *host) {
			s.Title, s.Agent, s.Disks, s.Network = "", false, s.Disks[:1], machine.Network{MAC: s.Network.MAC}
		}},
		{"metadata", func(s *machine.Spec, _ *host) {
			s.Network.Metadata = []string{"/opt/it's here/kami", "--home", "/a, b", "imds", "serve"}
		}},
		{"hostile", func(s *machine.Spec, _ *host) {
			s.Disks[0].Path, s.Console.Log = `/kami/a,b"'<c>&.qcow2`, "/kami/a,file=b.log"
			s.Network.Hostname = "a,hostfwd=tcp::1-:1"
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s, h := testSpec(), testHost()
			tt.change(&s, &h)
			render := func() string {
				c, err := newCommand(s, h, "/kami/instances/i-0123456789abcdef0/qemu")
				if err != nil {
					t.Fatal(err)
				}
				return c.String()
			}
			got := render()
			path := filepath.Join("testdata", tt.name+".argv")
			if *update {
				if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatalf("%v (go test -update writes it)", err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("%s (-want +got):\n%s", path, diff)
			}
			if render() != got {
				t.Error("the same spec gives another command")
			}
			if strings.Contains(got, secretText) {
				t.Error("the command tells a passphrase")
			}
		})
	}
}

func TestCommandRefusesNetworks(t *testing.T) {
	s := testSpec()
	s.Network.Name = "default"
	if _, err := newCommand(s, testHost(), "/run"); err == nil || !strings.Contains(err.Error(), "default") {
		t.Errorf("a guest on a network of the host's: %v, want an error that names it", err)
	}
}

func TestComplaint(t *testing.T) {
	for said, want := range map[string]string{
		"": "",
		"qemu-system-x86_64: warning: TCG doesn't support requested feature\n":                                "",
		"qemu-system-x86_64: -blockdev {}: Could not open 'x': No such file or directory\n":                   "-blockdev {}: Could not open 'x': No such file or directory",
		"qemu-system-x86_64: warning: a\nqemu-system-x86_64: b\n  c\n":                                        "b; c",
		"qemu-system-i386: Could not set up host forwarding rule 'tcp:127.0.0.1:1-:22'\n(process:1): x: y \n": "Could not set up host forwarding rule 'tcp:127.0.0.1:1-:22'; (process:1): x: y",
	} {
		if got := complaint(said); got != want {
			t.Errorf("complaint(%q) = %q, want %q", said, got, want)
		}
	}
}
