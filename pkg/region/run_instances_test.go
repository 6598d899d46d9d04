package region

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/hypervisor/fake"
	"github.com/kamivm/kami/pkg/hypervisor/hypervisortest"
	"github.com/kamivm/kami/pkg/launch"
	"github.com/kamivm/kami/pkg/machine"
	"github.com/kamivm/kami/pkg/qcow2"
)

func mapping(t *testing.T, forms ...string) (out []ami.BlockDeviceMapping) {
	t.Helper()
	for _, f := range forms {
		m, err := ami.ParseMapping(f)
		must(t, err)
		out = append(out, m...)
	}
	return out
}

func TestRunInstances(t *testing.T) {
	t.Parallel()
	r, d := open(t)
	i := image(t, r, "base")
	got := launched(t, r, RunInstancesInput{Image: "base", Tags: []ami.Tag{{Key: "Name", Value: "one"}}})
	spec, ok := d.Spec(got.InstanceID)
	if !ok {
		t.Fatal("there is no guest")
	}
	v := volumeOf(t, r, got, "/dev/sda1")
	cpus := 2
	if spec.Accel == machine.AccelTCG {
		cpus = emulatedCPUs
	}
	snap := get(r.snapshot(t.Context(), rootSnapshot(i)))(t)
	want := ami.Instance{
		InstanceID: got.InstanceID, ReservationID: got.ReservationID, OwnerID: ami.DefaultAccount, ImageID: i.ImageID,
		InstanceType: launch.DefaultType, State: ami.InstanceStateRecord{Code: 16, Name: ami.InstanceRunning}, LaunchTime: got.LaunchTime,
		Architecture: ami.ArchX8664, VirtualizationType: "hvm", BootMode: ami.BootLegacyBIOS, CurrentBootMode: ami.BootLegacyBIOS,
		RootDeviceName: "/dev/sda1", RootDeviceType: "ebs", ShutdownBehavior: ami.ShutdownStop, Tags: []ami.Tag{{Key: "Name", Value: "one"}},
		BlockDeviceMappings: []ami.InstanceBlockDevice{{DeviceName: "/dev/sda1", Ebs: ami.InstanceBlockEBS{
			VolumeID: v.VolumeID, DeleteOnTermination: true, AttachTime: got.LaunchTime, Status: "attached",
		}}},
		CPUs: cpus, MemoryMiB: 1024, Driver: "fake", Connect: fake.URI, Accel: string(spec.Accel), MAC: spec.Network.MAC,
		SSHPort: spec.Network.SSHPort, Hostname: string(got.InstanceID), MetadataOptions: ami.DefaultMetadataOptions(""),
		HostBoot: hostBoot(), PlatformDetails: "Linux/UNIX", UsageOperation: ami.LinuxUsage, UsageOperationTime: got.LaunchTime,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("instance (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(want, wantState(t, r, got.InstanceID, ami.InstanceRunning)); diff != "" {
		t.Errorf("described instance (-want +got):\n%s", diff)
	}
	wantVolume := ami.Volume{
		VolumeID: v.VolumeID, OwnerID: ami.DefaultAccount, Size: 1, SizeBytes: 2 << 20, SnapshotID: snap.SnapshotID, VolumeType: "gp3",
		State: ami.VolumeInUse, CreateTime: got.LaunchTime, UsageOperation: ami.LinuxUsage, Layer: snap.Layer, TrackedBy: bitmapName(snap.Layer), TrackedLayer: snap.Layer,
		Attachments: []ami.VolumeAttachment{{
			VolumeID: v.VolumeID, InstanceID: got.InstanceID, Device: "/dev/sda1", State: "attached", DeleteOnTermination: true, AttachTime: got.LaunchTime,
		}},
	}
	if diff := cmp.Diff(wantVolume, v); diff != "" {
		t.Errorf("volume (-want +got):\n%s", diff)
	}
	chain := get(r.layers.Chain(snap.Layer))(t)
	wantDisks := []machine.Disk{
		{Device: "/dev/sda1", Serial: strings.ReplaceAll(string(v.VolumeID), "-", ""), Path: r.layers.HeadPath(v.VolumeID), Format: "qcow2", Backing: chain, Boot: true},
		{Device: "seed", Path: filepath.Join(r.instanceDir(got.InstanceID), "seed.iso"), Format: "raw", ReadOnly: true, CDROM: true},
	}
	if diff := cmp.Diff(wantDisks, spec.Disks); diff != "" {
		t.Errorf("disks (-want +got):\n%s", diff)
	}
	if spec.Firmware.UEFI || spec.CPUs != cpus || spec.MemoryMiB != 1024 || !strings.HasPrefix(spec.UUID, "ec2") || spec.Network.Hostname != want.Hostname {
		t.Errorf("got the guest %+v, want %d CPUs, 1 GiB, BIOS and an EC2 uuid", spec, cpus)
	}
}

// device is what a test looks at in a launch's devices.
type device struct {
	Name    string
	GiB     int64
	Bytes   int64
	From    ami.SnapshotID
	Type    string
	Delete  bool
	Virtual string
}

func devices(t *testing.T, r *Region, inst ami.Instance) (out []device) {
	t.Helper()
	for _, bd := range inst.BlockDeviceMappings {
		v := volumeOf(t, r, inst, bd.DeviceName)
		if v.Ephemeral != (bd.Virtual != "") || v.Attachments[0].DeleteOnTermination != bd.Ebs.DeleteOnTermination {
			t.Errorf("%s: the volume %+v is not as the instance has it: %+v", bd.DeviceName, v, bd)
		}
		out = append(out, device{bd.DeviceName, v.Size, v.SizeBytes, v.SnapshotID, v.VolumeType, bd.Ebs.DeleteOnTermination, bd.Virtual})
	}
	return out
}

func TestLaunchMapping(t *testing.T) {
	t.Parallel()
	r, d := open(t)
	root := rootSnapshot(image(t, r, "root"))
	data := rootSnapshot(image(t, r, "data"))
	other := rootSnapshot(image(t, r, "other"))
	i, err := r.RegisterImage(t.Context(), RegisterImageInput{
		Name: "two disks", BootMode: ami.BootLegacyBIOS, BlockDeviceMappings: mapping(t, "/dev/sda1="+string(root), "/dev/sdf="+string(data)+":::gp2", "/dev/sdg=ephemeral0"),
	})
	must(t, err)
	rootDev := device{"/dev/sda1", 1, 2 << 20, root, "gp3", true, ""}
	dataDev := device{"/dev/sdf", 1, 2 << 20, data, "gp2", false, ""}
	eph := func(name, virtual string) device {
		return device{name, launch.EphemeralGiB, launch.EphemeralGiB << 30, "", "gp3", true, virtual}
	}
	tests := []struct {
		name string
		over []string
		want []device
	}{
		{"as the image has it", nil, []device{rootDev, dataDev, eph("/dev/sdg", "ephemeral0")}},
		{"a larger root", []string{"/dev/sda1=:3"}, []device{{"/dev/sda1", 3, 3 << 30, root, "gp3", true, ""}, dataDev, eph("/dev/sdg", "ephemeral0")}},
		{"a root that stays", []string{"/dev/sda1=::false:io1"}, []device{{"/dev/sda1", 1, 2 << 20, root, "io1", false, ""}, dataDev, eph("/dev/sdg", "ephemeral0")}},
		{"data that goes", []string{"/dev/sdf=::true"}, []device{rootDev, {"/dev/sdf", 1, 2 << 20, data, "gp2", true, ""}, eph("/dev/sdg", "ephemeral0")}},
		{"other data", []string{"/dev/sdf=" + string(other)}, []device{rootDev, {"/dev/sdf", 1, 2 << 20, other, "gp2", false, ""}, eph("/dev/sdg", "ephemeral0")}},
		{"nothing there", []string{"/dev/sdf=none", "sdg=none"}, []device{rootDev}},
		{"a blank volume", []string{"/dev/sdf=none", "/dev/sdg=none", "/dev/sdh=:2"}, []device{rootDev, {"/dev/sdh", 2, 2 << 30, "", "gp3", false, ""}}},
		{"a volume for a disk", []string{"/dev/sdg=:1", "/dev/sdf=none"}, []device{rootDev, {"/dev/sdg", 1, 1 << 30, "", "gp3", false, ""}}},
		{"more disks", []string{"/dev/sdf=none", "/dev/sdh=ephemeral1"}, []device{rootDev, eph("/dev/sdg", "ephemeral0"), eph("/dev/sdh", "ephemeral1")}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			inst := launched(t, r, RunInstancesInput{Image: string(i.ImageID), BlockDeviceMappings: mapping(t, tt.over...)})
			if diff := cmp.Diff(tt.want, devices(t, r, inst)); diff != "" {
				t.Errorf("devices (-want +got):\n%s", diff)
			}
			spec, _ := d.Spec(inst.InstanceID)
			var names []string
			for n, dev := range tt.want {
				names = append(names, dev.Name)
				img, err := qcow2.Open(spec.Disks[n].Path, spec.Disks[n].Backing...)
				must(t, err)
				if img.Size() != dev.Bytes {
					t.Errorf("%s: the guest sees %d bytes, want %d", dev.Name, img.Size(), dev.Bytes)
				}
				must(t, img.Close())
			}
			var got []string
			for _, disk := range spec.Disks[:len(spec.Disks)-1] {
				got = append(got, disk.Device)
			}
			if !slices.Equal(got, names) {
				t.Errorf("the guest has the disks %q, want %q", got, names)
			}
		})
	}
}

