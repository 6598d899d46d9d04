package region

import (
	"testing"

	"github.com/kamivm/kami/pkg/ami"
)

// TestSnapshotQuota: what would be one too many is refused before any work, and
// leaves nothing; what another account has does not count.
func TestSnapshotQuota(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	other := h.open(t, as(bob))
	image(t, other, "theirs")
	r := h.open(t)
	img := image(t, r, "base")
	vol := newVolume(t, r).VolumeID
	have := len(get(r.DescribeSnapshots(t.Context(), DescribeInput{Owners: []string{"self"}}))(t))
	r.maxSnapshots = have + 1
	get(r.CreateSnapshot(t.Context(), CreateSnapshotInput{VolumeID: vol}))(t)
	for what, err := range map[string]error{
		"create": second(r.CreateSnapshot(t.Context(), CreateSnapshotInput{VolumeID: vol})),
		"copy":   second(r.CopySnapshot(t.Context(), CopySnapshotInput{SnapshotID: rootSnapshot(img)})),
		"start":  second(r.StartSnapshot(t.Context(), StartSnapshotInput{VolumeSize: 1})),
		"image":  second(r.CreateImage(t.Context(), CreateImageInput{InstanceID: launched(t, r, RunInstancesInput{Image: "base"}).InstanceID, Name: "next", NoReboot: true})),
	} {
		if got := ami.ErrorCode(err); got != ami.CodeSnapshotLimitExceeded {
			t.Errorf("%s: got %v, want SnapshotLimitExceeded", what, err)
		}
	}
	if got := len(get(r.DescribeSnapshots(t.Context(), DescribeInput{Owners: []string{"self"}}))(t)); got != have+1 {
		t.Errorf("the account has %d snapshots, want %d", got, have+1)
	}
	other.maxSnapshots = r.maxSnapshots
	start(t, other)
}

// TestDraftQuota: a snapshot that is being written holds its place until it is
// complete.
func TestDraftQuota(t *testing.T) {
	t.Parallel()
	r := newHouse(t).open(t)
	r.maxDrafts = 2
	first := start(t, r)
	start(t, r)
	_, err := r.StartSnapshot(t.Context(), StartSnapshotInput{VolumeSize: 1})
	wantCode(t, err, ami.CodeConcurrentSnapshotLimitExceeded)
	must(t, r.DeleteSnapshot(t.Context(), first, false))
	start(t, r)
}
