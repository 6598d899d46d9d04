package region

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kamivm/kami/pkg/ami"
)

func TestTags(t *testing.T) {
	t.Parallel()
	r, d := open(t)
	i := image(t, r, "base")
	inst := running(t, r)
	v := newVolume(t, r)
	ids := []string{string(i.ImageID), string(rootSnapshot(i)), string(v.VolumeID), string(inst.InstanceID)}
	tagsOf := func() (out [][]ami.Tag) {
		out = append(out, get(r.image(t.Context(), i.ImageID))(t).Tags, get(r.snapshot(t.Context(), rootSnapshot(i)))(t).Tags)
		return append(out, get(r.volume(t.Context(), v.VolumeID))(t).Tags, get(r.instance(t.Context(), inst.InstanceID))(t).Tags)
	}
	want := func(tags ...ami.Tag) {
		t.Helper()
		for n, got := range tagsOf() {
			if !slices.Equal(got, tags) {
				t.Errorf("%s has the tags %v, want %v", ids[n], got, tags)
			}
		}
	}
	must(t, r.CreateTags(t.Context(), ids, []ami.Tag{{Key: "a", Value: "1"}, {Key: "b", Value: "2"}}, false))
	want(ami.Tag{Key: "a", Value: "1"}, ami.Tag{Key: "b", Value: "2"})
	must(t, r.CreateTags(t.Context(), ids, []ami.Tag{{Key: "a", Value: "3"}, {Key: "c"}}, false))
	want(ami.Tag{Key: "a", Value: "3"}, ami.Tag{Key: "b", Value: "2"}, ami.Tag{Key: "c"})
	must(t, r.DeleteTags(t.Context(), ids, []string{"a", "not there"}, false))
	want(ami.Tag{Key: "b", Value: "2"}, ami.Tag{Key: "c"})

	var many []ami.Tag
	for n := range 49 {
		many = append(many, ami.Tag{Key: fmt.Sprintf("k%d", n)})
	}
	tests := []struct {
		name string
		ids  []string
		tags []ami.Tag
		code ami.Code
	}{
		{"none", ids, nil, ami.CodeMissingParameter},
		{"a reserved key", ids, []ami.Tag{{Key: "aws:x"}}, ami.CodeInvalidTagKeyMalformed},
		{"no key", ids, []ami.Tag{{Value: "x"}}, ami.CodeInvalidTagKeyMalformed},
		{"a long value", ids, []ami.Tag{{Key: "x", Value: strings.Repeat("x", 256)}}, ami.CodeInvalidTagKeyMalformed},
		{"too many in all", ids, many, ami.CodeTagLimitExceeded},
		// The first object is all right: it is not tagged either.
		{"no image", []string{ids[0], "ami-00000000000000000"}, []ami.Tag{{Key: "x"}}, ami.CodeInvalidAMIIDNotFound},
		{"no snapshot", []string{ids[0], "snap-00000000000000000"}, []ami.Tag{{Key: "x"}}, ami.CodeInvalidSnapshotNotFound},
		{"no volume", []string{ids[0], "vol-00000000000000000"}, []ami.Tag{{Key: "x"}}, ami.CodeInvalidVolumeNotFound},
		{"no instance", []string{ids[0], "i-00000000000000000"}, []ami.Tag{{Key: "x"}}, ami.CodeInvalidInstanceIDNotFound},
		{"what has no tags", []string{ids[0], "r-00000000000000000"}, []ami.Tag{{Key: "x"}}, ami.CodeInvalidParameterValue},
	}
	before := look(t, r, d)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			wantCode(t, r.CreateTags(t.Context(), tt.ids, tt.tags, false), tt.code)
			if diff := cmp.Diff(before, look(t, r, d)); diff != "" {
				t.Errorf("it changed something (-before +after):\n%s", diff)
			}
		})
	}
	wantCode(t, r.DeleteTags(t.Context(), []string{ids[0], "ami-00000000000000000"}, []string{"b"}, false), ami.CodeInvalidAMIIDNotFound)
	if diff := cmp.Diff(before, look(t, r, d)); diff != "" {
		t.Errorf("deleting changed something (-before +after):\n%s", diff)
	}
}
