package region

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
)

// To another account all that is not its own is not there: it gets the same
// answers as for ids that do not exist, word for word.
func TestOtherAccount(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	r := h.open(t)
	i := image(t, r, "base")
	_, _, err := r.CreateKeyPair(t.Context(), "mine", "", false)
	must(t, err)
	inst := launched(t, r, RunInstancesInput{Image: "base", KeyName: "mine"})
	v := newVolume(t, r)
	o := h.open(t, as(stranger))
	its := image(t, o, "other")
	itsInst := launched(t, o, RunInstancesInput{Image: "other"})
	itsVol := newVolume(t, o)
	snap := rootSnapshot(i)

	for name, list := range map[string]func(*testing.T, DescribeInput) ([]string, error){
		"images": imageIDs(o), "snapshots": snapshotIDs(o), "volumes": volumeIDs(o), "instances": instanceIDs(o), "keys": keyNames(o),
	} {
		want := map[string]int{"images": 1, "snapshots": 1, "volumes": 2, "instances": 1}[name]
		if ids, err := list(t, DescribeInput{}); err != nil || len(ids) != want {
			t.Errorf("got the %s %v (%v), want its own %d", name, ids, err, want)
		}
	}

	absent := struct {
		i  ami.ImageID
		s  ami.SnapshotID
		v  ami.VolumeID
		in ami.InstanceID
	}{ami.NewImageID(), ami.NewSnapshotID(), ami.NewVolumeID(), ami.NewInstanceID()}
	ctx := t.Context()
	tests := []struct {
		name          string
		real, missing func() error
	}{
		{"launch", func() error { return launchErr(t, o, string(i.ImageID)) }, func() error { return launchErr(t, o, string(absent.i)) }},
		{"launch by name", func() error { return launchErr(t, o, "base") }, func() error { return launchErr(t, o, "none") }},
		{"deregister", func() error { _, err := o.DeregisterImage(ctx, i.ImageID, true, false); return err }, func() error { _, err := o.DeregisterImage(ctx, absent.i, true, false); return err }},
		{"register", func() error { return registerErr(t, o, snap) }, func() error { return registerErr(t, o, absent.s) }},
		{"map at launch", func() error { return mapErr(t, o, snap) }, func() error { return mapErr(t, o, absent.s) }},
		{"map in an image", func() error { return imageErr(t, o, itsInst, snap) }, func() error { return imageErr(t, o, itsInst, absent.s) }},
		{"delete a snapshot", func() error { return o.DeleteSnapshot(ctx, snap, false) }, func() error { return o.DeleteSnapshot(ctx, absent.s, false) }},
		{"volume of a snapshot", func() error { _, err := o.CreateVolume(ctx, CreateVolumeInput{SnapshotID: snap}); return err }, func() error { _, err := o.CreateVolume(ctx, CreateVolumeInput{SnapshotID: absent.s}); return err }},
		{"delete a volume", func() error { return o.DeleteVolume(ctx, v.VolumeID, false) }, func() error { return o.DeleteVolume(ctx, absent.v, false) }},
		{"snapshot of a volume", func() error { return shootErr(t, o, v.VolumeID) }, func() error { return shootErr(t, o, absent.v) }},
		{"attach a volume", func() error { return attachErr(t, o, v.VolumeID, itsInst.InstanceID) }, func() error { return attachErr(t, o, absent.v, itsInst.InstanceID) }},
		{"attach to an instance", func() error { return attachErr(t, o, itsVol.VolumeID, inst.InstanceID) }, func() error { return attachErr(t, o, itsVol.VolumeID, absent.in) }},
		{"detach", func() error { return detachErr(t, o, volumeOf(t, r, inst, "/dev/sda1").VolumeID) }, func() error { return detachErr(t, o, absent.v) }},
		{"start", func() error { _, err := o.StartInstances(ctx, []ami.InstanceID{inst.InstanceID}, false); return err }, func() error { _, err := o.StartInstances(ctx, []ami.InstanceID{absent.in}, false); return err }},
		{"stop", func() error { return stopErr(t, o, inst.InstanceID) }, func() error { return stopErr(t, o, absent.in) }},
		{"reboot", func() error { return o.RebootInstances(ctx, []ami.InstanceID{inst.InstanceID}, false) }, func() error { return o.RebootInstances(ctx, []ami.InstanceID{absent.in}, false) }},
		{"terminate", func() error {
			_, err := o.TerminateInstances(ctx, []ami.InstanceID{inst.InstanceID}, false)
			return err
		}, func() error { _, err := o.TerminateInstances(ctx, []ami.InstanceID{absent.in}, false); return err }},
		{"image", func() error { return imageErr(t, o, inst, "") }, func() error { return imageErr(t, o, ami.Instance{InstanceID: absent.in}, "") }},
		{"ssh", func() error { _, err := o.SSH(ctx, inst.InstanceID); return err }, func() error { _, err := o.SSH(ctx, absent.in); return err }},
		{"console", func() error { _, err := o.ConsoleLog(ctx, inst.InstanceID); return err }, func() error { _, err := o.ConsoleLog(ctx, absent.in); return err }},
		{"wait", func() error { _, err := o.WaitInstance(ctx, inst.InstanceID, WaitRunning, 0); return err }, func() error { _, err := o.WaitInstance(ctx, absent.in, WaitRunning, 0); return err }},
		{"launch with a key", func() error { return keyErr(t, o, "mine") }, func() error { return keyErr(t, o, "none") }},
		{"tag an image", func() error { return tagErr(t, o, string(i.ImageID)) }, func() error { return tagErr(t, o, string(absent.i)) }},
		{"tag a snapshot", func() error { return tagErr(t, o, string(snap)) }, func() error { return tagErr(t, o, string(absent.s)) }},
		{"tag a volume", func() error { return tagErr(t, o, string(v.VolumeID)) }, func() error { return tagErr(t, o, string(absent.v)) }},
		{"tag an instance", func() error { return tagErr(t, o, string(inst.InstanceID)) }, func() error { return tagErr(t, o, string(absent.in)) }},
	}
	names := map[string]string{
		string(i.ImageID): "ID", string(absent.i): "ID", string(snap): "ID", string(absent.s): "ID", string(v.VolumeID): "ID",
		string(absent.v): "ID", string(inst.InstanceID): "ID", string(absent.in): "ID", "mine": "ID", "base": "ID", "none": "ID",
		string(volumeOf(t, r, inst, "/dev/sda1").VolumeID): "ID",
	}
	before := look(t, r, h.driver)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, want := tt.real(), tt.missing()
			if got == nil || want == nil || replaced(got.Error(), names) != replaced(want.Error(), names) {
				t.Errorf("got %v, want the same as for what does not exist: %v", got, want)
			}
			if diff := cmp.Diff(before, look(t, r, h.driver)); diff != "" {
				t.Errorf("it changed something (-before +after):\n%s", diff)
			}
		})
	}
	// Names are free in another account.
	image(t, o, "base")
	_, _, err = o.CreateKeyPair(t.Context(), "mine", "", false)
	must(t, err)
	if its.OwnerID != stranger || itsInst.OwnerID != stranger || itsVol.OwnerID != stranger {
		t.Errorf("what it made belongs to %s, %s and %s", its.OwnerID, itsInst.OwnerID, itsVol.OwnerID)
	}
}

