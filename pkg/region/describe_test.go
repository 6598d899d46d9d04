package region

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
)

func filter(name string, values ...string) Filter { return Filter{name, values} }

// idsOf makes a listing one of ids, which is what these tests look at.
func idsOf[T any](list func(*testing.T, DescribeInput) ([]T, error), id func(T) string) func(*testing.T, DescribeInput) ([]string, error) {
	return func(t *testing.T, in DescribeInput) ([]string, error) {
		all, err := list(t, in)
		var ids []string
		for _, o := range all {
			ids = append(ids, id(o))
		}
		return ids, err
	}
}

func imageIDs(r *Region) func(*testing.T, DescribeInput) ([]string, error) {
	return idsOf(func(t *testing.T, in DescribeInput) ([]ami.Image, error) { return r.DescribeImages(t.Context(), in) },
		func(i ami.Image) string { return string(i.ImageID) })
}

func snapshotIDs(r *Region) func(*testing.T, DescribeInput) ([]string, error) {
	return idsOf(func(t *testing.T, in DescribeInput) ([]ami.Snapshot, error) {
		return r.DescribeSnapshots(t.Context(), in)
	},
		func(s ami.Snapshot) string { return string(s.SnapshotID) })
}

func volumeIDs(r *Region) func(*testing.T, DescribeInput) ([]string, error) {
	return idsOf(func(t *testing.T, in DescribeInput) ([]ami.Volume, error) { return r.DescribeVolumes(t.Context(), in) },
		func(v ami.Volume) string { return string(v.VolumeID) })
}

func instanceIDs(r *Region) func(*testing.T, DescribeInput) ([]string, error) {
	return idsOf(func(t *testing.T, in DescribeInput) ([]ami.Instance, error) {
		return r.DescribeInstances(t.Context(), in)
	},
		func(i ami.Instance) string { return string(i.InstanceID) })
}

func keyNames(r *Region) func(*testing.T, DescribeInput) ([]string, error) {
	return idsOf(func(t *testing.T, in DescribeInput) ([]ami.KeyPair, error) {
		return r.DescribeKeyPairs(t.Context(), in)
	},
		func(k ami.KeyPair) string { return k.KeyName })
}

