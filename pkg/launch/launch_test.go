package launch

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kamivm/kami/pkg/ami"
)

const (
	rootSnap  = "snap-0123456789abcdef0"
	dataSnap  = "snap-0123456789abcdef1"
	otherSnap = "snap-0123456789abcdef2"
)

type (
	mapping = ami.BlockDeviceMapping
	ebs     = ami.EBSBlockDevice
)

func vol(device string, e ebs) mapping { return mapping{DeviceName: device, Ebs: &e} }
func ephemeral(device string, n int) mapping {
	return mapping{DeviceName: device, VirtualName: fmt.Sprint("ephemeral", n)}
}

func noDevice(device string) mapping { return mapping{DeviceName: device, NoDevice: new("")} }

func gib(n int64) *int64 { return &n }

// rootVolume is the root of an image; rootOut is what it is after a merge that
// does not touch it.
func rootVolume() mapping {
	return vol("/dev/sda1", ebs{SnapshotID: rootSnap, VolumeSize: gib(8), VolumeType: "gp3"})
}

func rootOut() mapping {
	return vol("/dev/sda1", ebs{SnapshotID: rootSnap, VolumeSize: gib(8), VolumeType: "gp3", DeleteOnTermination: new(true)})
}

func TestMerge(t *testing.T) {
	data := vol("/dev/sdb", ebs{SnapshotID: dataSnap, VolumeSize: gib(20), DeleteOnTermination: new(true)})
	tests := []struct {
		name              string
		image, over, want []mapping
	}{
		{"nothing said", []mapping{rootVolume()}, nil, []mapping{rootOut()}},
		{
			"DeleteOnTermination is true for the root, false for others",
			[]mapping{rootVolume(), vol("/dev/sdb", ebs{VolumeSize: gib(1)})},
			[]mapping{vol("/dev/sdc", ebs{VolumeSize: gib(2)})},
			[]mapping{
				rootOut(),
				vol("/dev/sdb", ebs{VolumeSize: gib(1), DeleteOnTermination: new(false)}),
				vol("/dev/sdc", ebs{VolumeSize: gib(2), DeleteOnTermination: new(false)}),
			},
		},
		{
			"DeleteOnTermination is inherited from the image",
			[]mapping{vol("/dev/sda1", ebs{SnapshotID: rootSnap, DeleteOnTermination: new(false)}), data},
			[]mapping{vol("/dev/sdb", ebs{VolumeSize: gib(30)})},
			[]mapping{
				vol("/dev/sda1", ebs{SnapshotID: rootSnap, DeleteOnTermination: new(false)}),
				vol("/dev/sdb", ebs{SnapshotID: dataSnap, VolumeSize: gib(30), DeleteOnTermination: new(true)}),
			},
		},
		{
			"DeleteOnTermination of the launch wins",
			[]mapping{rootVolume(), data},
			[]mapping{vol("/dev/sda1", ebs{DeleteOnTermination: new(false)}), vol("/dev/sdb", ebs{DeleteOnTermination: new(false)})},
			[]mapping{
				vol("/dev/sda1", ebs{SnapshotID: rootSnap, VolumeSize: gib(8), VolumeType: "gp3", DeleteOnTermination: new(false)}),
				vol("/dev/sdb", ebs{SnapshotID: dataSnap, VolumeSize: gib(20), DeleteOnTermination: new(false)}),
			},
		},
		{
			"size and type of the root",
			[]mapping{rootVolume()},
			[]mapping{vol("/dev/sda1", ebs{VolumeSize: gib(30), VolumeType: "io2", Iops: gib(3000), Throughput: gib(250)})},
			[]mapping{vol("/dev/sda1", ebs{
				SnapshotID: rootSnap, VolumeSize: gib(30), VolumeType: "io2", Iops: gib(3000), Throughput: gib(250), DeleteOnTermination: new(true),
			})},
		},
		{
			"the root's own snapshot again",
			[]mapping{rootVolume()},
			[]mapping{vol("/dev/sda1", ebs{SnapshotID: rootSnap})},
			[]mapping{rootOut()},
		},
		{
			"a device is one in both spellings",
			[]mapping{rootVolume(), data},
			[]mapping{vol("sda1", ebs{VolumeSize: gib(9)}), vol("sdb", ebs{VolumeSize: gib(21)})},
			[]mapping{
				vol("/dev/sda1", ebs{SnapshotID: rootSnap, VolumeSize: gib(9), VolumeType: "gp3", DeleteOnTermination: new(true)}),
				vol("/dev/sdb", ebs{SnapshotID: dataSnap, VolumeSize: gib(21), DeleteOnTermination: new(true)}),
			},
		},
		{
			"another snapshot brings its own size",
			[]mapping{rootVolume(), data},
			[]mapping{vol("/dev/sdb", ebs{SnapshotID: otherSnap})},
			[]mapping{rootOut(), vol("/dev/sdb", ebs{SnapshotID: otherSnap, DeleteOnTermination: new(true)})},
		},
		{
			"another snapshot with a size",
			[]mapping{rootVolume(), data},
			[]mapping{vol("/dev/sdb", ebs{SnapshotID: otherSnap, VolumeSize: gib(5), Encrypted: new(false)})},
			[]mapping{rootOut(), vol("/dev/sdb", ebs{SnapshotID: otherSnap, VolumeSize: gib(5), Encrypted: new(false), DeleteOnTermination: new(true)})},
		},
		{"NoDevice leaves one out", []mapping{rootVolume(), data}, []mapping{noDevice("/dev/sdb")}, []mapping{rootOut()}},
		{"NoDevice of one that is not there", []mapping{rootVolume()}, []mapping{noDevice("/dev/sdz")}, []mapping{rootOut()}},
		{"NoDevice in the image", []mapping{noDevice("/dev/sdb"), rootVolume()}, nil, []mapping{rootOut()}},
		{
			"a volume over the image's NoDevice",
			[]mapping{rootVolume(), noDevice("/dev/sdb")},
			[]mapping{vol("/dev/sdb", ebs{VolumeSize: gib(1)})},
			[]mapping{rootOut(), vol("/dev/sdb", ebs{VolumeSize: gib(1), DeleteOnTermination: new(false)})},
		},
		{"an ephemeral disk is added", []mapping{rootVolume()}, []mapping{ephemeral("/dev/sdb", 0)}, []mapping{rootOut(), ephemeral("/dev/sdb", 0)}},
		{"an ephemeral disk over a volume", []mapping{rootVolume(), data}, []mapping{ephemeral("/dev/sdb", 1)}, []mapping{rootOut(), ephemeral("/dev/sdb", 1)}},
		{
			"a volume over an ephemeral disk takes nothing of it",
			[]mapping{rootVolume(), ephemeral("/dev/sdb", 0)},
			[]mapping{vol("/dev/sdb", ebs{VolumeSize: gib(3)})},
			[]mapping{rootOut(), vol("/dev/sdb", ebs{VolumeSize: gib(3), DeleteOnTermination: new(false)})},
		},
		{"NoDevice leaves out an ephemeral disk", []mapping{rootVolume(), ephemeral("/dev/sdb", 0)}, []mapping{noDevice("sdb")}, []mapping{rootOut()}},
		{
			"the root comes first, the others stay in order",
			[]mapping{vol("/dev/sdf", ebs{VolumeSize: gib(1), DeleteOnTermination: new(true)}), data, rootVolume()},
			[]mapping{vol("/dev/sdc", ebs{VolumeSize: gib(2)})},
			[]mapping{
				rootOut(),
				vol("/dev/sdf", ebs{VolumeSize: gib(1), DeleteOnTermination: new(true)}),
				data,
				vol("/dev/sdc", ebs{VolumeSize: gib(2), DeleteOnTermination: new(false)}),
			},
		},
		{
			"a root that only the launch maps", nil,
			[]mapping{vol("sdb", ebs{VolumeSize: gib(1)}), vol("sda1", ebs{SnapshotID: rootSnap})},
			[]mapping{
				vol("sda1", ebs{SnapshotID: rootSnap, DeleteOnTermination: new(true)}),
				vol("sdb", ebs{VolumeSize: gib(1), DeleteOnTermination: new(false)}),
			},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Merge(tt.image, tt.over, "/dev/sda1")
			if err != nil {
				t.Fatalf("got %v, want no error", err)
			}
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Errorf("mapping (-want +got):\n%s", d)
			}
		})
	}
}

