package region

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/kamivm/kami/pkg/ami"
)

// hold has a process open a volume's head for writing, as QEMU does, until the
// test ends or release is called.
func hold(t *testing.T, r *Region, id ami.VolumeID) (release func()) {
	t.Helper()
	dir, err := os.MkdirTemp("", "nbd") // short: a socket's path has 107 bytes
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	cmd := exec.CommandContext(t.Context(), "qemu-nbd", "--persistent", "--socket", filepath.Join(dir, "s"), "--format", "qcow2", r.layers.HeadPath(id))
	must(t, cmd.Start())
	release = func() {
		cmd.Process.Kill()
		cmd.Wait()
	}
	t.Cleanup(release)
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if busy, err := r.layers.HeadBusy(id); err != nil || time.Now().After(end) {
			t.Fatalf("nobody has the head open: %v", err)
		} else if busy {
			return release
		}
	}
}

// TestGuestOfAnotherLibvirt: a guest that the hypervisor knows nothing of, while
// a process has its disk open, is neither off nor anybody's to delete.
func TestGuestOfAnotherLibvirt(t *testing.T) {
	r, d := open(t)
	inst := launched(t, r, RunInstancesInput{Image: string(image(t, r, "first").ImageID), ShutdownBehavior: ami.ShutdownTerminate})
	root := inst.BlockDeviceMappings[0].Ebs.VolumeID
	release := hold(t, r, root)
	d.PowerOff(inst.InstanceID) // gone from this hypervisor, and not off

	got := wantState(t, r, inst.InstanceID, ami.InstanceRunning)
	if got.StateReason == nil {
		t.Error("nothing says that the state is the last known one")
	}
	_, err := r.TerminateInstances(t.Context(), []ami.InstanceID{inst.InstanceID}, false)
	wantCode(t, err, ami.CodeIncorrectInstanceState)
	if _, err := os.Stat(r.layers.HeadPath(root)); err != nil {
		t.Errorf("the disk of a guest that runs is gone: %v", err)
	}
	release()
	wantState(t, r, inst.InstanceID, ami.InstanceTerminated) // now it is off
}

// TestStoppedAndHeld: nothing that is for a disk at rest is done to one that is
// not, whatever its record says.
func TestStoppedAndHeld(t *testing.T) {
	r, _ := open(t)
	inst := stopped(t, r)
	release := hold(t, r, inst.BlockDeviceMappings[0].Ebs.VolumeID)
	_, err := r.StartInstances(t.Context(), []ami.InstanceID{inst.InstanceID}, false)
	wantCode(t, err, ami.CodeIncorrectInstanceState)
	_, err = r.CreateImage(t.Context(), CreateImageInput{InstanceID: inst.InstanceID, Name: "at-rest"})
	wantCode(t, err, ami.CodeIncorrectInstanceState)
	release()
	if _, err := r.StartInstances(t.Context(), []ami.InstanceID{inst.InstanceID}, false); err != nil {
		t.Errorf("a start once the disk is free: %v", err)
	}
}

// TestStartThatWasKilled: the guest came to run, and its command was killed
// before that was recorded.
func TestStartThatWasKilled(t *testing.T) {
	h := newHouse(t)
	r := h.open(t)
	inst := running(t, r)
	must(t, r.putStopped(t.Context(), inst.InstanceID, nil)) // as the record was
	must(t, os.WriteFile(r.instanceLockPath(inst.InstanceID), nil, 0o600))
	again := h.open(t)
	wantState(t, again, inst.InstanceID, ami.InstanceRunning)
	if _, err := os.Stat(again.instanceLockPath(inst.InstanceID)); err == nil {
		t.Error("the lock of the command that was killed is still there")
	}
}

// TestLostCatalog: what a catalog that was lost named is not garbage.
func TestLostCatalog(t *testing.T) {
	h := newHouse(t)
	r := h.open(t)
	inst := stopped(t, r)
	head := r.layers.HeadPath(inst.BlockDeviceMappings[0].Ebs.VolumeID)
	must(t, r.Close())
	for _, name := range []string{"catalog.db", "catalog.db-wal", "catalog.db-shm"} {
		must(t, os.RemoveAll(r.path(name)))
	}
	again := h.open(t)
	for _, path := range []string{head, again.instanceDir(inst.InstanceID)} {
		if _, err := os.Stat(path); err != nil {
			t.Errorf("it went with its catalog: %v", err)
		}
	}
}