func TestLaunchRefuses(t *testing.T) {
	t.Parallel()
	r, d := open(t)
	i := image(t, r, "base")
	large := diskOf(t, hypervisortest.BootSector("large"), 3<<29)
	big, err := r.ImportImage(t.Context(), ImportInput{Source: large, Name: "large"})
	must(t, err)
	image(t, r, "twins 1")
	image(t, r, "twins 2")
	gone := image(t, r, "gone")
	_, err = r.DeregisterImage(t.Context(), gone.ImageID, false, false)
	must(t, err)
	none := "snap-" + strings.Repeat("0", 17)
	tests := []struct {
		name string
		in   RunInstancesInput
		code ami.Code
		says string
	}{
		{"no such id", RunInstancesInput{Image: "ami-" + strings.Repeat("0", 17)}, ami.CodeInvalidAMIIDNotFound, "does not exist"},
		{"a malformed id", RunInstancesInput{Image: "ami-xyz"}, ami.CodeInvalidAMIIDMalformed, "ami-xyz"},
		{"no such name", RunInstancesInput{Image: "nobody"}, ami.CodeInvalidAMIIDNotFound, "nobody"},
		{"two of the name", RunInstancesInput{Image: "twins ?"}, ami.CodeInvalidParameterValue, "2 images match"},
		{"deregistered", RunInstancesInput{Image: string(gone.ImageID)}, ami.CodeInvalidAMIIDNotFound, ""},
		{"a root that is too small", RunInstancesInput{Image: string(big.ImageID), BlockDeviceMappings: mapping(t, "/dev/sda1=:1")}, ami.CodeInvalidBlockDeviceMapping, "expect size >= 2GB"},
		{"data that is too small", RunInstancesInput{BlockDeviceMappings: mapping(t, "/dev/sdf="+string(rootSnapshot(big))+":1")}, ami.CodeInvalidBlockDeviceMapping, "/dev/sdf"},
		{"no such snapshot", RunInstancesInput{BlockDeviceMappings: mapping(t, "/dev/sdf="+none)}, ami.CodeInvalidSnapshotNotFound, none},
		{"no root", RunInstancesInput{BlockDeviceMappings: mapping(t, "/dev/sda1=none")}, ami.CodeInvalidBlockDeviceMapping, "root device"},
		{"another root", RunInstancesInput{BlockDeviceMappings: mapping(t, "/dev/sda1="+string(rootSnapshot(big)))}, ami.CodeInvalidBlockDeviceMapping, "root device"},
		{"a volume of no size", RunInstancesInput{BlockDeviceMappings: []ami.BlockDeviceMapping{{DeviceName: "/dev/sdf", Ebs: &ami.EBSBlockDevice{}}}}, ami.CodeInvalidBlockDeviceMapping, "/dev/sdf"},
		{"too much user data", RunInstancesInput{UserData: make([]byte, MaxUserData+1)}, ami.CodeInvalidParameterValue, "16385"},
		{"an unknown key", RunInstancesInput{KeyName: "nobody's"}, ami.CodeInvalidKeyPairNotFound, "nobody's"},
		{"an unknown type", RunInstancesInput{InstanceType: "t9.huge"}, ami.CodeInvalidParameterValue, "t9.huge"},
		{"too little memory", RunInstancesInput{MemoryMiB: 63}, ami.CodeInvalidParameterValue, "63 MiB"},
		{"too many CPUs", RunInstancesInput{CPUs: 513}, ami.CodeInvalidParameterValue, "513 CPUs"},
		{"fewer than none", RunInstancesInput{Count: -1}, ami.CodeInvalidParameterValue, "-1"},
		{"an unknown boot mode", RunInstancesInput{BootMode: "bios"}, ami.CodeInvalidParameterValue, "bios"},
		{"a bad tag", RunInstancesInput{Tags: []ami.Tag{{Key: ""}}}, ami.CodeInvalidTagKeyMalformed, ""},
		{"a bad host name", RunInstancesInput{Hostname: "a,hostfwd=tcp::22-:22"}, ami.CodeInvalidParameterValue, "hostfwd"},
	}
	before := look(t, r, d)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.in.Image == "" {
				tt.in.Image = string(i.ImageID)
			}
			for _, dry := range []bool{true, false} {
				tt.in.DryRun = dry
				_, err := r.RunInstances(t.Context(), tt.in)
				wantCode(t, err, tt.code)
				wantSays(t, err, tt.says)
			}
			if diff := cmp.Diff(before, look(t, r, d)); diff != "" {
				t.Errorf("it left something (-before +after):\n%s", diff)
			}
		})
	}
	launched(t, r, RunInstancesInput{Image: "base", UserData: make([]byte, MaxUserData), CPUs: 512, MemoryMiB: 64})
}

