package region

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
	"github.com/kamivm/kami/pkg/snapshot"
)

// race does the same at once in several regions that are open on one home.
func race(regions []*Region, do func(n int, r *Region) error) []error {
	errs := make([]error, len(regions))
	start := make(chan struct{})
	var wg sync.WaitGroup
	for n, r := range regions {
		wg.Go(func() {
			<-start
			errs[n] = do(n, r)
		})
	}
	close(start)
	wg.Wait()
	return errs
}

// wantOneWinner checks that one of several succeeded, and how the others failed.
func wantOneWinner(t *testing.T, errs []error, losers ...ami.Code) {
	t.Helper()
	won := 0
	for _, err := range errs {
		if err == nil {
			won++
		} else if code := ami.ErrorCode(err); !slices.Contains(losers, code) {
			t.Errorf("a loser got %v, want one of %v", err, losers)
		}
	}
	if won != 1 {
		t.Errorf("%d of %d won, want one: %v", won, len(errs), errs)
	}
}

func (h *house) openTwice(t *testing.T) []*Region { return []*Region{h.open(t), h.open(t)} }

func TestRaceForAName(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	rs := h.openTwice(t)
	const rounds = 8
	onRoot := mapping(t, "/dev/sda1="+string(rootSnapshot(image(t, rs[0], "root"))))
	for n := range rounds {
		name := fmt.Sprintf("name %d", n)
		disks := []string{rawDisk(t, name), rawDisk(t, name+" too")}
		wantOneWinner(t, race(rs, func(n int, r *Region) error {
			_, err := r.ImportImage(t.Context(), ImportInput{Source: disks[n], Name: name})
			return err
		}), ami.CodeInvalidAMINameDuplicate)
		wantOneWinner(t, race(rs, func(_ int, r *Region) error {
			_, err := r.RegisterImage(t.Context(), RegisterImageInput{Name: "registered " + name, BlockDeviceMappings: onRoot})
			return err
		}), ami.CodeInvalidAMINameDuplicate)
		wantOneWinner(t, race(rs, func(_ int, r *Region) error {
			_, _, err := r.CreateKeyPair(t.Context(), name, "", false)
			return err
		}), ami.CodeInvalidKeyPairDuplicate)
	}
	got := look(t, rs[0], h.driver)
	if len(got.Images) != 1+2*rounds || len(got.Snapshots) != 1+rounds || len(got.Keys) != rounds || len(got.Leases) != 0 {
		t.Errorf("got %d images, %d snapshots, %d keys and the leases %v", len(got.Images), len(got.Snapshots), len(got.Keys), got.Leases)
	}
}

// TestRaceForANameOfTwoAccounts: a name is one account's, and another has it too.
func TestRaceForANameOfTwoAccounts(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	rs := []*Region{h.open(t, as(alice)), h.open(t, as(bob))}
	disks := []string{rawDisk(t, "of alice"), rawDisk(t, "of bob")}
	for n := range 4 {
		name := fmt.Sprintf("name %d", n)
		for i, err := range race(rs, func(n int, r *Region) error {
			_, err := r.ImportImage(t.Context(), ImportInput{Source: disks[n], Name: name})
			return err
		}) {
			if err != nil {
				t.Errorf("%s of account %d: %v", name, i, err)
			}
		}
		for i, account := range []string{alice, bob} {
			got := get(rs[i].ResolveImage(t.Context(), name, false))(t)
			if got.OwnerID != account {
				t.Errorf("%s has the image of %s by that name", account, got.OwnerID)
			}
		}
	}
}

