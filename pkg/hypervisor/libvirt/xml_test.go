package libvirt

import (
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/hypervisor"
	"github.com/kamivm/kami/pkg/machine"
)

var update = flag.Bool("update", false, "write the golden files anew")

// golden compares text with testdata/name, which libvirt's own schema has to
// accept.
func golden(t *testing.T, schema, name, text string) {
	t.Helper()
	path := filepath.Join("testdata", name+".xml")
	if *update {
		if err := os.WriteFile(path, []byte(text+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v (go test -update writes it)", err)
	}
	if diff := cmp.Diff(string(want), text+"\n"); diff != "" {
		t.Errorf("%s (-want +got):\n%s", path, diff)
	}
	// virt-xml-validate reads a file by its name alone.
	given := filepath.Join(t.TempDir(), name+".xml")
	if err := os.WriteFile(given, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), "virt-xml-validate", given, schema).CombinedOutput(); err != nil {
		t.Errorf("libvirt's schema refuses %s: %v\n%s", name, err, out)
	}
}

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

func TestDomainXML(t *testing.T) {
	tests := []struct {
		name   string
		change func(*machine.Spec)
	}{
		{"bios", func(*machine.Spec) {}},
		{"kvm", func(s *machine.Spec) { s.Accel = machine.AccelKVM }},
		{"cpu-model", func(s *machine.Spec) { s.CPU = "qemu64" }},
		{"uefi", func(s *machine.Spec) { s.Firmware = machine.Firmware{UEFI: true, NVRAM: "/kami/nvram.fd"} }},
		{"secure-boot", func(s *machine.Spec) {
			s.Firmware, s.TPMState = machine.Firmware{UEFI: true, SecureBoot: true, NVRAM: "/kami/nvram.fd"}, "/kami/tpm"
		}},
		{"i386", func(s *machine.Spec) { s.Arch = ami.ArchI386 }},
		{"arm64", func(s *machine.Spec) {
			s.Arch, s.CPU, s.Firmware, s.TPMState = ami.ArchARM64, "cortex-a72", machine.Firmware{UEFI: true, NVRAM: "/kami/nvram.fd"}, "/kami/tpm"
		}},
		{"arm64-kvm", func(s *machine.Spec) {
			s.Arch, s.Accel, s.Firmware = ami.ArchARM64, machine.AccelKVM, machine.Firmware{UEFI: true, SecureBoot: true, NVRAM: "/kami/nvram.fd"}
		}},
		{"network", func(s *machine.Spec) { s.Network = machine.Network{MAC: "52:54:00:12:34:56", Name: "default"} }},
		{"volumes", func(s *machine.Spec) {
			s.Disks = append(
				s.Disks[:1:1],
				machine.Disk{Device: "/dev/sdf", Serial: "vol1", Path: "/kami/volumes/data.qcow2", Format: machine.FormatQCOW2},
				machine.Disk{Device: "/dev/sdg", Serial: "vol2", Path: "/kami/volumes/raw", Format: machine.FormatRaw, ReadOnly: true},
			)
		}},
		{"encrypted", func(s *machine.Spec) { // over layers of which only one is
			key := machine.Key{ID: "0b6f1c56-9c0a-4e6c-8f0e-5a8f4f6f3f11", Passphrase: []byte("not to be seen")}
			s.Disks[0].Keys = map[string]machine.Key{s.Disks[0].Path: key, "/kami/layers/b.qcow2": key}
		}},
		{"bare", func(s *machine.Spec) {
			s.Title, s.Agent, s.Disks, s.Network = "", false, s.Disks[:1], machine.Network{MAC: s.Network.MAC}
		}},
		{"kernel", func(s *machine.Spec) {
			s.Kernel = machine.Kernel{Path: "/kami/kernel", Initrd: "/kami/initrd", Cmdline: `root=/dev/vda ro console=ttyS0 a="<b>" 'c' &`}
		}},
		{"kernel-hvc", func(s *machine.Spec) { // no ramdisk, and the console on virtio
			s.Kernel = machine.Kernel{Path: "/kami/kernel", Cmdline: "root=/dev/vda ro console=hvc0"}
		}},
		{"agent-socket", func(s *machine.Spec) { s.AgentSocket = "/tmp/kami-0/i-0123456789abcdef0.agent" }},
		{"hostile", func(s *machine.Spec) {
			s.Title, s.Disks[0].Path = `"><evil/>&`, `/kami/a<b>'"&.qcow2`
			s.Disks[0].Backing = []string{"/kami/]]>.qcow2"}
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := testSpec()
			tt.change(&s)
			text, err := DomainXML(s)
			if err != nil {
				t.Fatal(err)
			}
			golden(t, "domain", tt.name, text)
			again, err := DomainXML(s)
			if err != nil || again != text {
				t.Errorf("the same spec gives another text: %v", err)
			}
		})
	}
}

func TestDomainXMLRefusesWhatItCannotRun(t *testing.T) {
	s := testSpec()
	s.Arch = "arm64_mac"
	if _, err := DomainXML(s); err == nil || !strings.Contains(err.Error(), "arm64_mac") {
		t.Errorf("a guest of a Mac: %v, want an error that names the architecture", err)
	}
}

// What libvirt forgets a guest's TPM by is a domain of its own.
func TestForgottenXML(t *testing.T) {
	s := testSpec()
	s.TPMState = "/kami/tpm"
	text, err := forgottenXML(s)
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "domain", "forgotten", text)
}

func TestTargetName(t *testing.T) {
	for i, want := range map[int]string{0: "vda", 1: "vdb", 25: "vdz", 26: "vdaa", 27: "vdab", 51: "vdaz", 52: "vdba", 701: "vdzz", 702: "vdaaa"} {
		if got := targetName(i); got != want {
			t.Errorf("targetName(%d) = %q, want %q", i, got, want)
		}
	}
}

func TestBackupXML(t *testing.T) {
	plan := []backupDisk{
		{BackupDisk: hypervisor.BackupDisk{Path: "/kami/root.qcow2", Bitmap: "kami-one"}, target: "vda", inJob: true},
		{BackupDisk: hypervisor.BackupDisk{Path: "/kami/data.qcow2"}, target: "vdb", inJob: true},
		{BackupDisk: hypervisor.BackupDisk{Path: "/kami/more.qcow2", Bitmap: "kami-two"}, target: "vdc", inJob: true},
		{target: "sda"},
	}
	text, err := backupXML(hypervisor.Backup{Next: "kami-next", SocketDir: "/tmp/kami-0/b", CopiesDir: "/kami/tmp/copies"}, plan)
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "domainbackup", "backup", text)
	if got, want := bitmapNames(plan), []string{"kami-one", "kami-two"}; !cmp.Equal(got, want) {
		t.Errorf("bitmapNames = %v, want %v", got, want)
	}
	text, err = checkpointXML("kami-one", plan, func(p backupDisk) bool { return p.Bitmap == "kami-one" })
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "domaincheckpoint", "checkpoint", text)
}
