package region

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
	"github.com/kamivm/kami/pkg/digest"
)

// scribble writes into the head of a volume, as its guest does.
func scribble(t *testing.T, r *Region, id ami.VolumeID, pattern byte) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "qemu-io", "-f", "qcow2", "-c", fmt.Sprintf("write -P %d 1M 64k", pattern), r.layers.HeadPath(id)).CombinedOutput()
	if err != nil {
		t.Fatalf("qemu-io: %v\n%s", err, out)
	}
}

// written is the byte that a snapshot has where scribble writes.
func written(t *testing.T, r *Region, id ami.SnapshotID) byte {
	t.Helper()
	img, err := r.layers.OpenLayer(get(r.snapshot(t.Context(), id))(t).Layer)
	must(t, err)
	defer img.Close()
	b := make([]byte, 1)
	_, err = img.ReadAt(b, 1<<20)
	must(t, err)
	return b[0]
}

func TestCreateImage(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name     string
		stopped  bool
		noReboot bool
		deaf     bool
		want     ami.Consistency
	}{
		{"of a stopped instance", true, false, false, ami.ConsistencyStopped},
		{"of a stopped instance, without a reboot", true, true, false, ami.ConsistencyStopped},
		{"of a running instance", false, false, false, ami.ConsistencyRebooted},
		{"of a running instance, without a reboot", false, true, true, ami.ConsistencyCrash},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r, d := open(t)
			base := image(t, r, "base")
			must(t, r.CreateTags(t.Context(), []string{string(base.ImageID)}, []ami.Tag{{Key: TagDefaultUser, Value: "admin"}, {Key: "k", Value: "v"}}, false))
			inst := launched(t, r, RunInstancesInput{Image: "base", BlockDeviceMappings: mapping(t, "/dev/sda1=::false", "/dev/sdf=:1:true", "/dev/sdg=ephemeral0")})
			stop(t, r, inst.InstanceID)
			root, data := volumeOf(t, r, inst, "/dev/sda1"), volumeOf(t, r, inst, "/dev/sdf")
			scribble(t, r, root.VolumeID, 7)
			scribble(t, r, data.VolumeID, 8)
			if !tt.stopped {
				_, err := r.StartInstances(t.Context(), []ami.InstanceID{inst.InstanceID}, false)
				must(t, err)
			}
			d.Deaf = tt.deaf
			before := look(t, r, d)
			got, err := r.CreateImage(t.Context(), CreateImageInput{
				InstanceID: inst.InstanceID, Name: "next", Description: "it", NoReboot: tt.noReboot, Tags: []ami.Tag{{Key: "mine", Value: "1"}},
			})
			must(t, err)
			tags := []ami.Tag{{Key: "mine", Value: "1"}}
			one, yes, no := int64(1), true, false
			ebs := func(n int, del *bool) *ami.EBSBlockDevice {
				return &ami.EBSBlockDevice{SnapshotID: got.BlockDeviceMappings[n].Ebs.SnapshotID, VolumeSize: &one, DeleteOnTermination: del, VolumeType: "gp3"}
			}
			want := ami.Image{
				ImageID: got.ImageID, Name: "next", Description: "it", OwnerID: ami.DefaultAccount, State: ami.ImageAvailable, CreationDate: got.CreationDate,
				Architecture: ami.ArchX8664, VirtualizationType: "hvm", Hypervisor: "kvm", ImageType: "machine", RootDeviceType: "ebs",
				RootDeviceName: "/dev/sda1", BootMode: ami.BootLegacyBIOS, SourceImageID: base.ImageID, SourceInstanceID: inst.InstanceID,
				BlockDeviceMappings: []ami.BlockDeviceMapping{
					{DeviceName: "/dev/sda1", Ebs: ebs(0, &no)}, {DeviceName: "/dev/sdf", Ebs: ebs(1, &yes)}, {DeviceName: "/dev/sdg", VirtualName: "ephemeral0"},
				},
				PlatformDetails: "Linux/UNIX", UsageOperation: ami.LinuxUsage, ImageLocation: ami.DefaultAccount + "/next", Tags: append(slices.Clone(tags), ami.Tag{Key: TagDefaultUser, Value: "admin"}), Consistency: tt.want,
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("image (-want +got):\n%s", diff)
			}
			for n, v := range []ami.Volume{root, data} {
				snap := get(r.snapshot(t.Context(), got.BlockDeviceMappings[n].Ebs.SnapshotID))(t)
				describe := fmt.Sprintf("Created by CreateImage(%s) for %s", inst.InstanceID, got.ImageID)
				if snap.VolumeID != v.VolumeID || snap.State != ami.SnapshotCompleted || snap.Description != describe || snap.Consistency != tt.want || !slices.Equal(snap.Tags, tags) {
					t.Errorf("got the snapshot %+v of %s", snap, v.VolumeID)
				}
				if got, want := written(t, r, snap.SnapshotID), byte(7+n); got != want {
					t.Errorf("the snapshot has the byte %d, want %d", got, want)
				}
				if layer := get(r.layers.Layer(snap.Layer))(t); layer.Parent != v.Layer {
					t.Errorf("the layer stands on %q, want what the volume stands on, %q", layer.Parent, v.Layer)
				}
			}
			after := look(t, r, d)
			if diff := cmp.Diff(before.Files, after.Files); diff != "" || len(after.Leases) > 0 {
				t.Errorf("it left the leases %v and files (-before +after):\n%s", after.Leases, diff)
			}
			state := ami.InstanceRunning
			if tt.stopped {
				state = ami.InstanceStopped
			}
			wantState(t, r, inst.InstanceID, state)
			if len(after.Guests) != len(before.Guests) {
				t.Errorf("got %d guests, want %d as before", len(after.Guests), len(before.Guests))
			}
			again := launched(t, r, RunInstancesInput{Image: "next"})
			if got := devices(t, r, again); len(got) != 3 || got[0].Delete || !got[1].Delete || got[2].Virtual != "ephemeral0" {
				t.Errorf("an instance of it has the devices %+v", got)
			}
		})
	}
}

