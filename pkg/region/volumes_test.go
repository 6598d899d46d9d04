package region

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/hypervisor"
	"github.com/kamivm/kami/pkg/hypervisor/hypervisortest"
)

func newVolume(t *testing.T, r *Region) ami.Volume {
	t.Helper()
	v, err := r.CreateVolume(t.Context(), CreateVolumeInput{Size: 1})
	must(t, err)
	return v
}

func TestCreateVolume(t *testing.T) {
	t.Parallel()
	r, _ := open(t)
	snap := get(r.snapshot(t.Context(), rootSnapshot(image(t, r, "base"))))(t)
	tests := []struct {
		name      string
		in        CreateVolumeInput
		size      int64
		sizeBytes int64
		kind      string
	}{
		{"blank", CreateVolumeInput{Size: 2}, 2, 2 << 30, "gp3"},
		{"of a type", CreateVolumeInput{Size: 1, VolumeType: "io2", Tags: []ami.Tag{{Key: "k", Value: "v"}}}, 1, 1 << 30, "io2"},
		{"from a snapshot", CreateVolumeInput{SnapshotID: snap.SnapshotID}, 1, 2 << 20, "gp3"},
		{"as large as its snapshot", CreateVolumeInput{SnapshotID: snap.SnapshotID, Size: 1}, 1, 2 << 20, "gp3"},
		{"larger than its snapshot", CreateVolumeInput{SnapshotID: snap.SnapshotID, Size: 3}, 3, 3 << 30, "gp3"},
		{"as large as can be", CreateVolumeInput{Size: maxVolumeGiB}, maxVolumeGiB, maxVolumeGiB << 30, "gp3"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := r.CreateVolume(t.Context(), tt.in)
			must(t, err)
			want := ami.Volume{
				VolumeID: got.VolumeID, OwnerID: ami.DefaultAccount, Size: tt.size, SizeBytes: tt.sizeBytes, VolumeType: tt.kind,
				State: ami.VolumeAvailable, CreateTime: got.CreateTime, Tags: tt.in.Tags, SnapshotID: tt.in.SnapshotID, TrackedBy: bitmapName(""),
			}
			if tt.in.SnapshotID != "" {
				want.Layer, want.TrackedLayer, want.TrackedBy = snap.Layer, snap.Layer, bitmapName(snap.Layer)
				want.UsageOperation = snap.UsageOperation
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("volume (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(got, get(r.volume(t.Context(), got.VolumeID))(t)); diff != "" {
				t.Errorf("record (-returned +recorded):\n%s", diff)
			}
			head, err := r.layers.OpenHead(got.VolumeID, want.Layer)
			must(t, err)
			defer head.Close()
			sector := make([]byte, 512)
			_, err = head.ReadAt(sector, 0)
			must(t, err)
			if boots := sector[510] == 0x55; head.Size() != tt.sizeBytes || boots != (tt.in.SnapshotID != "") {
				t.Errorf("the disk has %d bytes and a boot sector: %v; want %d and the snapshot's", head.Size(), boots, tt.sizeBytes)
			}
			must(t, r.DeleteVolume(t.Context(), got.VolumeID, false))
			_, err = r.volume(t.Context(), got.VolumeID)
			wantCode(t, err, ami.CodeInvalidVolumeNotFound)
			if _, err := os.Stat(r.layers.HeadPath(got.VolumeID)); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("its head is still there: %v", err)
			}
		})
	}
}

func TestCreateVolumeRefuses(t *testing.T) {
	t.Parallel()
	r, d := open(t)
	big, err := r.ImportImage(t.Context(), ImportInput{Source: diskOf(t, hypervisortest.BootSector("big"), 3<<29), Name: "big"})
	must(t, err)
	tests := []struct {
		name string
		in   CreateVolumeInput
		code ami.Code
	}{
		{"neither size nor snapshot", CreateVolumeInput{}, ami.CodeMissingParameter},
		{"less than nothing", CreateVolumeInput{Size: -1}, ami.CodeInvalidParameterValue},
		{"too large", CreateVolumeInput{Size: maxVolumeGiB + 1}, ami.CodeInvalidParameterValue},
		{"too small for its snapshot", CreateVolumeInput{SnapshotID: rootSnapshot(big), Size: 1}, ami.CodeInvalidParameterValue},
		{"no snapshot", CreateVolumeInput{SnapshotID: "snap-" + ami.SnapshotID(strings.Repeat("0", 17))}, ami.CodeInvalidSnapshotNotFound},
		{"a malformed snapshot", CreateVolumeInput{SnapshotID: "snap-x"}, ami.CodeInvalidSnapshotIDMalformed},
		{"an unknown type", CreateVolumeInput{Size: 1, VolumeType: "floppy"}, ami.CodeInvalidParameterValue},
		{"a bad tag", CreateVolumeInput{Size: 1, Tags: []ami.Tag{{Key: "aws:x"}}}, ami.CodeInvalidTagKeyMalformed},
	}
	before := look(t, r, d)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := r.CreateVolume(t.Context(), tt.in)
			wantCode(t, err, tt.code)
			if diff := cmp.Diff(before, look(t, r, d)); diff != "" {
				t.Errorf("it changed something (-before +after):\n%s", diff)
			}
		})
	}
}