func TestRaceForAVolume(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	rs := h.openTwice(t)
	insts := []ami.Instance{running(t, rs[0]), running(t, rs[0])}
	for range 8 {
		v := newVolume(t, rs[0])
		wantOneWinner(t, race(rs, func(n int, r *Region) error { return attachErr(t, r, v.VolumeID, insts[n].InstanceID) }), ami.CodeVolumeInUse)
		holders := 0
		for _, inst := range insts {
			spec, _ := h.driver.Spec(inst.InstanceID)
			recorded := slices.ContainsFunc(wantState(t, rs[0], inst.InstanceID, ami.InstanceRunning).BlockDeviceMappings,
				func(bd ami.InstanceBlockDevice) bool { return bd.Ebs.VolumeID == v.VolumeID })
			for _, d := range spec.Disks {
				if d.Path == rs[0].layers.HeadPath(v.VolumeID) {
					holders++
					if !recorded {
						t.Errorf("the guest %s has a disk that its record does not know", inst.InstanceID)
					}
				}
			}
		}
		if holders != 1 {
			t.Errorf("%d guests have the volume, want one", holders)
		}
		wantOneWinner(t, race(rs, func(_ int, r *Region) error { return detachErr(t, r, v.VolumeID) }), ami.CodeIncorrectState)
		wantOneWinner(t, race(rs, func(_ int, r *Region) error { return r.DeleteVolume(t.Context(), v.VolumeID, false) }), ami.CodeInvalidVolumeNotFound)
	}
}

// Two volumes that are attached at once do not get one device.
func TestRaceForADevice(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	rs := h.openTwice(t)
	inst := running(t, rs[0])
	for range 4 {
		vols := []ami.Volume{newVolume(t, rs[0]), newVolume(t, rs[0])}
		for _, err := range race(rs, func(n int, r *Region) error { return attachErr(t, r, vols[n].VolumeID, inst.InstanceID) }) {
			if err != nil { // the other one was at work
				wantCode(t, err, ami.CodeIncorrectInstanceState)
			}
		}
		seen := map[string]bool{}
		for _, bd := range wantState(t, rs[0], inst.InstanceID, ami.InstanceRunning).BlockDeviceMappings {
			if seen[bd.DeviceName] {
				t.Errorf("%s is there twice", bd.DeviceName)
			}
			seen[bd.DeviceName] = true
			if v := get(rs[0].volumeRecord(t.Context(), bd.Ebs.VolumeID))(t); len(v.Attachments) != 1 || v.Attachments[0].Device != bd.DeviceName {
				t.Errorf("%s is not at %s in its own record: %+v", v.VolumeID, bd.DeviceName, v.Attachments)
			}
		}
	}
}

// Whatever is done to one instance at once, it is done one after the other or
// refused, and the records say afterwards what the guest does.
func TestRaceForAnInstance(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	rs := []*Region{h.open(t), h.open(t), h.open(t), h.open(t)}
	image(t, rs[0], "base")
	inst := launched(t, rs[0], RunInstancesInput{Image: "base", BlockDeviceMappings: mapping(t, "/dev/sdf=ephemeral0")})
	ids := []ami.InstanceID{inst.InstanceID}
	start := func(r *Region) error { _, err := r.StartInstances(t.Context(), ids, false); return err }
	stop := func(r *Region) error { return stopErr(t, r, ids...) }
	reboot := func(r *Region) error { return r.RebootInstances(t.Context(), ids, false) }
	list := func(r *Region) error { _, err := r.DescribeInstances(t.Context(), DescribeInput{}); return err }
	shoot := func(r *Region) error { return imageErr(t, r, inst, "") }
	rounds := [][]func(*Region) error{
		{stop, stop, list, list},
		{start, start, list, start},
		{stop, start, reboot, list},
		{reboot, reboot, list, list},
		{shoot, start, stop, list},
		{start, start, start, start},
		{shoot, reboot, list, stop},
		{start, shoot, list, list},
	}
	for n, round := range rounds {
		for _, err := range race(rs, func(n int, r *Region) error { return round[n](r) }) {
			switch ami.ErrorCode(err) {
			case "", ami.CodeIncorrectInstanceState, ami.CodeInvalidAMINameDuplicate:
			default:
				t.Errorf("round %d: got %v, want it done or refused", n, err)
			}
		}
		_, runs := h.driver.Spec(inst.InstanceID)
		want := ami.InstanceStopped
		if runs {
			want = ami.InstanceRunning
		}
		must(t, rs[0].catalog.View(t.Context(), func(tx *catalog.Tx) error {
			got, err := tx.Instance(inst.InstanceID)
			if got.State.Name != want {
				t.Errorf("round %d: the record says %s, want %s", n, got.State.Name, want)
			}
			return err
		}))
	}
	for _, err := range race(rs, func(_ int, r *Region) error { _, err := r.TerminateInstances(t.Context(), ids, false); return err }) {
		if err != nil {
			wantCode(t, err, ami.CodeIncorrectInstanceState)
		}
	}
	wantState(t, rs[0], inst.InstanceID, ami.InstanceTerminated)
	if got := look(t, rs[0], h.driver); len(got.Volumes)+len(got.Files)+len(got.Guests) > 0 {
		t.Errorf("got the volumes %v, files %v and guests %v, want none", got.Volumes, got.Files, got.Guests)
	}
}