// The second image of an instance costs what changed since the first one.
func TestImagesFormALineage(t *testing.T) {
	t.Parallel()
	r, _ := open(t)
	inst := stopped(t, r)
	root := volumeOf(t, r, inst, "/dev/sda1")
	var layers []digest.Digest
	for n := range 3 {
		if n > 0 {
			scribble(t, r, root.VolumeID, byte(n))
		}
		i, err := r.CreateImage(t.Context(), CreateImageInput{InstanceID: inst.InstanceID, Name: fmt.Sprintf("image %d", n)})
		must(t, err)
		layers = append(layers, get(r.snapshot(t.Context(), rootSnapshot(i)))(t).Layer)
	}
	if layers[0] != root.Layer {
		t.Errorf("an image without a change has the layer %s, want the volume's own, %s", layers[0], root.Layer)
	}
	if layers[1] == layers[0] || layers[2] == layers[1] {
		t.Errorf("changes made no layers of their own: %v", layers)
	}
	if l := get(r.layers.Layer(layers[2]))(t); l.FileSize > 600<<10 {
		t.Errorf("a change of 64 KiB costs %d bytes", l.FileSize)
	}
}

func TestCreateImageMapping(t *testing.T) {
	t.Parallel()
	r, d := open(t)
	data := string(rootSnapshot(image(t, r, "data")))
	image(t, r, "base")
	inst := launched(t, r, RunInstancesInput{Image: "base", BlockDeviceMappings: mapping(t, "/dev/sdf=:1", "/dev/sdg=ephemeral0")})
	stop(t, r, inst.InstanceID)
	tests := []struct {
		name string
		over []string
		want string // devices and what is to be deleted with the instance
	}{
		{"none", nil, "/dev/sda1:true /dev/sdf:false /dev/sdg:ephemeral0"},
		{"kept and deleted", []string{"/dev/sda1=::false", "/dev/sdf=::true"}, "/dev/sda1:false /dev/sdf:true /dev/sdg:ephemeral0"},
		{"by another spelling", []string{"sda1=::false"}, "/dev/sda1:false /dev/sdf:false /dev/sdg:ephemeral0"},
		{"left out", []string{"/dev/sdf=none", "/dev/sdg=none"}, "/dev/sda1:true"},
		{"what is not there left out", []string{"/dev/sdz=none"}, "/dev/sda1:true /dev/sdf:false /dev/sdg:ephemeral0"},
		{"a blank one added", []string{"/dev/sdh=:5:true", "/dev/sdf=none"}, "/dev/sda1:true /dev/sdg:ephemeral0 /dev/sdh:true"},
		{"a snapshot added", []string{"/dev/sdh=" + data + "::false"}, "/dev/sda1:true /dev/sdf:false /dev/sdg:ephemeral0 /dev/sdh:false"},
		{"an ephemeral disk added", []string{"/dev/sdh=ephemeral1"}, "/dev/sda1:true /dev/sdf:false /dev/sdg:ephemeral0 /dev/sdh:ephemeral1"},
	}
	for i, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			before := len(look(t, r, d).Snapshots)
			got, err := r.CreateImage(t.Context(), CreateImageInput{
				InstanceID: inst.InstanceID, Name: fmt.Sprintf("mapping %d", i), BlockDeviceMappings: mapping(t, tt.over...),
			})
			must(t, err)
			var all []string
			snaps := 0
			for _, m := range got.BlockDeviceMappings {
				what := m.VirtualName
				if m.Ebs != nil {
					what = fmt.Sprint(*m.Ebs.DeleteOnTermination)
				}
				all = append(all, m.DeviceName+":"+what)
				if m.Ebs != nil && m.Ebs.SnapshotID != "" && string(m.Ebs.SnapshotID) != data {
					snaps++
				}
			}
			if got := strings.Join(all, " "); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
			if made := len(look(t, r, d).Snapshots) - before; made != snaps {
				t.Errorf("%d snapshots were made, %d are in the mapping", made, snaps)
			}
		})
	}
	launched(t, r, RunInstancesInput{Image: "mapping 5"})
}