func TestLaunchSeveral(t *testing.T) {
	t.Parallel()
	r, d := open(t)
	image(t, r, "base")
	res, err := r.RunInstances(t.Context(), RunInstancesInput{Image: "base", Count: 3})
	must(t, err)
	macs := map[string]bool{}
	for n, inst := range res.Instances {
		if inst.AmiLaunchIndex != n || inst.ReservationID != res.ReservationID {
			t.Errorf("got the index %d in %s, want %d in %s", inst.AmiLaunchIndex, inst.ReservationID, n, res.ReservationID)
		}
		macs[inst.MAC] = true
	}
	if guests := look(t, r, d).Guests; len(guests) != 3 || len(macs) != 3 || len(res.Instances) != 3 {
		t.Errorf("got %d instances, %d guests and %d addresses, want 3 of each", len(res.Instances), len(guests), len(macs))
	}
}

// When one of several cannot be started there is none.
func TestLaunchAllOrNone(t *testing.T) {
	t.Parallel()
	for _, failing := range []int{1, 2, 3} {
		t.Run(fmt.Sprint(failing), func(t *testing.T) {
			r, d := open(t)
			image(t, r, "base")
			before := look(t, r, d)
			cause := errors.New("no memory left")
			n := 0
			d.FailStart = func(machine.Spec) error {
				if n++; n == failing {
					return cause
				}
				return nil
			}
			_, err := r.RunInstances(t.Context(), RunInstancesInput{Image: "base", Count: 3, BlockDeviceMappings: mapping(t, "/dev/sdf=:1:false", "/dev/sdg=ephemeral0")})
			if !errors.Is(err, cause) {
				t.Errorf("got %v, want %v", err, cause)
			}
			got := look(t, r, d)
			for _, inst := range got.Instances { // those that ran show for a while
				if inst.State.Name != ami.InstanceTerminated {
					t.Errorf("%s is %s, want it terminated", inst.InstanceID, inst.State.Name)
				}
			}
			if len(got.Instances) != failing-1 {
				t.Errorf("got %d instances, want those %d that ran", len(got.Instances), failing-1)
			}
			got.Instances = nil
			if diff := cmp.Diff(before, got); diff != "" {
				t.Errorf("it left something (-before +after):\n%s", diff)
			}
		})
	}
}

// A port that somebody else took in the meantime is no reason to fail.
func TestLaunchTriesAnotherPort(t *testing.T) {
	t.Parallel()
	r, d := open(t)
	image(t, r, "base")
	ports := map[int]bool{}
	d.FailStart = func(s machine.Spec) error {
		if ports[s.Network.SSHPort] = true; len(ports) < 3 {
			return errors.New("Could not set up host forwarding rule")
		}
		return nil
	}
	inst := launched(t, r, RunInstancesInput{Image: "base"})
	if len(ports) != 3 || !ports[inst.SSHPort] {
		t.Errorf("got the port %d after trying %v, want the third one", inst.SSHPort, ports)
	}
	d.FailStart = func(machine.Spec) error { return errors.New("Could not set up host forwarding rule") }
	_, err := r.RunInstances(t.Context(), RunInstancesInput{Image: "base"})
	wantSays(t, err, "host forwarding")
}