// While an image is made nobody starts the guest, and a guest that is off for
// the reboot is not taken for one that has shut itself down.
func TestNobodyDisturbsCreateImage(t *testing.T) {
	t.Parallel()
	for _, behaviour := range []ami.ShutdownBehavior{ami.ShutdownStop, ami.ShutdownTerminate} {
		for _, state := range []ami.InstanceState{ami.InstanceRunning, ami.InstanceStopped} {
			t.Run(fmt.Sprintf("%s, %s on shutdown", state, behaviour), func(t *testing.T) {
				h := newHouse(t)
				l := &listener{}
				r, other := h.open(t, tellingTo(l)), h.open(t)
				image(t, other, "base")
				inst := launched(t, other, RunInstancesInput{Image: "base", ShutdownBehavior: behaviour})
				if state == ami.InstanceStopped {
					stop(t, other, inst.InstanceID)
				}
				v := volumeOf(t, other, inst, "/dev/sda1")
				disturbed := 0
				l.onStep = func(name string) {
					if !strings.HasPrefix(name, "writing ") {
						return
					}
					disturbed++
					wantState(t, other, inst.InstanceID, state)
					_, err := other.StartInstances(t.Context(), []ami.InstanceID{inst.InstanceID}, false)
					if state == ami.InstanceStopped {
						wantCode(t, err, ami.CodeIncorrectInstanceState)
					}
					_, err = other.TerminateInstances(t.Context(), []ami.InstanceID{inst.InstanceID}, false)
					wantCode(t, err, ami.CodeIncorrectInstanceState)
					wantCode(t, r.RebootInstances(t.Context(), []ami.InstanceID{inst.InstanceID}, false), ami.CodeIncorrectInstanceState)
					if _, runs := h.driver.Spec(inst.InstanceID); runs {
						t.Error("the guest runs while its disks are read")
					}
				}
				must(t, imageErr(t, r, inst, ""))
				wantState(t, other, inst.InstanceID, state)
				if got := get(other.volume(t.Context(), v.VolumeID))(t); got.State != ami.VolumeInUse || disturbed != 1 {
					t.Errorf("the volume is %s after %d disturbances, want it in use after one", got.State, disturbed)
				}
			})
		}
	}
}

