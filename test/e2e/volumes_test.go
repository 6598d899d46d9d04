package e2e

import (
	"strings"
	"testing"
	"time"

	"github.com/kamivm/kami/pkg/ami"
)

// diskBySerial finds a disk inside the guest by what kami tells the guest: its
// serial is the volume's id without the dash.
const diskBySerial = `for d in /sys/block/vd*; do if [ "$(cat $d/serial 2>/dev/null)" = %s ]; then echo /dev/${d##*/}; fi; done`

func guestDisk(t *testing.T, id string, vol ami.VolumeID) string {
	t.Helper()
	// virtio-blk shows the guest the first 20 characters.
	serial := strings.ReplaceAll(string(vol), "-", "")
	serial = serial[:min(20, len(serial))]
	var dev string
	eventually(t, 20*time.Second, "the guest sees "+serial, func() bool {
		r := shared.try("ssh", id, "--", strings.ReplaceAll(diskBySerial, "%s", serial))
		dev = strings.TrimSpace(r.stdout)
		return r.code == 0 && strings.HasPrefix(dev, "/dev/vd")
	})
	return dev
}

func deviceVolume(t *testing.T, id, device string) ami.InstanceBlockDevice {
	t.Helper()
	inst := show[ami.Instance](t, shared, "instance", id)
	for _, d := range inst.BlockDeviceMappings {
		if d.DeviceName == device {
			return d
		}
	}
	t.Fatalf("%s has no device %s: %+v", id, device, inst.BlockDeviceMappings)
	return ami.InstanceBlockDevice{}
}

// TestVolumes gives a guest a data volume and an ephemeral disk, writes to all,
// and saves them as one consistent image.
func TestVolumes(t *testing.T) {
	parallel(t)
	tiny(t)
	id := shared.launch(
		t, "tiny", "--key-name", "e2e", "--wait", "ssh",
		"--block-device-mapping", "/dev/sdf=:1:false", "--block-device-mapping", "/dev/sdg=ephemeral0",
	)
	data, ephemeral := deviceVolume(t, id, "/dev/sdf"), deviceVolume(t, id, "/dev/sdg")
	if data.Ebs.DeleteOnTermination || ephemeral.Virtual != "ephemeral0" {
		t.Errorf("data volume %+v, ephemeral %+v", data, ephemeral)
	}
	dataDisk, ephemeralDisk := guestDisk(t, id, data.Ebs.VolumeID), guestDisk(t, id, ephemeral.Ebs.VolumeID)
	if got := shared.ssh(t, id, "cat /sys/block/"+strings.TrimPrefix(dataDisk, "/dev/")+"/size"); got != "2097152" {
		t.Errorf("the data volume has %s sectors, want 2097152: 1 GiB", got)
	}
	shared.ssh(t, id, "echo data-one | dd of="+dataDisk+" bs=512 seek=100 conv=sync,notrunc 2>/dev/null; "+
		"echo ephemeral-one | dd of="+ephemeralDisk+" bs=512 conv=sync,notrunc 2>/dev/null; echo root-one > /etc/kami-e2e; sync")

	image := shared.kami(t, "image", "create", id, "--name", "volumes", "--no-reboot", "-o", "id")
	shared.ssh(t, id, "echo data-two | dd of="+dataDisk+" bs=512 seek=100 conv=sync,notrunc 2>/dev/null; sync")
	img := show[ami.Image](t, shared, "image", image)
	snapshots := 0
	for _, m := range img.BlockDeviceMappings {
		if m.Ebs != nil {
			snapshots++
		} else if m.VirtualName != "ephemeral0" {
			t.Errorf("mapping has %+v", m)
		}
	}
	if snapshots != 2 {
		t.Errorf("the image has %d snapshots, want 2: %+v", snapshots, img.BlockDeviceMappings)
	}

	second := shared.launch(t, image, "--key-name", "e2e", "--wait", "ssh")
	disk := guestDisk(t, second, deviceVolume(t, second, "/dev/sdf").Ebs.VolumeID)
	got := shared.ssh(t, second, "cat /etc/kami-e2e; dd if="+disk+" bs=512 skip=100 count=1 2>/dev/null | tr -d '\\0'")
	if got != "root-one\ndata-one" {
		t.Errorf("the second guest says %q, want root-one, data-one", got)
	}
	if e := deviceVolume(t, second, "/dev/sdg"); e.Virtual == "ephemeral0" {
		blank := guestDisk(t, second, e.Ebs.VolumeID)
		if got := shared.ssh(t, second, "dd if="+blank+" bs=512 count=1 2>/dev/null | tr -d '\\0'"); got != "" {
			t.Errorf("the new ephemeral disk holds %q; ephemeral data is never imaged", got)
		}
	}

	// A second image of the same volumes costs only the last write.
	third := shared.kami(t, "image", "create", id, "--name", "volumes-2", "--no-reboot", "-o", "id")
	for _, m := range show[ami.Image](t, shared, "image", third).BlockDeviceMappings {
		if m.Ebs == nil || m.DeviceName != "/dev/sdf" {
			continue
		}
		if n := show[ami.Snapshot](t, shared, "snapshot", string(m.Ebs.SnapshotID)).LayerBytes; n > 1<<20 {
			t.Errorf("one changed sector of the data volume costs %d bytes", n)
		}
	}

	t.Run("attach", func(t *testing.T) {
		vol := shared.kami(t, "volume", "create", "--size", "1", "-o", "id")
		shared.kami(t, "volume", "attach", vol, id, "--device", "/dev/sdh")
		disk := guestDisk(t, id, ami.VolumeID(vol))
		shared.ssh(t, id, "echo hot | dd of="+disk+" bs=512 conv=sync,notrunc 2>/dev/null; sync")
		shared.refuse(t, ami.CodeVolumeInUse, "volume", "delete", vol)
		shared.kami(t, "volume", "detach", vol)
		name := strings.TrimPrefix(disk, "/dev/")
		eventually(t, 20*time.Second, "the disk is gone from the guest", func() bool {
			return shared.try("ssh", id, "--", "test ! -e /sys/block/"+name).code == 0
		})
		shared.kami(t, "volume", "attach", vol, second, "--device", "/dev/sdh")
		disk = guestDisk(t, second, ami.VolumeID(vol))
		if got := shared.ssh(t, second, "dd if="+disk+" bs=512 count=1 2>/dev/null | tr -d '\\0'"); got != "hot" {
			t.Errorf("the volume moved to another guest says %q, want hot", got)
		}
		shared.kami(t, "volume", "detach", vol)
		shared.kami(t, "volume", "delete", vol)
	})

	shared.kami(t, "instance", "terminate", id)
	if got := show[ami.Volume](t, shared, "volume", string(data.Ebs.VolumeID)).State; got != ami.VolumeAvailable {
		t.Errorf("the data volume that is not deleted on termination is %s", got)
	}
	shared.kami(t, "volume", "delete", string(data.Ebs.VolumeID))
	shared.refuse(t, ami.CodeInvalidVolumeNotFound, "volume", "show", string(ephemeral.Ebs.VolumeID))
}