func TestCreateImageRefuses(t *testing.T) {
	t.Parallel()
	r, d := open(t)
	data := string(rootSnapshot(image(t, r, "data")))
	image(t, r, "base")
	inst := launched(t, r, RunInstancesInput{Image: "base", BlockDeviceMappings: mapping(t, "/dev/sdf=:1")})
	rootless := stop(t, r, launched(t, r, RunInstancesInput{Image: "base", BlockDeviceMappings: mapping(t, "/dev/sdf=:1")}).InstanceID)
	_, err := r.DetachVolume(t.Context(), volumeOf(t, r, rootless, "/dev/sda1").VolumeID, false, false)
	must(t, err)
	none := "snap-" + strings.Repeat("0", 17)
	tests := []struct {
		name string
		in   CreateImageInput
		code ami.Code
	}{
		{"no instance", CreateImageInput{InstanceID: "i-" + ami.InstanceID(strings.Repeat("0", 17))}, ami.CodeInvalidInstanceIDNotFound},
		{"a malformed id", CreateImageInput{InstanceID: "i-x"}, ami.CodeInvalidInstanceIDMalformed},
		{"a bad name", CreateImageInput{Name: "no"}, ami.CodeInvalidAMINameMalformed},
		{"a name in use", CreateImageInput{Name: "base"}, ami.CodeInvalidAMINameDuplicate},
		{"a bad tag", CreateImageInput{Tags: []ami.Tag{{Key: "aws:x"}}}, ami.CodeInvalidTagKeyMalformed},
		{"without its root", CreateImageInput{BlockDeviceMappings: mapping(t, "/dev/sda1=none")}, ami.CodeInvalidBlockDeviceMapping},
		{"of one without a root", CreateImageInput{InstanceID: rootless.InstanceID}, ami.CodeIncorrectState},
		{"another size", CreateImageInput{BlockDeviceMappings: mapping(t, "/dev/sdf=:2")}, ami.CodeInvalidBlockDeviceMapping},
		{"another snapshot", CreateImageInput{BlockDeviceMappings: mapping(t, "/dev/sdf="+data)}, ami.CodeInvalidBlockDeviceMapping},
		{"another type", CreateImageInput{BlockDeviceMappings: mapping(t, "/dev/sdf=:::io1")}, ami.CodeInvalidBlockDeviceMapping},
		{"a disk for a volume", CreateImageInput{BlockDeviceMappings: mapping(t, "/dev/sdf=ephemeral0")}, ami.CodeInvalidBlockDeviceMapping},
		{"encrypted", CreateImageInput{BlockDeviceMappings: mapping(t, `{"DeviceName":"/dev/sdf","Ebs":{"Encrypted":false}}`)}, ami.CodeInvalidBlockDeviceMapping},
		{"a new one of no size", CreateImageInput{BlockDeviceMappings: mapping(t, "/dev/sdh=::true")}, ami.CodeInvalidBlockDeviceMapping},
		{"a new one of no snapshot", CreateImageInput{BlockDeviceMappings: mapping(t, "/dev/sdh="+none)}, ami.CodeInvalidSnapshotNotFound},
		{"a device twice", CreateImageInput{BlockDeviceMappings: mapping(t, "/dev/sdf=::true", "sdf=::false")}, ami.CodeInvalidBlockDeviceMapping},
		{"a bad device", CreateImageInput{BlockDeviceMappings: []ami.BlockDeviceMapping{{DeviceName: "/etc", NoDevice: new(string)}}}, ami.CodeInvalidBlockDeviceMapping},
	}
	before := look(t, r, d)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.in.InstanceID == "" {
				tt.in.InstanceID = inst.InstanceID
			}
			if tt.in.Name == "" {
				tt.in.Name = "new"
			}
			_, err := r.CreateImage(t.Context(), tt.in)
			wantCode(t, err, tt.code)
			if diff := cmp.Diff(before, look(t, r, d)); diff != "" {
				t.Errorf("it changed something (-before +after):\n%s", diff)
			}
		})
	}
}