// A public image can be launched by everybody, and changed by its owner alone.
func TestPublicImage(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	r := h.open(t)
	i := image(t, r, "base")
	must(t, r.catalog.Update(t.Context(), func(tx *catalog.Tx) error {
		i.Public = true
		return tx.PutImage(i)
	}))
	o := h.open(t, as(stranger))
	inst := launched(t, o, RunInstancesInput{Image: string(i.ImageID)})
	next, err := o.CreateImage(t.Context(), CreateImageInput{InstanceID: inst.InstanceID, Name: "other"})
	must(t, err)
	if next.OwnerID != stranger || next.SourceImageID != i.ImageID || next.Public {
		t.Errorf("got %+v, want an image of its own", next)
	}
	usage, err := o.StoreUsage(t.Context())
	must(t, err)
	if len(usage.Images) != 2 || usage.Images[0].Chain == 0 {
		t.Errorf("got the costs %+v, want those of both images", usage.Images)
	}
	_, err = o.DeregisterImage(t.Context(), i.ImageID, false, false)
	wantCode(t, err, ami.CodeAuthFailure)
	wantCode(t, o.DeleteSnapshot(t.Context(), rootSnapshot(i), false), ami.CodeInvalidSnapshotNotFound)
	_, err = o.CreateVolume(t.Context(), CreateVolumeInput{SnapshotID: rootSnapshot(i)})
	wantCode(t, err, ami.CodeInvalidSnapshotNotFound)
	wantCode(t, registerErr(t, o, rootSnapshot(i)), ami.CodeInvalidSnapshotNotFound)
	wantCode(t, tagErr(t, o, string(i.ImageID)), ami.CodeInvalidAMIIDNotFound)
	must(t, r.catalog.Update(t.Context(), func(tx *catalog.Tx) error {
		i.Public = false
		return tx.PutImage(i)
	}))
	wantCode(t, launchErr(t, o, string(i.ImageID)), ami.CodeInvalidAMIIDNotFound)
	wantCode(t, mapErr(t, o, rootSnapshot(i)), ami.CodeInvalidSnapshotNotFound)
}