func TestDescribe(t *testing.T) {
	t.Parallel()
	r, _ := open(t)
	one, two := image(t, r, "first 1"), image(t, r, "second 2")
	must(t, r.CreateTags(t.Context(), []string{string(two.ImageID), string(rootSnapshot(two))}, []ami.Tag{{Key: "stage", Value: "test"}}, false))
	a := launched(t, r, RunInstancesInput{Image: "first 1", BlockDeviceMappings: mapping(t, "/dev/sdf=ephemeral0")})
	b := stop(t, r, launched(t, r, RunInstancesInput{Image: "second 2", InstanceType: "t3.small", Tags: []ami.Tag{{Key: "stage", Value: "prod"}}}).InstanceID)
	v, err := r.CreateVolume(t.Context(), CreateVolumeInput{Size: 3, VolumeType: "gp2"})
	must(t, err)
	for _, name := range []string{"alice", "bob"} {
		_, _, err := r.CreateKeyPair(t.Context(), name, "", false)
		must(t, err)
	}
	id := struct{ i1, i2, s1, s2, a, b, va, vb, v string }{
		string(one.ImageID), string(two.ImageID), string(rootSnapshot(one)), string(rootSnapshot(two)), string(a.InstanceID), string(b.InstanceID),
		string(volumeOf(t, r, a, "/dev/sda1").VolumeID), string(volumeOf(t, r, b, "/dev/sda1").VolumeID), string(v.VolumeID),
	}
	images, snaps, vols, insts, keys := imageIDs(r), snapshotIDs(r), volumeIDs(r), instanceIDs(r), keyNames(r)
	tests := []struct {
		name string
		list func(*testing.T, DescribeInput) ([]string, error)
		in   DescribeInput
		want []string
	}{
		{"images", images, DescribeInput{}, []string{id.i1, id.i2}},
		{"in the order asked for", images, DescribeInput{IDs: []string{id.i2, id.i1}}, []string{id.i2, id.i1}},
		{"one of them", images, DescribeInput{IDs: []string{id.i2}}, []string{id.i2}},
		{"by a pattern", images, DescribeInput{Filters: []Filter{filter("name", "sec*")}}, []string{id.i2}},
		{"by one of two values", images, DescribeInput{Filters: []Filter{filter("name", "first ?", "second ?")}}, []string{id.i1, id.i2}},
		{"by two filters", images, DescribeInput{Filters: []Filter{filter("name", "*"), filter("tag:stage", "test")}}, []string{id.i2}},
		{"by what excludes itself", images, DescribeInput{Filters: []Filter{filter("name", "first*"), filter("tag-key", "stage")}}, nil},
		{"by id and filter", images, DescribeInput{IDs: []string{id.i1}, Filters: []Filter{filter("name", "second*")}}, nil},
		{"by snapshot", images, DescribeInput{Filters: []Filter{filter("block-device-mapping.snapshot-id", id.s1)}}, []string{id.i1}},
		{"snapshots", snaps, DescribeInput{}, []string{id.s1, id.s2}},
		{"snapshots by tag", snaps, DescribeInput{Filters: []Filter{filter("tag:stage", "test")}}, []string{id.s2}},
		{"snapshots by state", snaps, DescribeInput{Filters: []Filter{filter("status", "pending")}}, nil},
		{"volumes, no ephemeral ones", vols, DescribeInput{}, []string{id.va, id.vb, id.v}},
		{"volumes that are free", vols, DescribeInput{Filters: []Filter{filter("status", "available")}}, []string{id.v}},
		{"volumes of an instance", vols, DescribeInput{Filters: []Filter{filter("attachment.instance-id", id.b)}}, []string{id.vb}},
		{"volumes by size and type", vols, DescribeInput{Filters: []Filter{filter("size", "3"), filter("volume-type", "gp2")}}, []string{id.v}},
		{"instances", insts, DescribeInput{}, []string{id.a, id.b}},
		{"instances that run", insts, DescribeInput{Filters: []Filter{filter("instance-state-name", "running")}}, []string{id.a}},
		{"instances of an image", insts, DescribeInput{Filters: []Filter{filter("image-id", id.i2), filter("instance-type", "t3.*")}}, []string{id.b}},
		{"instances by volume", insts, DescribeInput{Filters: []Filter{filter("block-device-mapping.volume-id", id.va)}}, []string{id.a}},
		{"keys", keys, DescribeInput{}, []string{"alice", "bob"}},
		{"a key", keys, DescribeInput{IDs: []string{"bob"}}, []string{"bob"}},
		{"keys by name", keys, DescribeInput{Filters: []Filter{filter("key-name", "a*")}}, []string{"alice"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := tt.list(t, tt.in)
			must(t, err)
			if !slices.Equal(got, tt.want) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestDescribeRefuses(t *testing.T) {
	t.Parallel()
	r, _ := open(t)
	i := image(t, r, "base")
	absent := strings.Repeat("0", 17)
	type lister = func(*testing.T, DescribeInput) ([]string, error)
	nouns := []struct {
		name               string
		list               lister
		prefix             string
		malformed, missing ami.Code
	}{
		{"images", imageIDs(r), "ami-", ami.CodeInvalidAMIIDMalformed, ami.CodeInvalidAMIIDNotFound},
		{"snapshots", snapshotIDs(r), "snap-", ami.CodeInvalidSnapshotIDMalformed, ami.CodeInvalidSnapshotNotFound},
		{"volumes", volumeIDs(r), "vol-", ami.CodeInvalidVolumeIDMalformed, ami.CodeInvalidVolumeNotFound},
		{"instances", instanceIDs(r), "i-", ami.CodeInvalidInstanceIDMalformed, ami.CodeInvalidInstanceIDNotFound},
		{"keys", keyNames(r), "", "", ami.CodeInvalidKeyPairNotFound},
	}
	for _, n := range nouns {
		t.Run(n.name, func(t *testing.T) {
			_, err := n.list(t, DescribeInput{IDs: []string{n.prefix + absent}})
			wantCode(t, err, n.missing)
			wantSays(t, err, absent)
			if n.malformed != "" {
				_, err := n.list(t, DescribeInput{IDs: []string{n.prefix + absent, n.prefix + "x"}})
				wantCode(t, err, n.malformed)
			}
			// A filter that does not exist is found whether anything is there or not.
			_, err = n.list(t, DescribeInput{Filters: []Filter{filter("no-such-filter", "*")}})
			wantCode(t, err, ami.CodeInvalidFilter)
		})
	}
	_, err := r.DescribeImages(t.Context(), DescribeInput{IDs: []string{string(i.ImageID), "ami-" + absent}})
	wantCode(t, err, ami.CodeInvalidAMIIDNotFound)
}

func TestResolveImage(t *testing.T) {
	t.Parallel()
	r, _ := open(t)
	old, young := image(t, r, "web-1"), image(t, r, "web-2")
	named := image(t, r, "ami-named")
	must(t, r.catalog.Update(t.Context(), func(tx *catalog.Tx) error { // whatever the clock's grain
		old.CreationDate = young.CreationDate.Add(-time.Hour)
		return tx.PutImage(old)
	}))
	_, err := r.RegisterImage(t.Context(), RegisterImageInput{Name: "pending", BlockDeviceMappings: mapping(t, "/dev/sda1="+string(rootSnapshot(old)))})
	must(t, err)
	must(t, r.catalog.Update(t.Context(), func(tx *catalog.Tx) error {
		i, err := tx.ImageByName(ami.DefaultAccount, "pending")
		if err != nil {
			return err
		}
		i.State = ami.ImagePending
		return tx.PutImage(i)
	}))
	tests := []struct {
		ref    string
		latest bool
		want   ami.ImageID
		code   ami.Code
	}{
		{string(old.ImageID), false, old.ImageID, ""},
		{"web-2", false, young.ImageID, ""},
		{"web-*", true, young.ImageID, ""},
		{"web-1", true, old.ImageID, ""},
		{"web-*", false, "", ami.CodeInvalidParameterValue},
		{"ami-named", false, named.ImageID, ""},
		{"ami-n*", true, named.ImageID, ""},
		{"pending", false, "", ami.CodeInvalidAMIIDNotFound},
		{"none-*", true, "", ami.CodeInvalidAMIIDNotFound},
		{"ami-" + strings.Repeat("0", 17), false, "", ami.CodeInvalidAMIIDNotFound},
		{"ami-none", false, "", ami.CodeInvalidAMIIDMalformed},
	}
	for _, tt := range tests {
		got, err := r.ResolveImage(t.Context(), tt.ref, tt.latest)
		if got.ImageID != tt.want || ami.ErrorCode(err) != tt.code {
			t.Errorf("ResolveImage(%q, %v) = %q, %v; want %q, %q", tt.ref, tt.latest, got.ImageID, err, tt.want, tt.code)
		}
	}
}

func TestFindKeepsNothing(t *testing.T) {
	t.Parallel()
	r, _ := open(t)
	got, err := r.DescribeInstances(t.Context(), DescribeInput{})
	must(t, err)
	if diff := cmp.Diff([]ami.Instance(nil), got); diff != "" {
		t.Errorf("instances of a fresh region (-want +got):\n%s", diff)
	}
}
