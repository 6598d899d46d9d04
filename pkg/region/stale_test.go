package region

import (
	"context"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/hypervisor"
	"github.com/kamivm/kami/pkg/hypervisor/fake"
)

// watched is a hypervisor that tells a test when it is asked what its guests do,
// which is after a command has read its records and before it acts on them.
type watched struct {
	*fake.Driver
	asked func()
}

func (w *watched) States(ctx context.Context) (map[ami.InstanceID]hypervisor.State, error) {
	if do := w.asked; do != nil {
		w.asked = nil
		do()
	}
	return w.Driver.States(ctx)
}

// meddled opens a region in which something happens each time that what was read
// is about to be of the past.
func meddled(t *testing.T) (r, other *Region, w *watched, h *house) {
	t.Helper()
	h = newHouse(t)
	w = &watched{Driver: h.driver}
	r = h.open(t, func(o *Options) {
		o.NewDriver = func(context.Context, string) (hypervisor.Driver, error) { return w, nil }
	})
	return r, h.open(t), w, h
}

// A guest that was seen off may have been stopped by another command, or be
// running again, by the time that this is acted upon.
func TestOffIsLookedAtTwice(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		then func(t *testing.T, other *Region, id ami.InstanceID)
		want ami.InstanceState
	}{
		{"stopped since", func(t *testing.T, other *Region, id ami.InstanceID) { stop(t, other, id) }, ami.InstanceStopped},
		{"rebooted since", func(t *testing.T, other *Region, id ami.InstanceID) {
			must(t, other.RebootInstances(t.Context(), []ami.InstanceID{id}, false))
		}, ami.InstanceRunning},
		{"terminated since", func(t *testing.T, other *Region, id ami.InstanceID) { terminate(t, other, id) }, ami.InstanceTerminated},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, other, _, h := meddled(t)
			image(t, other, "base")
			seen := launched(t, other, RunInstancesInput{Image: "base", ShutdownBehavior: ami.ShutdownTerminate})
			tt.then(t, other, seen.InstanceID)
			before := look(t, other, h.driver)
			if got := other.noticeOff(t.Context(), seen); got.State.Name != tt.want {
				t.Errorf("got %s, want %s", got.State.Name, tt.want)
			}
			if diff := cmp.Diff(before, look(t, other, h.driver)); diff != "" {
				t.Errorf("it changed something (-before +after):\n%s", diff)
			}
		})
	}
}

// What has changed between the reading of an instance and the right to change it
// counts as it is then.
func TestActsOnWhatIsNow(t *testing.T) {
	t.Parallel()
	t.Run("a device is taken", func(t *testing.T) {
		r, other, w, _ := meddled(t)
		inst := running(t, other)
		v, first := newVolume(t, other), newVolume(t, other)
		w.asked = func() { must(t, attachErr(t, other, first.VolumeID, inst.InstanceID)) }
		got, err := r.AttachVolume(t.Context(), AttachVolumeInput{VolumeID: v.VolumeID, InstanceID: inst.InstanceID})
		must(t, err)
		if got.Device != "/dev/sdg" {
			t.Errorf("got %s, want the next one after what was taken, /dev/sdg", got.Device)
		}
	})
	t.Run("the instance is stopped", func(t *testing.T) {
		r, other, w, h := meddled(t)
		inst := running(t, other)
		v := newVolume(t, other)
		w.asked = func() { stop(t, other, inst.InstanceID) }
		must(t, attachErr(t, r, v.VolumeID, inst.InstanceID)) // and not plugged into anything
		wantState(t, r, inst.InstanceID, ami.InstanceStopped)
		_, err := r.StartInstances(t.Context(), []ami.InstanceID{inst.InstanceID}, false)
		must(t, err)
		if got := guestDisks(t, h, inst.InstanceID); len(got) != 2 {
			t.Errorf("the guest has the disks %q, want two", got)
		}
	})
	t.Run("the instance is tagged", func(t *testing.T) {
		h := newHouse(t)
		l := &listener{}
		r, other := h.open(t, tellingTo(l)), h.open(t)
		image(t, other, "base")
		inst := launched(t, other, RunInstancesInput{Image: "base", BlockDeviceMappings: mapping(t, "/dev/sda1=::false")})
		l.onStep = func(string) { must(t, tagErr(t, other, string(inst.InstanceID))) }
		terminate(t, r, inst.InstanceID)
		if got := wantState(t, r, inst.InstanceID, ami.InstanceTerminated); len(got.Tags) != 1 {
			t.Errorf("got the tags %v, want that which was set while it shut down", got.Tags)
		}
	})
	t.Run("a volume is tagged", func(t *testing.T) {
		h := newHouse(t)
		l := &listener{}
		r, other := h.open(t, tellingTo(l)), h.open(t)
		inst := running(t, other)
		v := volumeOf(t, other, inst, "/dev/sda1")
		l.onStep = func(string) { must(t, tagErr(t, other, string(v.VolumeID))) }
		must(t, shootErr(t, r, v.VolumeID))
		if got := volumeOf(t, r, inst, "/dev/sda1"); len(got.Tags) != 1 || got.TrackedBy == v.TrackedBy {
			t.Errorf("got %+v, want it tagged, and tracked by another bitmap", got)
		}
	})
}
