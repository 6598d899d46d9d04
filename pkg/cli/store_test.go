package cli

import (
	"bytes"
	"strings"
	"testing"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/digest"
	"github.com/kamivm/kami/pkg/region"
)

func TestPercent(t *testing.T) {
	for _, c := range []struct {
		value string
		want  int
		ok    bool
	}{
		{"", 0, true},
		{"10%", 10, true},
		{"10", 10, true},
		{"1%", 1, true},
		{"100%", 100, true},
		{"0", 0, false},
		{"0%", 0, false},
		{"101%", 0, false},
		{"-5%", 0, false},
		{"2.5%", 0, false},
		{"%", 0, false},
		{"10%%", 0, false},
		{"ten", 0, false},
	} {
		got, err := percent("sample", c.value)
		if got != c.want || (err == nil) != c.ok || err != nil && !isUsage(err) {
			t.Errorf("%q: got %d, %v; want %d, good %v", c.value, got, err, c.want, c.ok)
		}
	}
}

func TestCountGarbage(t *testing.T) {
	layers, files := []digest.Digest{"a", "b"}, make([]region.Garbage, 3)
	for _, c := range []struct {
		plan region.GCPlan
		want string
	}{
		{region.GCPlan{}, "0 layers"},
		{region.GCPlan{Layers: layers[:1], Files: files[:1]}, "1 layer"},
		{region.GCPlan{Layers: layers, Files: files}, "2 layers and 1 other file"},
		{region.GCPlan{Files: files}, "0 layers and 3 other files"},
	} {
		if got := countGarbage(c.plan); got != c.want {
			t.Errorf("got %q, want %q", got, c.want)
		}
	}
}

// What is not well is told of with all that it harms and what to do; what is well
// is not.
func TestTellHarm(t *testing.T) {
	var out bytes.Buffer
	a := &app{err: &out}
	bad := a.tellHarm(region.Verification{Results: []region.VerifyResult{
		{Resource: "good", OK: true, Images: []ami.ImageID{"ami-1"}},
		{
			Resource: "bad", Detail: "It is damaged.", Advice: "Do something.",
			Images: []ami.ImageID{"ami-1", "ami-2"}, Snapshots: []ami.SnapshotID{"snap-1"}, Volumes: []ami.VolumeID{"vol-1"},
			Instances: []ami.InstanceID{"i-1", "i-2"}, Running: []ami.InstanceID{"i-2"},
		},
		{Resource: "vol-2", Detail: "Its disk is missing."},
	}}, map[ami.ImageID]string{"ami-1": "web-1"})
	want := strings.Join([]string{
		"kami: bad: It is damaged.",
		"  images     ami-1 (web-1) ami-2",
		"  snapshots  snap-1",
		"  volumes    vol-1",
		"  instances  i-1 i-2",
		"  running    i-2",
		"  Do something.",
		"kami: vol-2: Its disk is missing.",
		"",
	}, "\n")
	if bad != 2 || out.String() != want {
		t.Errorf("got %d and\n%s\nwant 2 and\n%s", bad, &out, want)
	}
}
