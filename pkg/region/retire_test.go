package region

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
	"github.com/kamivm/kami/pkg/hypervisor/hypervisortest"
)

func TestCreateAndDeleteSnapshot(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		vol  func(*testing.T, *Region) ami.Volume
		want ami.Consistency
	}{
		{"of a free volume", newVolume, ami.ConsistencyStopped},
		{"of a stopped instance", func(t *testing.T, r *Region) ami.Volume { return volumeOf(t, r, stopped(t, r), "/dev/sda1") }, ami.ConsistencyStopped},
		{"of a running instance", func(t *testing.T, r *Region) ami.Volume { return volumeOf(t, r, running(t, r), "/dev/sda1") }, ami.ConsistencyCrash},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r, d := open(t)
			v := tt.vol(t, r)
			before := look(t, r, d)
			got, err := r.CreateSnapshot(t.Context(), CreateSnapshotInput{VolumeID: v.VolumeID, Description: "now", Tags: []ami.Tag{{Key: "k", Value: "v"}}})
			must(t, err)
			want := ami.Snapshot{
				SnapshotID: got.SnapshotID, VolumeID: v.VolumeID, OwnerID: ami.DefaultAccount, Description: "now", State: ami.SnapshotCompleted,
				StartTime: got.StartTime, Progress: "100%", VolumeSize: v.Size, Tags: []ami.Tag{{Key: "k", Value: "v"}},
				SizeBytes: v.SizeBytes, Layer: got.Layer, ContentDigest: got.ContentDigest, LayerBytes: got.LayerBytes, Consistency: tt.want,
				UsageOperation: v.UsageOperation,
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("snapshot (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(got, get(r.snapshot(t.Context(), got.SnapshotID))(t)); diff != "" {
				t.Errorf("record (-returned +recorded):\n%s", diff)
			}
			copied, err := r.CreateVolume(t.Context(), CreateVolumeInput{SnapshotID: got.SnapshotID})
			must(t, err)
			if copied.SizeBytes != v.SizeBytes || copied.Layer != got.Layer {
				t.Errorf("got the volume %+v of it, want one of its size over its layer", copied)
			}
			must(t, r.DeleteSnapshot(t.Context(), got.SnapshotID, false)) // the volume keeps the layer
			must(t, r.layers.VerifyLayer(t.Context(), got.Layer, ami.NoProgress.Step("", 0)))
			must(t, r.DeleteVolume(t.Context(), copied.VolumeID, false))
			_, err = r.CollectGarbage(t.Context(), false)
			must(t, err)
			after := look(t, r, d)
			before.Volumes, after.Volumes = nil, nil // what tracks a running one has moved on
			if diff := cmp.Diff(before, after); diff != "" {
				t.Errorf("it left something (-before +after):\n%s", diff)
			}
			wantCode(t, r.DeleteSnapshot(t.Context(), got.SnapshotID, false), ami.CodeInvalidSnapshotNotFound)
		})
	}
}

func TestSnapshotInUse(t *testing.T) {
	t.Parallel()
	r, _ := open(t)
	i := image(t, r, "base")
	s := rootSnapshot(i)
	err := r.DeleteSnapshot(t.Context(), s, false)
	wantCode(t, err, ami.CodeInvalidSnapshotInUse)
	wantSays(t, err, string(i.ImageID))
	wantCode(t, r.DeleteSnapshot(t.Context(), "snap-x", false), ami.CodeInvalidSnapshotIDMalformed)
	_, err = r.DeregisterImage(t.Context(), i.ImageID, false, false)
	must(t, err)
	must(t, r.DeleteSnapshot(t.Context(), s, false))
	layers, err := r.layers.Layers(t.Context())
	must(t, err)
	if len(layers) > 0 {
		t.Errorf("got the layers %v, want none", layers)
	}
}