func TestMergeIgnoresSurplusEphemeralDisks(t *testing.T) {
	image := []mapping{ephemeral("/dev/sdb", 0), rootVolume(), ephemeral("/dev/sdc", 1)}
	over := []mapping{ephemeral("/dev/sdd", 2), ephemeral("/dev/sde", 3), ephemeral("/dev/sdf", 4), ephemeral("/dev/sdg", 5)}
	got, err := Merge(image, over, "/dev/sda1")
	if err != nil {
		t.Fatalf("got %v, want no error", err)
	}
	want := []mapping{rootOut(), ephemeral("/dev/sdb", 0), ephemeral("/dev/sdc", 1), ephemeral("/dev/sdd", 2), ephemeral("/dev/sde", 3)}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("mapping (-want +got):\n%s", d)
	}
}

func TestMergeRefuses(t *testing.T) {
	image := []mapping{rootVolume(), vol("/dev/sdb", ebs{SnapshotID: dataSnap})}
	tests := []struct {
		name        string
		image, over []mapping
		want        []string // all of these are in the message
	}{
		{"the root left out", image, []mapping{noDevice("/dev/sda1")}, []string{"root device /dev/sda1"}},
		{"the root left out in the other spelling", image, []mapping{noDevice("sda1")}, []string{"root device /dev/sda1"}},
		{"the root an ephemeral disk", image, []mapping{ephemeral("/dev/sda1", 0)}, []string{"root device /dev/sda1"}},
		{"the root of another snapshot", image, []mapping{vol("/dev/sda1", ebs{SnapshotID: otherSnap})}, []string{"snapshot of the root device"}},
		{
			"a snapshot for a root that has none",
			[]mapping{ephemeral("/dev/sda1", 0)},
			[]mapping{vol("/dev/sda1", ebs{SnapshotID: otherSnap})},
			[]string{"snapshot of the root device"},
		},
		{"a key alone", image, []mapping{vol("/dev/sda1", ebs{KmsKeyID: "alias/web"})}, []string{"Ebs.KmsKeyId", "Encrypted"}},
		{"neither snapshot nor size", image, []mapping{vol("/dev/sdc", ebs{VolumeType: "gp3"})}, []string{"/dev/sdc needs a snapshot or a size"}},
		{"neither, in the image", []mapping{rootVolume(), vol("/dev/sdc", ebs{})}, nil, []string{"/dev/sdc needs a snapshot or a size"}},
		{
			"neither, over an ephemeral disk",
			[]mapping{rootVolume(), ephemeral("/dev/sdb", 0)},
			[]mapping{vol("/dev/sdb", ebs{DeleteOnTermination: new(true)})},
			[]string{"/dev/sdb needs a snapshot or a size"},
		},
		{"one device twice", image, []mapping{noDevice("/dev/sdc"), noDevice("sdc")}, []string{"mapped twice"}},
		{"no size at all", image, []mapping{vol("/dev/sdc", ebs{VolumeSize: gib(0)})}, []string{"Ebs.VolumeSize 0"}},
		{"a bad name", image, []mapping{noDevice("/dev/hda")}, []string{"/dev/hda"}},
		{
			"every fault", image,
			[]mapping{noDevice("/dev/sda1"), vol("/dev/sdc", ebs{}), vol("/dev/sdd", ebs{})},
			[]string{"root device /dev/sda1", "/dev/sdc needs", "/dev/sdd needs"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Merge(tt.image, tt.over, "/dev/sda1")
			if got != nil || ami.ErrorCode(err) != ami.CodeInvalidBlockDeviceMapping {
				t.Fatalf("got %+v, %v, want %s", got, err, ami.CodeInvalidBlockDeviceMapping)
			}
			for _, want := range tt.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("got %q, want it to have %q", err, want)
				}
			}
		})
	}
}

