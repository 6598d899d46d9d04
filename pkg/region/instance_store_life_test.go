package region

import (
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
	"github.com/kamivm/kami/pkg/hypervisor"
	"github.com/kamivm/kami/pkg/hypervisor/hypervisortest"
	"github.com/kamivm/kami/pkg/launch"
)

// rootBytes are the first bytes of an instance's root, as its guest reads them.
func rootBytes(t *testing.T, r *Region, inst ami.Instance) string {
	t.Helper()
	v := volumeOf(t, r, inst, inst.RootDeviceName)
	head := get(r.layers.OpenHead(v.VolumeID, v.Layer))(t)
	defer head.Close()
	b := make([]byte, 512)
	get(head.ReadAt(b, 0))(t)
	return string(b)
}

// scribbled is the byte that a volume has where scribble writes.
func scribbled(t *testing.T, r *Region, inst ami.Instance, device string) byte {
	t.Helper()
	v := volumeOf(t, r, inst, device)
	head := get(r.layers.OpenHead(v.VolumeID, v.Layer))(t)
	defer head.Close()
	b := make([]byte, 1)
	get(head.ReadAt(b, 1<<20))(t)
	return b[0]
}

func TestLaunchFromBundle(t *testing.T) {
	t.Parallel()
	r, d := open(t)
	i := storeImage(t, r, "web")
	first := launched(t, r, RunInstancesInput{Image: "web", BlockDeviceMappings: mapping(t, "/dev/sdb=ephemeral0", "/dev/sdf=:1")})
	if first.RootDeviceType != "instance-store" || first.ShutdownBehavior != ami.ShutdownTerminate || first.ImageID != i.ImageID {
		t.Errorf("got a root of %s, shutdown %s, image %s", first.RootDeviceType, first.ShutdownBehavior, first.ImageID)
	}
	if got := rootBytes(t, r, first); got != string(hypervisortest.BootSector("web")) {
		t.Errorf("the root begins with %q", got)
	}
	root, eph := volumeOf(t, r, first, "/dev/sda1"), volumeOf(t, r, first, "/dev/sdb")
	if !root.Ephemeral || root.SizeBytes != 2<<20 || root.Size != 1 || root.Layer == "" || root.Encrypted || !eph.Ephemeral || eph.Layer == "" {
		t.Errorf("got the root %+v and the ephemeral disk %+v", root, eph)
	}
	// Neither is a volume to anybody.
	shown := get(r.DescribeVolumes(t.Context(), DescribeInput{}))(t)
	if len(shown) != 1 || shown[0].Attachments[0].Device != "/dev/sdf" {
		t.Errorf("got the volumes %v, want the one at /dev/sdf", shown)
	}
	spec, _ := d.Spec(first.InstanceID)
	if len(spec.Disks) < 3 || spec.Disks[0].Device != "/dev/sda1" || !spec.Disks[0].Boot || len(spec.Disks[0].Backing) != 1 {
		t.Errorf("got the disks %+v, want the root first, on one layer", spec.Disks)
	}
	md := get(r.Metadata(t.Context(), first.InstanceID))(t)
	if md.ManifestPath != "images/web.manifest" || !slices.Contains(md.Devices, ami.MetadataDevice{Name: "ephemeral0", Device: "/dev/sdb"}) || len(md.Devices) != 2 {
		t.Errorf("got the manifest %q and the devices %v", md.ManifestPath, md.Devices)
	}
	// The second one costs a head each: no chunk is read.
	must(t, os.RemoveAll(r.path("objects", "images", "chunks")))
	other := launched(t, r, RunInstancesInput{Image: "web", BlockDeviceMappings: mapping(t, "/dev/sda1=:3")})
	large := volumeOf(t, r, other, "/dev/sda1")
	if large.Layer != root.Layer || large.SizeBytes != 3*gib || large.Size != 3 {
		t.Errorf("got %+v, want 3 GiB on the same layer", large)
	}
	wantCode(t, second(r.RunInstances(t.Context(), RunInstancesInput{Image: "web", BlockDeviceMappings: mapping(t, "/dev/sda1=:11")})), ami.CodeInvalidBlockDeviceMapping)
	wantCode(t, second(r.RunInstances(t.Context(), RunInstancesInput{Image: "web", ShutdownBehavior: ami.ShutdownStop})), ami.CodeInvalidParameterCombination)
	terminate(t, r, first.InstanceID, other.InstanceID)
	left := get(r.DescribeVolumes(t.Context(), DescribeInput{}))(t)
	if heads := get(r.layers.Heads())(t); len(heads) != 1 || len(left) != 1 || left[0].State != ami.VolumeAvailable {
		t.Errorf("got the heads %v and the volumes %v, want that at /dev/sdf alone", heads, left)
	}
}

