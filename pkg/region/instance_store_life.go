package region

import (
	"context"
	"os"
	"strings"

	"github.com/kamivm/kami/pkg/ami"
)

// An instance-store guest runs until it ends: it can be rebooted, which keeps its
// root, but neither stopped nor started, and when it shuts itself down it is
// terminated. What nobody asked for is no end: where its host lost its power, or a
// command was killed in the middle of a reboot, its root is as it was, the instance
// is shown as stopped with the reason, and it can be started or terminated.

// checkStops refuses to stop what would be gone then.
func checkStops(inst ami.Instance) error {
	if !inst.IsInstanceStore() {
		return nil
	}
	return ami.Errorf(ami.CodeUnsupportedOperation, "The instance '%s' does not have an 'ebs' root device type and cannot be stopped.", inst.InstanceID).
		WithHint("Its root ends with it: reboot it (kami instance reboot), or terminate it. To keep what it has, kami bundle instance %s BUCKET/NAME.", inst.InstanceID)
}

// checkStarts refuses to start what runs and is never stopped by anybody.
func (r *Region) checkStarts(ctx context.Context, inst ami.Instance) error {
	if !inst.IsInstanceStore() || inst.State.Name == ami.InstanceStopped {
		return nil
	}
	if paused, err := r.isPaused(ctx, inst); err != nil || paused {
		return err
	}
	return ami.Errorf(ami.CodeUnsupportedOperation, "The instance '%s' does not have an 'ebs' root device type and cannot be started.", inst.InstanceID).
		WithHint("It runs until it is terminated; kami instance reboot %s reboots it.", inst.InstanceID)
}

// checkImaged refuses to make snapshots of a root that is no volume.
func checkImaged(inst ami.Instance) error {
	if !inst.IsInstanceStore() {
		return nil
	}
	return ami.Errorf(ami.CodeNonEBSInstance, "The instance '%s' does not have an 'ebs' root device type, and no snapshot can be made of its root.", inst.InstanceID).
		WithHint("kami bundle instance %s BUCKET/NAME packs its root; kami image register --image-location BUCKET/NAME.manifest makes an image of that.", inst.InstanceID)
}

// checkReplaces refuses to give an instance a root of another kind.
func checkReplaces(inst ami.Instance, with ami.Image) error {
	switch {
	case inst.IsInstanceStore():
		return ami.Errorf(ami.CodeUnsupportedOperation, "The instance '%s' does not have an 'ebs' root device type, and its root cannot be replaced.", inst.InstanceID).
			WithHint("Terminate it and launch another one of the image %s.", inst.ImageID)
	case with.IsInstanceStore():
		return ami.Errorf(ami.CodeUnsupportedOperation, "The image %s does not have an 'ebs' root device type: it has no snapshot to make a root volume of.", with.ImageID)
	}
	return nil
}

// rebootOne has a running guest shut down and starts it again, which is the same to
// a guest that lacks the means to reboot itself. One whose root would be lost
// otherwise is noted before, for the next command to start it where this one dies.
func (r *Region) rebootOne(ctx context.Context, now ami.Instance) error {
	if now.State.Name != ami.InstanceRunning {
		return incorrectState(now, "rebooted", "running")
	}
	if now.IsInstanceStore() {
		done, err := r.markReboot(ctx, now.InstanceID)
		if err != nil {
			return err
		}
		defer done()
		ctx = context.WithoutCancel(ctx) // what was begun comes to its end
	}
	if _, err := r.powerOff(ctx, now, DefaultStopTimeout, false); err != nil {
		return err
	}
	return r.startAgain(ctx, now)
}

// hostBoot is the name of the host's run since it was switched on; "" where that is
// not told.
func hostBoot() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// diedWithHost says whether an instance's guest was started in an earlier run of its
// host, and so was ended by that host's end.
func diedWithHost(inst ami.Instance) bool {
	now := hostBoot()
	return inst.HostBoot != "" && now != "" && inst.HostBoot != now
}