// The image's record is shared with whoever read it: a launch does not write on
// it, nor on what was asked for.
func TestMergeIsPure(t *testing.T) {
	image := func() []mapping {
		return []mapping{
			vol("/dev/sdb", ebs{SnapshotID: dataSnap}), rootVolume(), noDevice("/dev/sdd"),
			ephemeral("/dev/sde", 0), ephemeral("/dev/sdf", 1), ephemeral("/dev/sdg", 2), ephemeral("/dev/sdh", 3), ephemeral("/dev/sdi", 4),
		}
	}
	over := func() []mapping {
		return []mapping{vol("/dev/sda1", ebs{VolumeSize: gib(9)}), vol("/dev/sdc", ebs{VolumeSize: gib(1)}), noDevice("/dev/sdb")}
	}
	i, o := image(), over()
	got, err := Merge(i, o, "/dev/sda1")
	if err != nil {
		t.Fatalf("got %v, want no error", err)
	}
	got[0].Ebs.VolumeType = "mine now"
	got[1].Ebs = nil
	if d := cmp.Diff(image(), i); d != "" {
		t.Errorf("the image's mapping changed (-want +got):\n%s", d)
	}
	if d := cmp.Diff(over(), o); d != "" {
		t.Errorf("the launch's mapping changed (-want +got):\n%s", d)
	}
}