// An encrypted root is asked for, and stands on a layer that is not.
func TestEncryptedStoreRoot(t *testing.T) {
	t.Parallel()
	r, _ := open(t)
	storeImage(t, r, "web")
	over := []ami.BlockDeviceMapping{{DeviceName: "/dev/sda1", Ebs: &ami.EBSBlockDevice{Encrypted: new(true)}}}
	inst := launched(t, r, RunInstancesInput{Image: "web", BlockDeviceMappings: over})
	v := volumeOf(t, r, inst, "/dev/sda1")
	if enc := get(r.layers.HeadEncryption(v.VolumeID))(t); !v.Encrypted || enc == nil || enc.KeyID() != v.KmsKeyID {
		t.Errorf("got %+v with a head of %v", v, enc)
	}
	if got := rootBytes(t, r, inst); got != string(hypervisortest.BootSector("web")) {
		t.Errorf("the root begins with %q", got)
	}
}

// What is offered as ephemeral0 has a file system of that label.
func TestEphemeralIsFormatted(t *testing.T) {
	t.Parallel()
	r, _ := open(t)
	image(t, r, "base")
	inst := launched(t, r, RunInstancesInput{Image: "base", BlockDeviceMappings: mapping(t, "/dev/sdb=ephemeral0", "/dev/sdc=ephemeral1")})
	super := func(device string) []byte {
		v := volumeOf(t, r, inst, device)
		if v.SizeBytes != launch.EphemeralGiB*gib {
			t.Errorf("%s has %d bytes", device, v.SizeBytes)
		}
		head := get(r.layers.OpenHead(v.VolumeID, v.Layer))(t)
		defer head.Close()
		b := make([]byte, 1024)
		get(head.ReadAt(b, 1024))(t)
		return b
	}
	zero, one := super("/dev/sdb"), super("/dev/sdc")
	if zero[0x38] != 0x53 || zero[0x39] != 0xef || strings.TrimRight(string(zero[0x78:0x88]), "\x00") != "ephemeral0" || string(zero[0x68:0x78]) == string(one[0x68:0x78]) {
		t.Errorf("got no ext4 of that label and of its own identity: % x", zero[:0x88])
	}
	// It is as at first after a stop, and after that after a launch.
	scribble(t, r, volumeOf(t, r, inst, "/dev/sdb").VolumeID, 7)
	before := volumeOf(t, r, inst, "/dev/sdb").Layer
	stop(t, r, inst.InstanceID)
	get(r.StartInstances(t.Context(), []ami.InstanceID{inst.InstanceID}, false))(t)
	if got := super("/dev/sdb"); string(got) != string(zero) || volumeOf(t, r, inst, "/dev/sdb").Layer != before {
		t.Error("it is not as it was made")
	}
}