func TestRegisterImage(t *testing.T) {
	t.Parallel()
	r, _ := open(t)
	root, data := rootSnapshot(image(t, r, "root")), rootSnapshot(image(t, r, "data"))
	given := mapping(t, "/dev/xvda="+string(root), "/dev/sdf="+string(data)+":4:true:io1", "/dev/sdg=ephemeral0", "/dev/sdh=:1")
	in := RegisterImageInput{
		Name: "new", Description: "a new one", Architecture: ami.ArchARM64, BootMode: ami.BootUEFI, RootDeviceName: "/dev/xvda",
		BlockDeviceMappings: given, Tags: []ami.Tag{{Key: "k", Value: "v"}},
	}
	got, err := r.RegisterImage(t.Context(), in)
	must(t, err)
	one, four, yes := int64(1), int64(4), true
	want := ami.Image{
		ImageID: got.ImageID, Name: "new", Description: "a new one", OwnerID: ami.DefaultAccount, State: ami.ImageAvailable, CreationDate: got.CreationDate,
		Architecture: ami.ArchARM64, VirtualizationType: "hvm", Hypervisor: "kvm", ImageType: "machine", RootDeviceType: "ebs", RootDeviceName: "/dev/xvda",
		BootMode: ami.BootUEFI, PlatformDetails: "Linux/UNIX", UsageOperation: ami.LinuxUsage, ImageLocation: ami.DefaultAccount + "/new", Tags: []ami.Tag{{Key: "k", Value: "v"}}, Consistency: ami.ConsistencyStopped,
		BlockDeviceMappings: []ami.BlockDeviceMapping{
			{DeviceName: "/dev/xvda", Ebs: &ami.EBSBlockDevice{SnapshotID: root, VolumeSize: &one, DeleteOnTermination: &yes}},
			{DeviceName: "/dev/sdf", Ebs: &ami.EBSBlockDevice{SnapshotID: data, VolumeSize: &four, DeleteOnTermination: &yes, VolumeType: "io1"}},
			{DeviceName: "/dev/sdg", VirtualName: "ephemeral0"},
			{DeviceName: "/dev/sdh", Ebs: &ami.EBSBlockDevice{VolumeSize: &one}},
		},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("image (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(mapping(t, "/dev/xvda="+string(root)), given[:1]); diff != "" {
		t.Errorf("what was given has changed (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(got, get(r.image(t.Context(), got.ImageID))(t)); diff != "" {
		t.Errorf("record (-returned +recorded):\n%s", diff)
	}
	wantCode(t, r.DeleteSnapshot(t.Context(), data, false), ami.CodeInvalidSnapshotInUse)
}

func TestRegisterRefuses(t *testing.T) {
	t.Parallel()
	r, d := open(t)
	root := string(rootSnapshot(image(t, r, "root")))
	big, err := r.ImportImage(t.Context(), ImportInput{Source: diskOf(t, hypervisortest.BootSector("big"), 3<<29), Name: "big"})
	must(t, err)
	onRoot := mapping(t, "/dev/sda1="+root)
	tests := []struct {
		name string
		in   RegisterImageInput
		code ami.Code
	}{
		{"a name in use", RegisterImageInput{Name: "root", BlockDeviceMappings: onRoot}, ami.CodeInvalidAMINameDuplicate},
		{"a bad name", RegisterImageInput{Name: "a", BlockDeviceMappings: onRoot}, ami.CodeInvalidAMINameMalformed},
		{"a bad tag", RegisterImageInput{BlockDeviceMappings: onRoot, Tags: []ami.Tag{{}}}, ami.CodeInvalidTagKeyMalformed},
		{"no mapping", RegisterImageInput{}, ami.CodeInvalidBlockDeviceMapping},
		{"another root device", RegisterImageInput{BlockDeviceMappings: onRoot, RootDeviceName: "/dev/xvda"}, ami.CodeInvalidBlockDeviceMapping},
		{"a root without a snapshot", RegisterImageInput{BlockDeviceMappings: mapping(t, "/dev/sda1=:1")}, ami.CodeInvalidBlockDeviceMapping},
		{"a root twice", RegisterImageInput{BlockDeviceMappings: append(onRoot[:1:1], onRoot...)}, ami.CodeInvalidBlockDeviceMapping},
		{"too small", RegisterImageInput{BlockDeviceMappings: mapping(t, "/dev/sda1="+string(rootSnapshot(big))+":1")}, ami.CodeInvalidBlockDeviceMapping},
		{"no such snapshot", RegisterImageInput{BlockDeviceMappings: mapping(t, "/dev/sda1=snap-"+strings.Repeat("0", 17))}, ami.CodeInvalidSnapshotNotFound},
		{"an unknown boot mode", RegisterImageInput{BlockDeviceMappings: onRoot, BootMode: "bios"}, ami.CodeInvalidParameterValue},
		{"an unknown architecture", RegisterImageInput{BlockDeviceMappings: onRoot, Architecture: "sparc"}, ami.CodeInvalidParameterValue},
	}
	before := look(t, r, d)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.in.Name == "" {
				tt.in.Name = "new"
			}
			_, err := r.RegisterImage(t.Context(), tt.in)
			wantCode(t, err, tt.code)
			if diff := cmp.Diff(before, look(t, r, d)); diff != "" {
				t.Errorf("it changed something (-before +after):\n%s", diff)
			}
		})
	}
}