func guestDisks(t *testing.T, h *house, id ami.InstanceID) (devices []string) {
	t.Helper()
	spec, _ := h.driver.Spec(id)
	for _, d := range spec.Disks {
		if !d.CDROM {
			devices = append(devices, d.Device)
		}
	}
	return devices
}

func TestAttachAndDetach(t *testing.T) {
	t.Parallel()
	for _, state := range []ami.InstanceState{ami.InstanceRunning, ami.InstanceStopped} {
		t.Run(string(state), func(t *testing.T) {
			h := newHouse(t)
			r := h.open(t)
			inst := running(t, r)
			if state == ami.InstanceStopped {
				stop(t, r, inst.InstanceID)
			}
			v, w := newVolume(t, r), newVolume(t, r)
			at, err := r.AttachVolume(t.Context(), AttachVolumeInput{VolumeID: v.VolumeID, InstanceID: inst.InstanceID})
			must(t, err)
			want := ami.VolumeAttachment{VolumeID: v.VolumeID, InstanceID: inst.InstanceID, Device: "/dev/sdf", State: "attached", AttachTime: at.AttachTime}
			if diff := cmp.Diff(want, at); diff != "" {
				t.Errorf("attachment (-want +got):\n%s", diff)
			}
			at, err = r.AttachVolume(t.Context(), AttachVolumeInput{VolumeID: w.VolumeID, InstanceID: inst.InstanceID, Device: "/dev/sdk"})
			must(t, err)
			if got := get(r.volume(t.Context(), w.VolumeID))(t); got.State != ami.VolumeInUse || !slices.Equal(got.Attachments, []ami.VolumeAttachment{at}) {
				t.Errorf("got the volume %+v, want it in use", got)
			}
			has := func(want ...string) {
				t.Helper()
				var got []string
				for _, bd := range wantState(t, r, inst.InstanceID, state).BlockDeviceMappings {
					got = append(got, bd.DeviceName)
				}
				if !slices.Equal(got, want) {
					t.Errorf("the instance has the devices %q, want %q", got, want)
				}
				if guest := guestDisks(t, h, inst.InstanceID); state == ami.InstanceRunning && !slices.Equal(guest, want) {
					t.Errorf("the guest has the disks %q, want %q", guest, want)
				}
			}
			has("/dev/sda1", "/dev/sdf", "/dev/sdk")
			gone, err := r.DetachVolume(t.Context(), v.VolumeID, false, false)
			must(t, err)
			if gone.State != "detached" || gone.Device != "/dev/sdf" {
				t.Errorf("got %+v, want /dev/sdf detached", gone)
			}
			has("/dev/sda1", "/dev/sdk")
			if got := get(r.volume(t.Context(), v.VolumeID))(t); got.State != ami.VolumeAvailable || len(got.Attachments) > 0 {
				t.Errorf("got the volume %+v, want it available", got)
			}
			if state == ami.InstanceStopped {
				_, err := r.StartInstances(t.Context(), []ami.InstanceID{inst.InstanceID}, false)
				must(t, err)
				if got := guestDisks(t, h, inst.InstanceID); !slices.Equal(got, []string{"/dev/sda1", "/dev/sdk"}) {
					t.Errorf("the guest has the disks %q, want /dev/sda1 and /dev/sdk", got)
				}
			}
			terminate(t, r, inst.InstanceID)
			if got := get(r.volume(t.Context(), w.VolumeID))(t); got.State != ami.VolumeAvailable {
				t.Errorf("what was attached is %s when the instance is gone, want it available", got.State)
			}
		})
	}
}

// The root of a stopped instance can be taken away, but then it does not start.
func TestRootVolume(t *testing.T) {
	t.Parallel()
	r, _ := open(t)
	inst := running(t, r)
	root := volumeOf(t, r, inst, "/dev/sda1")
	_, err := r.DetachVolume(t.Context(), root.VolumeID, true, false)
	wantCode(t, err, ami.CodeOperationNotPermitted)
	stop(t, r, inst.InstanceID)
	_, err = r.DetachVolume(t.Context(), root.VolumeID, false, false)
	must(t, err)
	_, err = r.StartInstances(t.Context(), []ami.InstanceID{inst.InstanceID}, false)
	wantCode(t, err, ami.CodeIncorrectInstanceState)
	wantSays(t, err, "volume attached at root (/dev/sda1)")
	_, err = r.AttachVolume(t.Context(), AttachVolumeInput{VolumeID: root.VolumeID, InstanceID: inst.InstanceID, Device: "/dev/sda1"})
	must(t, err)
	_, err = r.StartInstances(t.Context(), []ami.InstanceID{inst.InstanceID}, false)
	must(t, err)
}