// An image can be made of an instance whose own image is gone, and the UEFI
// variables of a guest go with it into the next one.
func TestCreateImageKeepsFirmware(t *testing.T) {
	t.Parallel()
	r, _ := open(t)
	base, err := r.ImportImage(t.Context(), ImportInput{Source: rawDisk(t, "uefi"), Name: "base", BootMode: ami.BootUEFI})
	must(t, err)
	inst := launched(t, r, RunInstancesInput{Image: "base"})
	must(t, os.WriteFile(r.nvramPath(inst.InstanceID), []byte("variables"), 0o600))
	_, err = r.DeregisterImage(t.Context(), base.ImageID, false, false)
	must(t, err)
	next, err := r.CreateImage(t.Context(), CreateImageInput{InstanceID: inst.InstanceID, Name: "next"})
	must(t, err)
	if next.BootMode != ami.BootUEFI || next.UEFIData != digest.Of([]byte("variables")) {
		t.Errorf("got the boot mode %q and the variables %q, want uefi and those of the guest", next.BootMode, next.UEFIData)
	}
	again := launched(t, r, RunInstancesInput{Image: "next"})
	if b, err := os.ReadFile(r.nvramPath(again.InstanceID)); string(b) != "variables" {
		t.Errorf("got the variables %q (%v), want those of the image", b, err)
	}
	must(t, os.Chmod(r.objectPath(next.UEFIData), 0o600))
	must(t, os.WriteFile(r.objectPath(next.UEFIData), []byte("Variables"), 0o600))
	_, err = r.RunInstances(t.Context(), RunInstancesInput{Image: "next"})
	wantSays(t, err, "is damaged")
	must(t, r.catalog.View(t.Context(), func(tx *catalog.Tx) error {
		all, err := tx.Instances()
		if len(all) != 2 {
			t.Errorf("got %d instances, want the two that were started", len(all))
		}
		return err
	}))
}
