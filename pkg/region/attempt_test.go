package region

import (
	"strings"
	"testing"

	"github.com/kamivm/kami/pkg/ami"
)

// These try one operation each and return how it failed.

func launchErr(t *testing.T, r *Region, image string) error {
	t.Helper()
	_, err := r.RunInstances(t.Context(), RunInstancesInput{Image: image})
	return err
}

func mapErr(t *testing.T, r *Region, s ami.SnapshotID) error {
	t.Helper()
	_, err := r.RunInstances(t.Context(), RunInstancesInput{Image: "other", BlockDeviceMappings: mapping(t, "/dev/sdf="+string(s))})
	return err
}

func keyErr(t *testing.T, r *Region, name string) error {
	t.Helper()
	_, err := r.RunInstances(t.Context(), RunInstancesInput{Image: "other", KeyName: name})
	return err
}

func registerErr(t *testing.T, r *Region, s ami.SnapshotID) error {
	t.Helper()
	_, err := r.RegisterImage(t.Context(), RegisterImageInput{Name: "new", BlockDeviceMappings: mapping(t, "/dev/sda1="+string(s))})
	return err
}

func imageErr(t *testing.T, r *Region, inst ami.Instance, added ami.SnapshotID) error {
	t.Helper()
	in := CreateImageInput{InstanceID: inst.InstanceID, Name: "new"}
	if added != "" {
		in.BlockDeviceMappings = mapping(t, "/dev/sdh="+string(added))
	}
	_, err := r.CreateImage(t.Context(), in)
	return err
}

func shootErr(t *testing.T, r *Region, v ami.VolumeID) error {
	t.Helper()
	_, err := r.CreateSnapshot(t.Context(), CreateSnapshotInput{VolumeID: v})
	return err
}

func attachErr(t *testing.T, r *Region, v ami.VolumeID, i ami.InstanceID) error {
	t.Helper()
	_, err := r.AttachVolume(t.Context(), AttachVolumeInput{VolumeID: v, InstanceID: i})
	return err
}

func detachErr(t *testing.T, r *Region, v ami.VolumeID) error {
	t.Helper()
	_, err := r.DetachVolume(t.Context(), v, false, false)
	return err
}

func stopErr(t *testing.T, r *Region, ids ...ami.InstanceID) error {
	t.Helper()
	_, err := r.StopInstances(t.Context(), StopInput{InstanceIDs: ids})
	return err
}

func tagErr(t *testing.T, r *Region, ids ...string) error {
	t.Helper()
	return r.CreateTags(t.Context(), ids, []ami.Tag{{Key: "k", Value: "v"}}, false)
}

// replaced puts other words for those of a map's keys.
func replaced(text string, words map[string]string) string {
	for from, to := range words {
		text = strings.ReplaceAll(text, from, to)
	}
	return text
}