// TestGrowAndReplaceRoot makes the root of a running guest larger, which the
// guest sees, and gives it its first root back, which has nothing of the second.
func TestGrowAndReplaceRoot(t *testing.T) {
	parallel(t)
	tiny(t)
	id := shared.launch(t, "tiny", "--key-name", "e2e", "--wait", "ssh", "--block-device-mapping", "/dev/sdf=:1")
	root, data := deviceVolume(t, id, "/dev/sda1").Ebs.VolumeID, deviceVolume(t, id, "/dev/sdf").Ebs.VolumeID
	disk := strings.TrimPrefix(guestDisk(t, id, data), "/dev/")
	shared.kami(t, "volume", "modify", string(data), "--size", "2")
	eventually(t, 20*time.Second, "the guest sees 2 GiB", func() bool {
		return shared.try("ssh", id, "--", "test $(cat /sys/block/"+disk+"/size) = 4194304").code == 0
	})
	shared.ssh(t, id, "echo grown | dd of=/dev/"+disk+" bs=512 seek=4194303 conv=sync,notrunc 2>/dev/null; sync")
	image := shared.kami(t, "image", "create", id, "--name", "grown", "--no-reboot", "-o", "id")

	shared.ssh(t, id, "echo spoilt > /etc/spoilt; sync")
	shared.kami(t, "instance", "replace-root", id)
	shared.kami(t, "instance", "wait", id, "--for", "ssh")
	if got := shared.ssh(t, id, "cat /etc/spoilt 2>/dev/null || echo clean"); got != "clean" {
		t.Errorf("the root as it was at launch says %q", got)
	}
	disk = guestDisk(t, id, data)
	if got := shared.ssh(t, id, "dd if="+disk+" bs=512 skip=4194303 count=1 2>/dev/null | tr -d '\\0'"); got != "grown" {
		t.Errorf("at the end of the volume that grew there is %q", got)
	}
	if got := show[ami.Volume](t, shared, "volume", string(root)).State; got != ami.VolumeAvailable {
		t.Errorf("the root that was replaced is %s", got)
	}
	shared.kami(t, "volume", "delete", string(root))

	second := shared.launch(t, image, "--key-name", "e2e", "--wait", "ssh")
	disk = guestDisk(t, second, deviceVolume(t, second, "/dev/sdf").Ebs.VolumeID)
	if got := shared.ssh(t, second, "dd if="+disk+" bs=512 skip=4194303 count=1 2>/dev/null | tr -d '\\0'"); got != "grown" {
		t.Errorf("in the image of the volume that grew there is %q", got)
	}
}
