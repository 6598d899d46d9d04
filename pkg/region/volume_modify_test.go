package region

import (
	"os"
	"testing"

	"github.com/kamivm/kami/pkg/ami"
)

// A command that was killed between making a disk larger and recording it leaves
// a record that lags behind; whoever comes next puts that right.
func TestGrownWithoutItsRecord(t *testing.T) {
	t.Parallel()
	grownBehind := func(t *testing.T, r *Region) ami.Volume {
		t.Helper()
		v := newVolume(t, r)
		must(t, r.layers.GrowHead(t.Context(), v.VolumeID, 4*gib))
		return v
	}
	healed := func(t *testing.T, r *Region, id ami.VolumeID) {
		t.Helper()
		if got := get(r.volume(t.Context(), id))(t); got.Size != 4 || got.SizeBytes != 4*gib {
			t.Errorf("the record says %d GiB and %d bytes, want 4 GiB", got.Size, got.SizeBytes)
		}
	}
	t.Run("a snapshot", func(t *testing.T) {
		t.Parallel()
		r, _ := open(t)
		v := grownBehind(t, r)
		snap, err := r.CreateSnapshot(t.Context(), CreateSnapshotInput{VolumeID: v.VolumeID})
		must(t, err)
		if snap.VolumeSize != 4 || snap.SizeBytes != 4*gib {
			t.Errorf("got a snapshot of %d GiB and %d bytes, want all 4 GiB", snap.VolumeSize, snap.SizeBytes)
		}
		healed(t, r, v.VolumeID)
		copied, err := r.CreateVolume(t.Context(), CreateVolumeInput{SnapshotID: snap.SnapshotID})
		must(t, err)
		if size := get(r.layers.HeadSize(copied.VolumeID))(t); size != 4*gib {
			t.Errorf("a volume of it has %d bytes, want 4 GiB", size)
		}
	})
	t.Run("a modification", func(t *testing.T) {
		t.Parallel()
		r, _ := open(t)
		v := grownBehind(t, r)
		_, err := r.ModifyVolume(t.Context(), ModifyVolumeInput{VolumeID: v.VolumeID, Size: 2})
		wantCode(t, err, ami.CodeInvalidParameterValue)
		healed(t, r, v.VolumeID)
		m, err := r.ModifyVolume(t.Context(), ModifyVolumeInput{VolumeID: v.VolumeID, Size: 4})
		must(t, err)
		if m.OriginalSize != 4 || m.TargetSize != 4 {
			t.Errorf("got %+v, want it to have 4 GiB already", m)
		}
	})
}

func TestReplaceRoot(t *testing.T) {
	t.Parallel()
	r, _ := open(t)
	inst := stopped(t, r)
	old := volumeOf(t, r, inst, "/dev/sda1")
	task, err := r.ReplaceRootVolume(t.Context(), ReplaceRootInput{InstanceID: inst.InstanceID, DeleteReplacedVolume: true})
	must(t, err)
	if task.ReplacedID != old.VolumeID || volumeOf(t, r, get(r.instance(t.Context(), inst.InstanceID))(t), "/dev/sda1").VolumeID != task.VolumeID {
		t.Errorf("got %+v, want another root than %s", task, old.VolumeID)
	}
	for _, path := range []string{r.layers.HeadPath(old.VolumeID), r.lockPath(string(old.VolumeID))} {
		if _, err := os.Stat(path); !os.IsNotExist(err) {
			t.Errorf("%s is still there: %v", path, err)
		}
	}
	// A name of the same device, as the root may be attached with.
	must(t, detachErr(t, r, task.VolumeID))
	snap := get(r.snapshot(t.Context(), task.SnapshotID))(t)
	_, _, err = r.swapRoot(t.Context(), get(r.instanceRecord(t.Context(), inst.InstanceID))(t), snap, ReplaceRootInput{}) // detached since it was looked at
	wantCode(t, err, ami.CodeIncorrectState)
	_, err = r.AttachVolume(t.Context(), AttachVolumeInput{VolumeID: task.VolumeID, InstanceID: inst.InstanceID, Device: "sda1"})
	must(t, err)
	_, err = r.ReplaceRootVolume(t.Context(), ReplaceRootInput{InstanceID: inst.InstanceID})
	must(t, err)
	stale := inst // with the root that it had at first
	_, _, err = r.swapRoot(t.Context(), stale, snap, ReplaceRootInput{})
	wantCode(t, err, ami.CodeInvalidVolumeNotFound)
}

// A root is made of an image that could be launched in the instance's place, also at
// the moment when it is made.
func TestReplaceRootByImages(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	told := &listener{}
	r, o := h.open(t), h.open(t, as(stranger), tellingTo(told))
	ctx := t.Context()
	off, arm, theirs := image(t, r, "off"), get(r.RegisterImage(ctx, RegisterImageInput{
		Name: "arm", Architecture: ami.ArchARM64, BlockDeviceMappings: mapping(t, "/dev/sda1="+string(rootSnapshot(image(t, r, "base")))),
	}))(t), image(t, r, "theirs")
	inst := stopped(t, r)
	get(r.DisableImage(ctx, off.ImageID, false))(t)
	for _, tt := range []struct {
		r    *Region
		id   ami.ImageID
		want ami.Code
	}{
		{r, off.ImageID, ami.CodeInvalidAMIIDUnavailable},
		{r, arm.ImageID, ami.CodeInvalidParameterCombination},
		{r, ami.NewImageID(), ami.CodeInvalidAMIIDNotFound},
		{o, theirs.ImageID, ami.CodeInvalidAMIIDNotFound},
	} {
		of := inst
		if tt.r == o {
			of = stopped(t, o)
		}
		_, err := tt.r.ReplaceRootVolume(ctx, ReplaceRootInput{InstanceID: of.InstanceID, ImageID: tt.id})
		wantCode(t, err, tt.want)
	}
	share(t, r, theirs.ImageID, accountOf(stranger))
	of := stopped(t, o)
	in := ReplaceRootInput{InstanceID: of.InstanceID, ImageID: theirs.ImageID}
	get(o.SetAllowedImages(ctx, AllowedAudit, []ImageCriterion{{ImageNames: []string{"web-*"}}}, false))(t)
	get(o.ReplaceRootVolume(ctx, in))(t)
	if !told.noted("is not among the allowed images") {
		t.Error("the audit does not tell of the root")
	}
	snap := get(o.rootSnapshot(ctx, get(o.instance(ctx, of.InstanceID))(t), in))(t)
	get(r.DisableImage(ctx, theirs.ImageID, false))(t) // since it was looked at
	_, _, err := o.swapRoot(ctx, get(o.instanceRecord(ctx, of.InstanceID))(t), snap, in)
	wantCode(t, err, ami.CodeInvalidAMIIDNotFound)
}