// A layer that a snapshot is about to be made of is not removed because the last
// snapshot that had it is deleted at that moment: neither an equal one, nor the
// one that the new one stands on.
func TestSnapshotsDeletedMeanwhile(t *testing.T) {
	t.Parallel()
	moments := map[string]func(l *listener, do func(string)){
		"before the layer is written": func(l *listener, do func(string)) { l.onStep = do },
		"while it is written":         func(l *listener, do func(string)) { l.onAdd = do },
		"after it is written":         func(l *listener, do func(string)) { l.onDone = do },
	}
	for name, arrange := range moments {
		for _, changed := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, changed %v", name, changed), func(t *testing.T) {
				h := newHouse(t)
				l := &listener{}
				r, other := h.open(t, tellingTo(l)), h.open(t)
				inst := stopped(t, other)
				v := volumeOf(t, other, inst, "/dev/sda1")
				scribble(t, other, v.VolumeID, 7)
				first, err := other.CreateSnapshot(t.Context(), CreateSnapshotInput{VolumeID: v.VolumeID})
				must(t, err)
				if changed { // the next one stands on the first one
					must(t, other.catalog.Update(t.Context(), func(tx *catalog.Tx) error {
						v.TrackedLayer = first.Layer
						return tx.PutVolume(v)
					}))
					scribble(t, other, v.VolumeID, 8)
				}
				var once sync.Once
				arrange(l, func(name string) {
					if strings.HasPrefix(name, "writing ") {
						once.Do(func() { // perhaps not in the test's goroutine
							if err := other.DeleteSnapshot(t.Context(), first.SnapshotID, false); err != nil {
								t.Error(err)
							}
						})
					}
				})
				got, err := r.CreateSnapshot(t.Context(), CreateSnapshotInput{VolumeID: v.VolumeID})
				must(t, err)
				if _, err := other.snapshot(t.Context(), first.SnapshotID); ami.ErrorCode(err) != ami.CodeInvalidSnapshotNotFound {
					t.Fatalf("the first snapshot was not deleted: %v", err)
				}
				want := byte(7)
				if changed {
					want = 8
				}
				if b := written(t, r, got.SnapshotID); b != want {
					t.Errorf("the snapshot has the byte %d, want %d", b, want)
				}
				must(t, r.layers.VerifyLayer(t.Context(), got.Layer, ami.NoProgress.Step("", 0)))
			})
		}
	}
	t.Run("an equal one of another volume", func(t *testing.T) {
		h := newHouse(t)
		l := &listener{}
		r, other := h.open(t, tellingTo(l)), h.open(t)
		i := image(t, other, "base")
		var snaps []ami.Snapshot
		for range 2 {
			v, err := other.CreateVolume(t.Context(), CreateVolumeInput{SnapshotID: rootSnapshot(i)})
			must(t, err)
			scribble(t, other, v.VolumeID, 7)
			snap, err := r.CreateSnapshot(t.Context(), CreateSnapshotInput{VolumeID: v.VolumeID})
			must(t, err)
			snaps = append(snaps, snap)
			// The first volume goes as well, or it would keep its layer.
			var once sync.Once
			l.onDone = func(string) {
				once.Do(func() {
					must(t, other.DeleteVolume(t.Context(), v.VolumeID, false))
					must(t, other.DeleteSnapshot(t.Context(), snap.SnapshotID, false))
				})
			}
		}
		if snaps[0].Layer != snaps[1].Layer {
			t.Fatalf("got the layers %s and %s, want one for both", snaps[0].Layer, snaps[1].Layer)
		}
		if b := written(t, r, snaps[1].SnapshotID); b != 7 {
			t.Errorf("the snapshot has the byte %d, want 7", b)
		}
	})
	t.Run("what was deleted before is said so", func(t *testing.T) {
		r, _ := open(t)
		inst := stopped(t, r)
		v := volumeOf(t, r, inst, "/dev/sda1")
		snap := r.newSnapshot(v.VolumeID, "", v.SizeBytes, nil)
		head, err := r.layers.OpenHead(v.VolumeID, v.Layer)
		must(t, err)
		defer head.Close()
		must(t, r.layers.RemoveHead(v.VolumeID))
		must(t, r.layers.RemoveLayer(v.Layer))
		_, err = r.writeLayer(t.Context(), snap.SnapshotID, head, v.Layer)
		wantSays(t, err, snapshot.ErrNotFound.Error())
	})
}