// With an image its snapshots go that nothing else needs.
func TestDeregisterWithSnapshots(t *testing.T) {
	t.Parallel()
	r, d := open(t)
	shared, own := rootSnapshot(image(t, r, "shared")), rootSnapshot(image(t, r, "own"))
	i, err := r.RegisterImage(t.Context(), RegisterImageInput{
		Name: "both", BlockDeviceMappings: mapping(t, "/dev/sda1="+string(shared), "/dev/sdf="+string(own), "/dev/sdg=:1", "/dev/sdh=ephemeral0"),
	})
	must(t, err)
	first := get(r.ResolveImage(t.Context(), "own", false))(t)
	_, err = r.DeregisterImage(t.Context(), first.ImageID, false, false)
	must(t, err)
	if n := len(look(t, r, d).Snapshots); n != 2 {
		t.Errorf("%d snapshots are left, want both", n)
	}
	before := onDisk(t, r)
	got, err := r.DeregisterImage(t.Context(), i.ImageID, true, false)
	must(t, err)
	freed := before - onDisk(t, r)
	want := DeregisterResult{ImageID: i.ImageID, Return: true, Freed: freed, DeleteSnapshots: []SnapshotReturnCode{
		{SnapshotID: shared, ReturnCode: "skipped", Reason: got.DeleteSnapshots[0].Reason}, {SnapshotID: own, ReturnCode: "success", Freed: freed},
	}}
	if diff := cmp.Diff(want, got); diff != "" || freed <= 0 {
		t.Errorf("result (-want +got):\n%s", diff)
	}
	wantSays(t, errors.New(got.DeleteSnapshots[0].Reason), "is currently in use by")
	if left := look(t, r, d); len(left.Snapshots) != 1 || len(left.Layers) != 1 {
		t.Errorf("got %d snapshots and %d layers, want those of the other image", len(left.Snapshots), len(left.Layers))
	}
	_, err = r.DeregisterImage(t.Context(), i.ImageID, false, false)
	wantCode(t, err, ami.CodeInvalidAMIIDNotFound)
	_, err = r.DeregisterImage(t.Context(), "ami-x", false, false)
	wantCode(t, err, ami.CodeInvalidAMIIDMalformed)
}

// An image that instances were launched of is remembered until the last of them
// is forgotten; instances are forgotten an hour after their end.
func TestTombstones(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	r := h.open(t)
	i := image(t, r, "base")
	inst, other := launched(t, r, RunInstancesInput{Image: "base"}), launched(t, r, RunInstancesInput{Image: "base"})
	_, err := r.DeregisterImage(t.Context(), i.ImageID, true, false)
	must(t, err)
	wantGone := func() {
		t.Helper()
		if ids, err := imageIDs(r)(t, DescribeInput{}); err != nil || len(ids) > 0 {
			t.Errorf("got the images %v (%v), want none", ids, err)
		}
		_, err := r.RunInstances(t.Context(), RunInstancesInput{Image: string(i.ImageID)})
		wantCode(t, err, ami.CodeInvalidAMIIDUnavailable)
		_, err = r.DeregisterImage(t.Context(), i.ImageID, false, false)
		wantCode(t, err, ami.CodeInvalidAMIIDUnavailable)
		wantCode(t, r.CreateTags(t.Context(), []string{string(i.ImageID)}, []ami.Tag{{Key: "k"}}, false), ami.CodeInvalidAMIIDNotFound)
	}
	wantGone()
	image(t, r, "base") // the name is free again
	next := get(r.ResolveImage(t.Context(), "base", false))(t)
	_, err = r.DeregisterImage(t.Context(), next.ImageID, true, false)
	must(t, err)
	// The guests go on, also over a restart: their volumes keep the layer.
	stop(t, r, inst.InstanceID)
	_, err = r.StartInstances(t.Context(), []ami.InstanceID{inst.InstanceID}, false)
	must(t, err)
	terminate(t, r, inst.InstanceID, other.InstanceID)
	wantGone()

	age := func(id ami.InstanceID, by time.Duration) {
		t.Helper()
		must(t, r.updateInstance(t.Context(), id, func(i *ami.Instance) { i.Terminated = time.Now().Add(-by) }))
	}
	counts := func(wantInstances, wantImages int) {
		t.Helper()
		later := h.open(t)
		got := look(t, later, h.driver)
		if len(got.Instances) != wantInstances || len(got.Images) != wantImages {
			t.Errorf("got %d instances and %d images, want %d and %d", len(got.Instances), len(got.Images), wantInstances, wantImages)
		}
	}
	age(inst.InstanceID, tombstone-time.Minute)
	counts(2, 1)
	wantState(t, r, inst.InstanceID, ami.InstanceTerminated)
	age(inst.InstanceID, tombstone+time.Minute)
	_, err = r.DescribeInstances(t.Context(), DescribeInput{IDs: []string{string(inst.InstanceID)}})
	wantCode(t, err, ami.CodeInvalidInstanceIDNotFound)
	counts(1, 1)
	age(other.InstanceID, tombstone+time.Minute)
	counts(0, 0)
	must(t, r.catalog.View(t.Context(), func(tx *catalog.Tx) error {
		refs, err := tx.LayerRefs()
		if len(refs) > 0 {
			t.Errorf("got the layers %v in use, want none", refs)
		}
		return err
	}))
}