// FuzzMerge lays any mapping that can be read over a fixed one: what comes out
// is whole, and merging it over the same image again changes nothing.
func FuzzMerge(f *testing.F) {
	for _, s := range []string{
		"/dev/sda1=:9", "sda1=none", "/dev/sdb=none", "/dev/sdc=ephemeral3", "/dev/sdb=" + otherSnap, "[]",
		`[{"DeviceName":"sda1","Ebs":{"Iops":1}},{"DeviceName":"sdb","VirtualName":"ephemeral0"}]`,
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		over, err := ami.ParseMapping(s)
		if err != nil {
			return
		}
		image := []mapping{vol("/dev/sdb", ebs{SnapshotID: dataSnap, VolumeSize: gib(20)}), rootVolume()}
		got, err := Merge(image, over, "/dev/sda1")
		if err != nil {
			if ami.ErrorCode(err) != ami.CodeInvalidBlockDeviceMapping {
				t.Errorf("got %v, want %s", err, ami.CodeInvalidBlockDeviceMapping)
			}
			return
		}
		if err := ami.ValidateMapping(got); err != nil {
			t.Errorf("got a mapping that is not valid: %v", err)
		}
		if len(got) == 0 || ami.DeviceKey(got[0].DeviceName) != "sda1" || got[0].Ebs == nil || got[0].Ebs.SnapshotID != rootSnap {
			t.Fatalf("got %+v, want the image's root first", got)
		}
		for _, m := range got {
			if e := m.Ebs; e != nil && (e.DeleteOnTermination == nil || e.SnapshotID == "" && e.VolumeSize == nil) {
				t.Errorf("%s is not whole: %+v", m.DeviceName, *e)
			}
			if m.NoDevice != nil {
				t.Errorf("%s is suppressed, yet there", m.DeviceName)
			}
		}
		again, err := Merge(got, got, "/dev/sda1")
		if err != nil {
			t.Fatalf("merging it with itself: %v", err)
		}
		if d := cmp.Diff(got, again); d != "" {
			t.Errorf("merged with itself (-want +got):\n%s", d)
		}
	})
}