// Two launches at once fetch the root once.
func TestFetchedOnce(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	var mu sync.Mutex
	fetched := 0
	l := &listener{onStep: func(name string) {
		mu.Lock()
		defer mu.Unlock()
		if strings.HasPrefix(name, "fetching ") {
			fetched++
		}
	}}
	storeImage(t, h.open(t), "web")
	var all sync.WaitGroup
	for range 4 {
		r := h.open(t, tellingTo(l))
		all.Go(func() {
			if _, err := r.RunInstances(t.Context(), RunInstancesInput{Image: "web"}); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if fetched != 1 {
		t.Errorf("the root was fetched %d times, want once", fetched)
	}
}

func TestStoreGuestIsNotStopped(t *testing.T) {
	t.Parallel()
	r, _ := open(t)
	inst := storeGuest(t, r)
	id := inst.InstanceID
	root := volumeOf(t, r, inst, "/dev/sda1").VolumeID
	v := newVolume(t, r)
	ebs := image(t, r, "base")
	ordinary := launched(t, r, RunInstancesInput{Image: "base"})
	for what, err := range map[string]error{
		"stop":         stopErr(t, r, id),
		"stop of two":  stopErr(t, r, ordinary.InstanceID, id),
		"start":        second(r.StartInstances(t.Context(), []ami.InstanceID{id}, false)),
		"another root": second(r.ReplaceRootVolume(t.Context(), ReplaceRootInput{InstanceID: id})),
		"such a root":  second(r.ReplaceRootVolume(t.Context(), ReplaceRootInput{InstanceID: ordinary.InstanceID, ImageID: inst.ImageID})),
		"an EBS root":  second(r.ReplaceRootVolume(t.Context(), ReplaceRootInput{InstanceID: id, ImageID: ebs.ImageID})),
		"dry stop":     second(r.StopInstances(t.Context(), StopInput{InstanceIDs: []ami.InstanceID{id}, DryRun: true})),
	} {
		if got := ami.ErrorCode(err); got != ami.CodeUnsupportedOperation {
			t.Errorf("%s: got %v, want UnsupportedOperation", what, err)
		}
	}
	for _, live := range []bool{false, true} {
		wantCode(t, second(r.CreateImage(t.Context(), CreateImageInput{InstanceID: id, Name: "next", NoReboot: live})), ami.CodeNonEBSInstance)
	}
	for what, err := range map[string]error{
		"snapshot": second(r.CreateSnapshot(t.Context(), CreateSnapshotInput{VolumeID: root})),
		"detach":   second(r.DetachVolume(t.Context(), root, true, false)),
		"delete":   r.DeleteVolume(t.Context(), root, false),
		"modify":   second(r.ModifyVolume(t.Context(), ModifyVolumeInput{VolumeID: root, Size: 8})),
	} {
		if got := ami.ErrorCode(err); got != ami.CodeInvalidVolumeNotFound {
			t.Errorf("%s of the root: got %v, want InvalidVolume.NotFound", what, err)
		}
	}
	wantState(t, r, ordinary.InstanceID, ami.InstanceRunning)
	get(r.AttachVolume(t.Context(), AttachVolumeInput{VolumeID: v.VolumeID, InstanceID: id}))(t)
	get(r.DetachVolume(t.Context(), v.VolumeID, false, false))(t)
	wantState(t, r, id, ami.InstanceRunning)
}

func TestStoreGuestsEnd(t *testing.T) {
	t.Parallel()
	r, d := open(t)
	inst := storeGuest(t, r)
	v := newVolume(t, r)
	get(r.AttachVolume(t.Context(), AttachVolumeInput{VolumeID: v.VolumeID, InstanceID: inst.InstanceID}))(t)
	root := volumeOf(t, r, inst, "/dev/sda1")
	scribble(t, r, root.VolumeID, 7)
	must(t, r.RebootInstances(t.Context(), []ami.InstanceID{inst.InstanceID}, false))
	wantState(t, r, inst.InstanceID, ami.InstanceRunning)
	if scribbled(t, r, inst, "/dev/sda1") != 7 {
		t.Error("a reboot has lost what was written")
	}
	if _, err := os.Lstat(r.rebootingPath(inst.InstanceID)); !os.IsNotExist(err) {
		t.Errorf("the mark of the reboot is left: %v", err)
	}
	d.PowerOff(inst.InstanceID)
	got := wantState(t, r, inst.InstanceID, ami.InstanceTerminated)
	if got.StateReason == nil || got.StateReason.Code != "Client.InstanceInitiatedShutdown" {
		t.Errorf("got the reason %v", got.StateReason)
	}
	if _, err := os.Lstat(r.layers.HeadPath(root.VolumeID)); !os.IsNotExist(err) {
		t.Errorf("its root is still there: %v", err)
	}
	if left := get(r.volume(t.Context(), v.VolumeID))(t); left.State != ami.VolumeAvailable {
		t.Errorf("its volume is %s", left.State)
	}
}

// What nobody asked for takes nothing: the guest is off, its root is as it was, and
// it can be started.
func TestStoreGuestWhoseHostDied(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"the host's power", "the guest's process"} {
		t.Run(how, func(t *testing.T) {
			r, d := open(t)
			inst := launched(t, r, RunInstancesInput{Image: string(storeImage(t, r, "web").ImageID), BlockDeviceMappings: mapping(t, "/dev/sdb=ephemeral0")})
			scribble(t, r, volumeOf(t, r, inst, "/dev/sda1").VolumeID, 7)
			scribble(t, r, volumeOf(t, r, inst, "/dev/sdb").VolumeID, 8)
			if how == "the host's power" {
				d.PowerOff(inst.InstanceID)
				must(t, r.updateInstance(t.Context(), inst.InstanceID, func(i *ami.Instance) { i.HostBoot = "of yesterday" }))
			} else {
				d.Pause(inst.InstanceID, hypervisor.StateCrashed)
			}
			got := wantState(t, r, inst.InstanceID, ami.InstanceStopped)
			if got.StateReason == nil || got.StateReason.Code != "Server.InternalError" {
				t.Errorf("got the reason %v", got.StateReason)
			}
			wantCode(t, stopErr(t, r, inst.InstanceID), ami.CodeUnsupportedOperation)
			must(t, d.Destroy(t.Context(), inst.InstanceID)) // what is left of the process
			get(r.StartInstances(t.Context(), []ami.InstanceID{inst.InstanceID}, false))(t)
			again := wantState(t, r, inst.InstanceID, ami.InstanceRunning)
			if scribbled(t, r, inst, "/dev/sda1") != 7 || again.HostBoot != hostBoot() {
				t.Errorf("it is not as it was, or not of this run of the host: %q", again.HostBoot)
			}
			if scribbled(t, r, inst, "/dev/sdb") != 8 {
				t.Error("its ephemeral disk is not as it was")
			}
			d.PowerOff(inst.InstanceID) // and this is its own will
			wantState(t, r, inst.InstanceID, ami.InstanceTerminated)
		})
	}
}

// A guest whose reboot was interrupted is started again by the next command.
func TestStoreGuestsRebootIsFinished(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	r := h.open(t)
	inst := storeGuest(t, r)
	done := get(r.markReboot(t.Context(), inst.InstanceID))(t)
	h.driver.PowerOff(inst.InstanceID)
	must(t, r.putStopped(t.Context(), inst.InstanceID, nil))
	// As when the process is gone, and its lock with it.
	must(t, os.Rename(r.rebootingPath(inst.InstanceID), r.path("tmp", "held")))
	must(t, os.WriteFile(r.rebootingPath(inst.InstanceID), nil, 0o600))
	next := h.open(t)
	wantState(t, next, inst.InstanceID, ami.InstanceRunning)
	done()
}

// The image of a guest that lives can go, and so can its bundle.
func TestStoreImageOfALivingGuest(t *testing.T) {
	t.Parallel()
	r, _ := open(t)
	inst := storeGuest(t, r)
	root := volumeOf(t, r, inst, "/dev/sda1")
	get(r.DeregisterImage(t.Context(), inst.ImageID, true, false))(t)
	if _, err := os.Lstat(manifestPath(r, "web")); err != nil {
		t.Errorf("deregistering has deleted the bundle: %v", err)
	}
	get(r.DeleteBundle(t.Context(), DeleteBundleInput{Location: "images/web"}))(t)
	get(r.RemoveGarbage(t.Context(), get(r.PlanGarbage(t.Context(), GCInput{Cache: true}))(t)))(t)
	must(t, r.RebootInstances(t.Context(), []ami.InstanceID{inst.InstanceID}, false))
	get(r.layers.Layer(root.Layer))(t)
	// What it has become is an image again.
	spec := BundleSpec{Location: "images/next", NoFilter: true}
	get(r.BundleInstance(t.Context(), BundleInstanceInput{BundleSpec: spec, InstanceID: inst.InstanceID, Require: ami.ConsistencyCrash}))(t)
	next := get(r.RegisterImage(t.Context(), ofBundle("next")))(t)
	if got := rootBytes(t, r, launched(t, r, RunInstancesInput{Image: string(next.ImageID)})); got != string(hypervisortest.BootSector("web")) {
		t.Errorf("the next one's root begins with %q", got)
	}
	terminate(t, r, inst.InstanceID)
	must(t, r.catalog.View(t.Context(), func(tx *catalog.Tx) error {
		_, err := tx.Instance(inst.InstanceID)
		return err
	}))
}
