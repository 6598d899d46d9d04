package e2e

import (
	"testing"
	"time"

	"github.com/kamivm/kami/pkg/ami"
)

// shutDown has the guest power itself off, as its user would.
func shutDown(t *testing.T, id string) {
	t.Helper()
	r := shared.try("ssh", id, "--", "sync; (sleep 1; poweroff) >/dev/null 2>&1 &")
	if r.code != 0 {
		t.Fatalf("asking %s to power off: %s", id, r.stderr)
	}
}

func TestStopStartReboot(t *testing.T) {
	parallel(t)
	tiny(t)
	id := shared.launch(t, "tiny", "--key-name", "e2e", "--wait", "ssh")
	shared.ssh(t, id, "echo kept > /etc/kept")
	before := show[ami.Instance](t, shared, "instance", id)

	start := time.Now()
	shared.kami(t, "instance", "stop", id)
	if took := time.Since(start); took > 90*time.Second {
		t.Errorf("a clean stop took %v: the guest did not hear it", took)
	}
	if got := shared.state(t, id); got != ami.InstanceStopped {
		t.Fatalf("after stop the instance is %s", got)
	}
	shared.refuse(t, ami.CodeIncorrectInstanceState, "ssh", id, "--", "true")

	shared.kami(t, "instance", "start", id)
	shared.kami(t, "instance", "wait", id, "--for", "ssh")
	if got := shared.ssh(t, id, "cat /etc/kept"); got != "kept" {
		t.Errorf("after stop and start the file says %q", got)
	}
	after := show[ami.Instance](t, shared, "instance", id)
	if after.MAC != before.MAC || after.Hostname != before.Hostname {
		t.Errorf("stop and start changed the guest: %s %s, then %s %s", before.MAC, before.Hostname, after.MAC, after.Hostname)
	}

	boot := shared.ssh(t, id, "cat /proc/sys/kernel/random/boot_id")
	shared.kami(t, "instance", "reboot", id)
	eventually(t, 90*time.Second, "the guest has another boot id", func() bool {
		r := shared.try("ssh", id, "--", "cat /proc/sys/kernel/random/boot_id")
		return r.code == 0 && len(lines(r.stdout)) == 1 && lines(r.stdout)[0] != boot
	})

	// EC2's default: a shutdown from inside stops the instance.
	shutDown(t, id)
	shared.waitState(t, id, ami.InstanceStopped, 60*time.Second)
	if got := show[ami.Instance](t, shared, "instance", id); len(got.BlockDeviceMappings) != 1 {
		t.Errorf("the stopped instance has %d volumes, want 1", len(got.BlockDeviceMappings))
	}
}

func TestShutdownInsideTerminates(t *testing.T) {
	parallel(t)
	tiny(t)
	id := shared.launch(t, "tiny", "--key-name", "e2e", "--wait", "ssh", "--shutdown-behavior", "terminate")
	vol := string(show[ami.Instance](t, shared, "instance", id).BlockDeviceMappings[0].Ebs.VolumeID)
	shutDown(t, id)
	shared.waitState(t, id, ami.InstanceTerminated, 60*time.Second)
	shared.refuse(t, ami.CodeInvalidVolumeNotFound, "volume", "show", vol)
}

func TestConsoleIsKept(t *testing.T) {
	parallel(t)
	tiny(t)
	id := shared.launch(t, "tiny", "--key-name", "e2e", "--wait", "ssh")
	shared.ssh(t, id, "echo said-on-the-console > /dev/console")
	shared.waitConsole(t, id, "said-on-the-console", 10*time.Second)
	eventually(t, 10*time.Second, "kami console prints it", func() bool {
		r := shared.try("console", id)
		return r.code == 0 && contains(r.stdout, "said-on-the-console") && contains(r.stdout, "tiny: ready")
	})
}