func TestVolumeRefusals(t *testing.T) {
	t.Parallel()
	r, d := open(t)
	image(t, r, "base")
	inst := launched(t, r, RunInstancesInput{Image: "base", BlockDeviceMappings: mapping(t, "/dev/sdg=ephemeral0")})
	root, eph := volumeOf(t, r, inst, "/dev/sda1").VolumeID, volumeOf(t, r, inst, "/dev/sdg").VolumeID
	free := newVolume(t, r).VolumeID
	absent := ami.VolumeID("vol-" + strings.Repeat("0", 17))
	attach := func(v ami.VolumeID, i ami.InstanceID, device string) error {
		_, err := r.AttachVolume(t.Context(), AttachVolumeInput{VolumeID: v, InstanceID: i, Device: device})
		return err
	}
	detach := func(v ami.VolumeID) error { _, err := r.DetachVolume(t.Context(), v, false, false); return err }
	shoot := func(v ami.VolumeID) error {
		_, err := r.CreateSnapshot(t.Context(), CreateSnapshotInput{VolumeID: v})
		return err
	}
	tests := []struct {
		name string
		err  func() error
		code ami.Code
	}{
		{"attaching what is attached", func() error { return attach(root, inst.InstanceID, "") }, ami.CodeVolumeInUse},
		{"attaching nothing", func() error { return attach(absent, inst.InstanceID, "") }, ami.CodeInvalidVolumeNotFound},
		{"attaching a malformed id", func() error { return attach("vol-x", inst.InstanceID, "") }, ami.CodeInvalidVolumeIDMalformed},
		{"attaching to nobody", func() error { return attach(free, "i-00000000000000000", "") }, ami.CodeInvalidInstanceIDNotFound},
		{"attaching where something is", func() error { return attach(free, inst.InstanceID, "/dev/sda1") }, ami.CodeInvalidParameterValue},
		{"the same by another spelling", func() error { return attach(free, inst.InstanceID, "sdg") }, ami.CodeInvalidParameterValue},
		{"attaching to no device", func() error { return attach(free, inst.InstanceID, "/etc/passwd") }, ami.CodeInvalidBlockDeviceMapping},
		{"attaching an ephemeral disk", func() error { return attach(eph, inst.InstanceID, "") }, ami.CodeInvalidVolumeNotFound},
		{"detaching what is free", func() error { return detach(free) }, ami.CodeIncorrectState},
		{"detaching nothing", func() error { return detach(absent) }, ami.CodeInvalidVolumeNotFound},
		{"detaching a running root", func() error { return detach(root) }, ami.CodeOperationNotPermitted},
		{"detaching an ephemeral disk", func() error { return detach(eph) }, ami.CodeInvalidVolumeNotFound},
		{"deleting what is attached", func() error { return r.DeleteVolume(t.Context(), root, false) }, ami.CodeVolumeInUse},
		{"deleting nothing", func() error { return r.DeleteVolume(t.Context(), absent, false) }, ami.CodeInvalidVolumeNotFound},
		{"deleting an ephemeral disk", func() error { return r.DeleteVolume(t.Context(), eph, false) }, ami.CodeInvalidVolumeNotFound},
		{"a snapshot of nothing", func() error { return shoot(absent) }, ami.CodeInvalidVolumeNotFound},
		{"a snapshot of an ephemeral disk", func() error { return shoot(eph) }, ami.CodeInvalidVolumeNotFound},
	}
	before := look(t, r, d)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			wantCode(t, tt.err(), tt.code)
			if diff := cmp.Diff(before, look(t, r, d)); diff != "" {
				t.Errorf("it changed something (-before +after):\n%s", diff)
			}
		})
	}
	for range 10 { // f and h to p, since g is taken
		must(t, attach(newVolume(t, r).VolumeID, inst.InstanceID, ""))
	}
	wantCode(t, attach(free, inst.InstanceID, ""), ami.CodeResourceLimitExceeded)
}

// plain is a hypervisor without any of the extras.
type plain struct{ hypervisor.Driver }

func TestDriverWithoutExtras(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	r := h.open(t)
	inst := running(t, r)
	v, w := newVolume(t, r), newVolume(t, r)
	_, err := r.AttachVolume(t.Context(), AttachVolumeInput{VolumeID: w.VolumeID, InstanceID: inst.InstanceID})
	must(t, err)
	before := look(t, r, h.driver)
	r.drivers = map[string]hypervisor.Driver{inst.Connect: plain{h.driver}}
	_, err = r.AttachVolume(t.Context(), AttachVolumeInput{VolumeID: v.VolumeID, InstanceID: inst.InstanceID})
	wantCode(t, err, ami.CodeUnsupportedOperation)
	_, err = r.DetachVolume(t.Context(), w.VolumeID, true, false)
	wantCode(t, err, ami.CodeUnsupportedOperation)
	_, err = r.CreateImage(t.Context(), CreateImageInput{InstanceID: inst.InstanceID, Name: "new", NoReboot: true})
	wantCode(t, err, ami.CodeUnsupportedOperation)
	_, err = r.CreateSnapshot(t.Context(), CreateSnapshotInput{VolumeID: w.VolumeID})
	wantCode(t, err, ami.CodeUnsupportedOperation)
	if diff := cmp.Diff(before, look(t, r, h.driver)); diff != "" {
		t.Errorf("it changed something (-before +after):\n%s", diff)
	}
}
