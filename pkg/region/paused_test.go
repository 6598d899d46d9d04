package region

import (
	"strings"
	"testing"
	"time"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/hypervisor"
)

// A guest that stands still counts as running, with a reason; a start lets it go
// on, and says so when it cannot.
func TestPausedGuest(t *testing.T) {
	t.Parallel()
	tests := []struct {
		state hypervisor.State
		why   string
	}{
		{hypervisor.StateIOError, "paused by an I/O error on its disk: free space, then kami instance start"},
		{hypervisor.StatePaused, "paused: kami instance start"},
	}
	for _, tt := range tests {
		t.Run(string(tt.state), func(t *testing.T) {
			l := &listener{}
			r, d := open(t, tellingTo(l))
			inst, other := running(t, r), running(t, r)
			d.Pause(inst.InstanceID, tt.state)
			for range 2 {
				got := wantState(t, r, inst.InstanceID, ami.InstanceRunning)
				if got.StateReason == nil || !strings.Contains(got.StateReason.Message, tt.why) {
					t.Errorf("got the reason %v, want that it is %s", got.StateReason, tt.why)
				}
			}
			told := func() (n int) {
				for _, note := range l.notes {
					if strings.Contains(note, tt.why) {
						n++
					}
				}
				return n
			}
			if told() != 1 {
				t.Errorf("got the notes %q, want to be told once that it is %s", l.notes, tt.why)
			}
			if got := wantState(t, r, other.InstanceID, ami.InstanceRunning); got.StateReason != nil {
				t.Errorf("another guest is said to be %v", got.StateReason)
			}

			d.NoRoom = true
			_, err := r.StartInstances(t.Context(), []ami.InstanceID{inst.InstanceID}, false)
			wantCode(t, err, ami.CodeResourceLimitExceeded)
			d.NoRoom = false
			got, err := r.StartInstances(t.Context(), []ami.InstanceID{inst.InstanceID, other.InstanceID}, false)
			must(t, err)
			for _, inst := range got {
				if inst.State.Name != ami.InstanceRunning || inst.StateReason != nil {
					t.Errorf("after the start it is %s because of %v", inst.State.Name, inst.StateReason)
				}
			}
			d.Pause(inst.InstanceID, tt.state)
			wantState(t, r, inst.InstanceID, ami.InstanceRunning)
			if told() != 2 {
				t.Errorf("got the notes %q, want to be told of the second pause", l.notes)
			}
		})
	}
}

// A guest that stands still goes on to hear that it is to shut down.
func TestPausedGuestStops(t *testing.T) {
	t.Parallel()
	l := &listener{}
	r, d := open(t, tellingTo(l))
	one, two := running(t, r), running(t, r)
	d.Pause(one.InstanceID, hypervisor.StateIOError)
	d.Pause(two.InstanceID, hypervisor.StateIOError)
	got, err := r.StopInstances(t.Context(), StopInput{InstanceIDs: []ami.InstanceID{one.InstanceID}, Timeout: time.Minute})
	must(t, err)
	if got[0].State.Name != ami.InstanceStopped || l.noted("power was cut") {
		t.Errorf("it is %s, with the notes %q; want it shut down cleanly", got[0].State.Name, l.notes)
	}
	terminate(t, r, two.InstanceID)
	if got := wantState(t, r, two.InstanceID, ami.InstanceTerminated); got.StateReason.Code != "Client.UserInitiatedShutdown" {
		t.Errorf("got the reason %v for its end, want that its user asked for it", got.StateReason)
	}
}

// A running guest is not locked to be started: its disks may just be read.
func TestStartOfARunningGuestWhileLocked(t *testing.T) {
	t.Parallel()
	r, d := open(t)
	inst := running(t, r)
	err := r.whileLocked(t.Context(), inst.InstanceID, func(ami.Instance) error {
		_, err := r.StartInstances(t.Context(), []ami.InstanceID{inst.InstanceID}, false)
		must(t, err)
		d.Pause(inst.InstanceID, hypervisor.StateIOError)
		_, err = r.StartInstances(t.Context(), []ami.InstanceID{inst.InstanceID}, false)
		return err
	})
	wantCode(t, err, ami.CodeIncorrectInstanceState)
}
