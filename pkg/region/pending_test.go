package region

import (
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
	"github.com/kamivm/kami/pkg/hypervisor/fake"
)

// meanwhile is a region, and another one through which do comes in between while
// the first one writes its next layer.
func meanwhile(t *testing.T) (r, other *Region, arrange func(do func())) {
	t.Helper()
	h := newHouse(t)
	l := &listener{}
	r, other = h.open(t, tellingTo(l)), h.open(t)
	return r, other, func(do func()) {
		var once sync.Once
		l.onStep = func(name string) {
			if strings.HasPrefix(name, "writing ") {
				once.Do(do)
			}
		}
	}
}

// A snapshot that an image is about to map cannot be deleted.
func TestAddedSnapshotStays(t *testing.T) {
	t.Parallel()
	r, other, arrange := meanwhile(t)
	inst := stopped(t, other)
	added, err := other.CreateSnapshot(t.Context(), CreateSnapshotInput{VolumeID: newVolume(t, other).VolumeID})
	must(t, err)
	arrange(func() {
		wantCode(t, other.DeleteSnapshot(t.Context(), added.SnapshotID, false), ami.CodeInvalidSnapshotInUse)
	})
	must(t, imageErr(t, r, inst, added.SnapshotID))
	get(r.snapshot(t.Context(), added.SnapshotID))(t)
}

// What was looked at before may be gone when the record is written.
func TestSnapshotGoneAtTheRecord(t *testing.T) {
	t.Parallel()
	r, _ := open(t)
	id := ami.NewSnapshotID()
	pending := r.newSnapshot("", "", gib, nil)
	must(t, r.catalog.Update(t.Context(), func(tx *catalog.Tx) error { return tx.PutSnapshot(pending) }))
	for want, id := range map[ami.Code]ami.SnapshotID{ami.CodeInvalidSnapshotNotFound: id, ami.CodeIncorrectState: pending.SnapshotID} {
		i := r.newImage("new", "", nil)
		i.BlockDeviceMappings = mapping(t, "/dev/sdh="+string(id))
		_, err := r.beginImage(t.Context(), i, nil)
		wantCode(t, err, want)
		wantCode(t, r.catalog.Update(t.Context(), func(tx *catalog.Tx) error {
			return r.beginVolume(tx, &ami.Volume{VolumeID: ami.NewVolumeID(), SnapshotID: id})
		}), want)
	}
	if all := get(r.DescribeImages(t.Context(), DescribeInput{}))(t); len(all) > 0 {
		t.Errorf("got the images %v, want none", all)
	}
}

// What is deleted while it is being made does not come back.
func TestDeletedWhilePending(t *testing.T) {
	t.Parallel()
	r, other, arrange := meanwhile(t)
	inst := stopped(t, other)
	v := volumeOf(t, other, inst, "/dev/sda1")
	before := look(t, r, fake.New())
	arrange(func() {
		for _, i := range get(other.DescribeImages(t.Context(), DescribeInput{Filters: []Filter{filter("state", "pending")}}))(t) {
			_, err := other.DeregisterImage(t.Context(), i.ImageID, false, false)
			must(t, err)
		}
	})
	wantCode(t, imageErr(t, r, inst, ""), ami.CodeIncorrectState)
	arrange(func() {
		for _, s := range get(other.DescribeSnapshots(t.Context(), DescribeInput{Filters: []Filter{filter("status", "pending")}}))(t) {
			must(t, other.DeleteSnapshot(t.Context(), s.SnapshotID, false))
		}
	})
	wantCode(t, shootErr(t, r, v.VolumeID), ami.CodeIncorrectState)
	after := look(t, r, fake.New())
	if len(after.Images) != len(before.Images) || len(after.Snapshots) != len(before.Snapshots) || len(after.Leases) > 0 {
		t.Errorf("got the images %v, snapshots %v and leases %v, want none back", after.Images, after.Snapshots, after.Leases)
	}
}

// Tags that are set while an image is being made stay.
func TestTagsWhilePending(t *testing.T) {
	t.Parallel()
	r, other, arrange := meanwhile(t)
	inst := stopped(t, other)
	tag := ami.Tag{Key: "late", Value: "1"}
	arrange(func() {
		for _, i := range get(other.DescribeImages(t.Context(), DescribeInput{Filters: []Filter{filter("state", "pending")}}))(t) {
			must(t, other.CreateTags(t.Context(), []string{string(i.ImageID)}, []ami.Tag{tag}, false))
		}
	})
	i, err := r.CreateImage(t.Context(), CreateImageInput{InstanceID: inst.InstanceID, Name: "new"})
	must(t, err)
	if got := get(r.image(t.Context(), i.ImageID))(t); !slices.Contains(got.Tags, tag) || !slices.Contains(i.Tags, tag) {
		t.Errorf("got the tags %v, want the late one among them", got.Tags)
	}
}

// A volume that was given to another instance before its lock was held is in no
// image of this one.
func TestImageOfWhatIsAttached(t *testing.T) {
	t.Parallel()
	r, _ := open(t)
	inst, another := stopped(t, r), stopped(t, r)
	v := newVolume(t, r)
	must(t, attachErr(t, r, v.VolumeID, another.InstanceID))
	for _, id := range []ami.VolumeID{v.VolumeID, newVolume(t, r).VolumeID} {
		_, err := r.reload(t.Context(), inst, []ami.Volume{{VolumeID: id}})
		wantCode(t, err, ami.CodeIncorrectState)
	}
	_, err := r.reload(t.Context(), another, []ami.Volume{{VolumeID: v.VolumeID}})
	must(t, err)
}
