package launch

import (
	"regexp"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/machine"
)

const someInstance = ami.InstanceID("i-0123456789abcdef0")

func somePlan() Plan {
	return Plan{
		Instance: ami.Instance{
			InstanceID: someInstance, ImageID: "ami-0123456789abcdef0", Architecture: ami.ArchX8664, CPUs: 2, MemoryMiB: 1024,
			RootDeviceName: "/dev/sda1", MAC: "52:54:00:01:02:03", Hostname: "web", BootMode: ami.BootUEFIPreferred, CurrentBootMode: ami.BootLegacyBIOS,
		},
		Disks: []Disk{
			{Device: "/dev/sda1", VolumeID: "vol-0123456789abcdef0", Path: "/r/volumes/a.qcow2", Backing: []string{"/r/layers/b.qcow2", "/r/layers/c.qcow2"}},
			{Device: "/dev/sdb", VolumeID: "vol-0123456789abcdef1", Path: "/r/volumes/d.qcow2"},
		},
		Seed: "/r/instances/i/seed.iso", NVRAM: "/r/instances/i/nvram", ConsoleLog: "/r/instances/i/console.log",
		Accel: machine.AccelKVM, SSHPort: 2222,
	}
}

func someSpec() machine.Spec {
	return machine.Spec{
		ID: someInstance, Name: "kami-i-0123456789abcdef0", UUID: UUID(someInstance), CPUs: 2, MemoryMiB: 1024,
		Arch: ami.ArchX8664, Accel: machine.AccelKVM,
		Disks: []machine.Disk{
			{
				Device: "/dev/sda1", Serial: "vol0123456789abcdef0", Path: "/r/volumes/a.qcow2", Format: machine.FormatQCOW2,
				Backing: []string{"/r/layers/b.qcow2", "/r/layers/c.qcow2"}, Boot: true,
			},
			{Device: "/dev/sdb", Serial: "vol0123456789abcdef1", Path: "/r/volumes/d.qcow2", Format: machine.FormatQCOW2},
			{Device: "seed", Path: "/r/instances/i/seed.iso", Format: machine.FormatRaw, ReadOnly: true, CDROM: true},
		},
		Network: machine.Network{MAC: "52:54:00:01:02:03", SSHPort: 2222, Hostname: "web"},
		Console: machine.Console{Log: "/r/instances/i/console.log"},
		Agent:   true, Title: "i-0123456789abcdef0 of ami-0123456789abcdef0",
	}
}

func TestBuildSpec(t *testing.T) {
	tests := []struct {
		name string
		plan func(*Plan)
		want func(*machine.Spec)
	}{
		{"legacy BIOS", func(*Plan) {}, func(*machine.Spec) {}},
		{
			"paravirtual: a kernel, and no firmware whatever the record says",
			func(p *Plan) {
				p.Instance.VirtualizationType, p.Instance.CurrentBootMode = ami.VirtualizationParavirtual, ami.BootUEFI
				p.Kernel = machine.Kernel{Path: "/r/instances/i/kernel", Cmdline: "root=/dev/vda"}
			},
			func(s *machine.Spec) {
				s.Kernel = machine.Kernel{Path: "/r/instances/i/kernel", Cmdline: "root=/dev/vda"}
			},
		},
		{"hvm: no kernel", func(p *Plan) { p.Kernel.Path = "/k" }, func(*machine.Spec) {}},
		{
			"a metadata service, and no seed",
			func(p *Plan) { p.Metadata, p.Seed = []string{"/bin/kami", "imds"}, "" },
			func(s *machine.Spec) { s.Network.Metadata, s.Disks = []string{"/bin/kami", "imds"}, s.Disks[:2] },
		},
		{
			"UEFI: what the instance boots with counts, not what the image asks for",
			func(p *Plan) { p.Instance.CurrentBootMode = ami.BootUEFI },
			func(s *machine.Spec) { s.Firmware = machine.Firmware{UEFI: true, NVRAM: "/r/instances/i/nvram"} },
		},
		{"no seed", func(p *Plan) { p.Seed = "" }, func(s *machine.Spec) { s.Disks = s.Disks[:2] }},
		{"no port", func(p *Plan) { p.SSHPort = 0 }, func(s *machine.Spec) { s.Network.SSHPort = 0 }},
		{"emulated", func(p *Plan) { p.Accel = machine.AccelTCG }, func(s *machine.Spec) { s.Accel = machine.AccelTCG }},
		{
			"the root's name in the other spelling",
			func(p *Plan) { p.Disks[0].Device = "sda1" },
			func(s *machine.Spec) { s.Disks[0].Device = "sda1" },
		},
		{
			"the root is not the first",
			func(p *Plan) { p.Instance.RootDeviceName = "/dev/sdb" },
			func(s *machine.Spec) { s.Disks[0].Boot, s.Disks[1].Boot = false, true },
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			plan, want := somePlan(), someSpec()
			tt.plan(&plan)
			tt.want(&want)
			got, err := BuildSpec(plan)
			if err != nil {
				t.Fatalf("got %v, want no error", err)
			}
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("spec (-want +got):\n%s", d)
			}
		})
	}
}

func TestBuildSpecWithoutDisks(t *testing.T) {
	plan := somePlan()
	plan.Disks = nil
	if got, err := BuildSpec(plan); err == nil {
		t.Errorf("got %+v, want an error", got)
	}
}

func TestBuildSpecWithoutKernel(t *testing.T) {
	plan := somePlan()
	plan.Instance.VirtualizationType = ami.VirtualizationParavirtual
	if got, err := BuildSpec(plan); err == nil {
		t.Errorf("got %+v, want an error", got)
	}
}

func TestUUID(t *testing.T) {
	form := regexp.MustCompile(`^ec2[0-9a-f]{5}-[0-9a-f]{4}-5[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`)
	seen := map[string]ami.InstanceID{}
	for range 100 {
		id := ami.NewInstanceID()
		got := UUID(id)
		if !form.MatchString(got) {
			t.Errorf("%s: got %q, want a UUID that begins with ec2", id, got)
		}
		if again := UUID(id); again != got {
			t.Errorf("%s: got %q and %q, want the same", id, got, again)
		}
		if other, ok := seen[got]; ok {
			t.Errorf("%s and %s both have %q", id, other, got)
		}
		seen[got] = id
	}
	// Guests that exist know theirs: it must not change from one version of
	// kami to the next.
	if got, want := UUID(someInstance), "ec2a8a87-8529-5222-a95b-80f8015789ae"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestNewMAC(t *testing.T) {
	form := regexp.MustCompile(`^52:54:00(:[0-9a-f]{2}){3}$`)
	seen := map[string]bool{}
	for range 100 {
		got := NewMAC()
		if !form.MatchString(got) {
			t.Fatalf("got %q, want one in QEMU's range", got)
		}
		seen[got] = true
	}
	if len(seen) < 99 { // two of a hundred may meet, once in thousands of runs
		t.Errorf("got %d different ones of 100, want them random", len(seen))
	}
}

func TestHostname(t *testing.T) {
	if got := Hostname(someInstance); got != string(someInstance) {
		t.Errorf("got %q, want %q", got, someInstance)
	}
}
