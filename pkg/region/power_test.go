package region

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/hypervisor"
	"github.com/kamivm/kami/pkg/hypervisor/fake"
	"github.com/kamivm/kami/pkg/machine"
)

func TestPowerCycle(t *testing.T) {
	t.Parallel()
	r, d := open(t)
	inst := running(t, r)
	ids := []ami.InstanceID{inst.InstanceID}
	spec, _ := d.Spec(inst.InstanceID)

	got, err := r.StopInstances(t.Context(), StopInput{InstanceIDs: ids})
	must(t, err)
	if got[0].State.Name != ami.InstanceStopped || got[0].StateReason.Code != "Client.UserInitiatedShutdown" {
		t.Errorf("got %s because of %v, want it stopped by its user", got[0].State.Name, got[0].StateReason)
	}
	if _, ok := d.Spec(inst.InstanceID); ok {
		t.Error("the guest of a stopped instance runs")
	}
	if v := volumeOf(t, r, inst, "/dev/sda1"); v.State != ami.VolumeInUse {
		t.Errorf("the volume of a stopped instance is %s, want in-use", v.State)
	}

	got, err = r.StartInstances(t.Context(), ids, false)
	must(t, err)
	again, ok := d.Spec(inst.InstanceID)
	if !ok || got[0].State.Name != ami.InstanceRunning || got[0].StateReason != nil {
		t.Errorf("got %s because of %v, and a guest: %v; want it running", got[0].State.Name, got[0].StateReason, ok)
	}
	spec.Network.SSHPort, again.Network.SSHPort = 0, 0
	if diff := cmp.Diff(spec, again); diff != "" {
		t.Errorf("it is another guest than before (-before +after):\n%s", diff)
	}

	must(t, r.RebootInstances(t.Context(), ids, false))
	if spec, _ = d.Spec(inst.InstanceID); spec.Network.SSHPort != wantState(t, r, inst.InstanceID, ami.InstanceRunning).SSHPort {
		t.Errorf("the guest has the port %d, its record another", spec.Network.SSHPort)
	}

	got, err = r.TerminateInstances(t.Context(), ids, false)
	must(t, err)
	if got[0].State.Name != ami.InstanceTerminated || got[0].BlockDeviceMappings != nil || got[0].Terminated.IsZero() {
		t.Errorf("got %+v, want it terminated, without devices", got[0])
	}
	left := look(t, r, d)
	if len(left.Guests)+len(left.Volumes)+len(left.Files)+len(left.Leases) != 0 {
		t.Errorf("it leaves %v", left)
	}
}

// A stopped instance can be stopped and a running one started; anything else
// that does not fit is refused for all instances that were named, or for none.
func TestWrongStates(t *testing.T) {
	t.Parallel()
	r, d := open(t)
	run, off, gone := running(t, r).InstanceID, stopped(t, r).InstanceID, running(t, r).InstanceID
	terminate(t, r, gone)
	verbs := map[string]func(ids ...ami.InstanceID) error{
		"start": func(ids ...ami.InstanceID) error { _, err := r.StartInstances(t.Context(), ids, false); return err },
		"stop": func(ids ...ami.InstanceID) error {
			_, err := r.StopInstances(t.Context(), StopInput{InstanceIDs: ids})
			return err
		},
		"reboot":    func(ids ...ami.InstanceID) error { return r.RebootInstances(t.Context(), ids, false) },
		"terminate": func(ids ...ami.InstanceID) error { _, err := r.TerminateInstances(t.Context(), ids, false); return err },
		"image": func(ids ...ami.InstanceID) error {
			_, err := r.CreateImage(t.Context(), CreateImageInput{InstanceID: ids[0], Name: "new"})
			return err
		},
		"attach": func(ids ...ami.InstanceID) error {
			v, err := r.CreateVolume(t.Context(), CreateVolumeInput{Size: 1})
			must(t, err)
			defer func() { must(t, r.DeleteVolume(t.Context(), v.VolumeID, false)) }()
			_, err = r.AttachVolume(t.Context(), AttachVolumeInput{VolumeID: v.VolumeID, InstanceID: ids[0]})
			return err
		},
		"console log": func(ids ...ami.InstanceID) error { _, err := r.ConsoleLog(t.Context(), ids[0]); return err },
		"console":     func(ids ...ami.InstanceID) error { _, err := r.Console(t.Context(), ids[0]); return err },
		"ssh":         func(ids ...ami.InstanceID) error { _, err := r.SSH(t.Context(), ids[0]); return err },
	}
	tests := []struct {
		verb string
		ids  []ami.InstanceID
		code ami.Code
	}{
		{"start", []ami.InstanceID{run}, ""},
		{"start", []ami.InstanceID{off, gone}, ami.CodeIncorrectInstanceState},
		{"stop", []ami.InstanceID{off}, ""},
		{"stop", []ami.InstanceID{run, gone}, ami.CodeIncorrectInstanceState},
		{"reboot", []ami.InstanceID{run, off}, ami.CodeIncorrectInstanceState},
		{"reboot", []ami.InstanceID{gone}, ami.CodeIncorrectInstanceState},
		{"terminate", []ami.InstanceID{gone, gone}, ""},
		{"terminate", []ami.InstanceID{run, "i-00000000000000000"}, ami.CodeInvalidInstanceIDNotFound},
		{"terminate", []ami.InstanceID{run, "i-x"}, ami.CodeInvalidInstanceIDMalformed},
		{"terminate", nil, ami.CodeMissingParameter},
		{"image", []ami.InstanceID{gone}, ami.CodeIncorrectInstanceState},
		{"attach", []ami.InstanceID{gone}, ami.CodeIncorrectInstanceState},
		{"console log", []ami.InstanceID{off}, ""},
		{"console log", []ami.InstanceID{gone}, ami.CodeIncorrectInstanceState},
		{"console", []ami.InstanceID{off}, ami.CodeIncorrectInstanceState},
		{"console", []ami.InstanceID{run}, ami.CodeUnsupportedOperation}, // a fake guest has none
		{"ssh", []ami.InstanceID{off}, ami.CodeIncorrectInstanceState},
		{"ssh", []ami.InstanceID{run}, ""},
	}
	before := look(t, r, d)
	for _, tt := range tests {
		t.Run(tt.verb, func(t *testing.T) {
			wantCode(t, verbs[tt.verb](tt.ids...), tt.code)
			if diff := cmp.Diff(before, look(t, r, d)); diff != "" {
				t.Errorf("%s changed something (-before +after):\n%s", tt.verb, diff)
			}
		})
	}
}

func TestTerminationProtection(t *testing.T) {
	t.Parallel()
	r, d := open(t)
	one, two := running(t, r), running(t, r)
	must(t, r.updateInstance(t.Context(), two.InstanceID, func(i *ami.Instance) { i.DisableAPITermination = true }))
	_, err := r.TerminateInstances(t.Context(), []ami.InstanceID{one.InstanceID, two.InstanceID}, false)
	wantCode(t, err, ami.CodeOperationNotPermitted)
	if n := len(look(t, r, d).Guests); n != 2 {
		t.Errorf("%d guests run, want both", n)
	}
}

// A guest that does not hear the power button is forced off when its time is up.
func TestDeafGuest(t *testing.T) {
	t.Parallel()
	l := &listener{}
	r, d := open(t, tellingTo(l))
	inst := running(t, r)
	d.Deaf = true
	got, err := r.StopInstances(t.Context(), StopInput{InstanceIDs: []ami.InstanceID{inst.InstanceID}, Timeout: 50 * time.Millisecond})
	must(t, err)
	if _, ok := d.Spec(inst.InstanceID); ok || got[0].State.Name != ami.InstanceStopped {
		t.Errorf("it is %s, and its guest runs: %v; want it stopped", got[0].State.Name, ok)
	}
	if !l.noted("its power was cut") {
		t.Errorf("got the notes %q, want to be told that its power was cut", l.notes)
	}
}

func TestForceAsksNobody(t *testing.T) {
	t.Parallel()
	l := &listener{}
	r, d := open(t, tellingTo(l))
	one, two := running(t, r), running(t, r)
	d.Deaf = true
	_, err := r.StopInstances(t.Context(), StopInput{InstanceIDs: []ami.InstanceID{one.InstanceID}, Force: true})
	must(t, err)
	terminate(t, r, two.InstanceID) // all its volumes go: a clean shutdown would be for nothing
	for _, s := range l.steps {
		if s == "shutting down "+string(one.InstanceID) || s == "shutting down "+string(two.InstanceID) {
			t.Errorf("got the step %q, want no wait", s)
		}
	}
}

func TestShutdownFromInside(t *testing.T) {
	t.Parallel()
	tests := []struct {
		behaviour ami.ShutdownBehavior
		want      ami.InstanceState
	}{
		{"", ami.InstanceStopped},
		{ami.ShutdownStop, ami.InstanceStopped},
		{ami.ShutdownTerminate, ami.InstanceTerminated},
	}
	for _, tt := range tests {
		t.Run(string(tt.behaviour), func(t *testing.T) {
			r, d := open(t)
			image(t, r, "base")
			inst := launched(t, r, RunInstancesInput{Image: "base", ShutdownBehavior: tt.behaviour, BlockDeviceMappings: mapping(t, "/dev/sdf=:1")})
			other := running(t, r)
			d.PowerOff(inst.InstanceID)
			for range 2 { // noticed once, and then known
				got := wantState(t, r, inst.InstanceID, tt.want)
				if got.StateReason == nil || got.StateReason.Code != "Client.InstanceInitiatedShutdown" {
					t.Errorf("got the reason %v, want that it shut itself down", got.StateReason)
				}
			}
			wantState(t, r, other.InstanceID, ami.InstanceRunning)
			vols, err := r.DescribeVolumes(t.Context(), DescribeInput{Filters: []Filter{filter("status", "available")}})
			must(t, err)
			if want := tt.want == ami.InstanceTerminated; (len(vols) == 1) != want { // the data volume stays
				t.Errorf("got the free volumes %v, want one: %v", vols, want)
			}
			if tt.want == ami.InstanceStopped {
				_, err := r.StartInstances(t.Context(), []ami.InstanceID{inst.InstanceID}, false)
				must(t, err)
				wantState(t, r, inst.InstanceID, ami.InstanceRunning)
			}
		})
	}
}

// A guest that a command has shut down and cannot start again did not shut down
// of its own will: its volumes stay.
func TestRebootThatFails(t *testing.T) {
	t.Parallel()
	r, d := open(t)
	image(t, r, "base")
	inst := launched(t, r, RunInstancesInput{Image: "base", ShutdownBehavior: ami.ShutdownTerminate})
	cause := errors.New("no memory left")
	d.FailStart = func(machine.Spec) error { return cause }
	verbs := map[string]func() error{
		"reboot": func() error { return r.RebootInstances(t.Context(), []ami.InstanceID{inst.InstanceID}, false) },
		"create image": func() error {
			_, err := r.CreateImage(t.Context(), CreateImageInput{InstanceID: inst.InstanceID, Name: "new"})
			return err
		},
	}
	for name, verb := range verbs {
		t.Run(name, func(t *testing.T) {
			if err := verb(); !errors.Is(err, cause) {
				t.Errorf("got %v, want %v", err, cause)
			}
			got := wantState(t, r, inst.InstanceID, ami.InstanceStopped)
			if got.StateReason == nil || got.StateReason.Code != "Server.InternalError" {
				t.Errorf("got the reason %v, want that it could not be started", got.StateReason)
			}
			volumeOf(t, r, got, "/dev/sda1")
			start := d.FailStart
			d.FailStart = nil
			_, err := r.StartInstances(t.Context(), []ami.InstanceID{inst.InstanceID}, false)
			must(t, err)
			d.FailStart = start
		})
	}
}

// What others write while a guest takes its time to shut down stays.
func TestStopKeepsWhatOthersWrite(t *testing.T) {
	t.Parallel()
	l := &listener{}
	r, d := open(t, tellingTo(l))
	inst := running(t, r)
	d.Deaf = true
	l.onStep = func(string) {
		must(t, r.CreateTags(t.Context(), []string{string(inst.InstanceID)}, []ami.Tag{{Key: "meanwhile", Value: "yes"}}, false))
	}
	_, err := r.StopInstances(t.Context(), StopInput{InstanceIDs: []ami.InstanceID{inst.InstanceID}, Timeout: time.Millisecond})
	must(t, err)
	if got := wantState(t, r, inst.InstanceID, ami.InstanceStopped); len(got.Tags) != 1 {
		t.Errorf("got the tags %v, want that which was set meanwhile", got.Tags)
	}
}

// A stop that is given up may still take effect: that is no shutdown from inside.
func TestStopGivenUp(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	l := &listener{}
	r, d := open(t, tellingTo(l))
	image(t, r, "base")
	inst := launched(t, r, RunInstancesInput{Image: "base", ShutdownBehavior: ami.ShutdownTerminate})
	d.Deaf = true
	l.onStep = func(string) { cancel() }
	if _, err := r.StopInstances(ctx, StopInput{InstanceIDs: []ami.InstanceID{inst.InstanceID}}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
	wantState(t, r, inst.InstanceID, ami.InstanceRunning)
	d.PowerOff(inst.InstanceID)
	wantState(t, r, inst.InstanceID, ami.InstanceStopped)
}

func TestConsoleIsKept(t *testing.T) {
	t.Parallel()
	r, _ := open(t)
	inst := running(t, r)
	must(t, r.RebootInstances(t.Context(), []ami.InstanceID{inst.InstanceID}, false))
	path, err := r.ConsoleLog(t.Context(), inst.InstanceID)
	must(t, err)
	b, err := os.ReadFile(path)
	must(t, err)
	if want := fake.ConsoleLine + fake.ConsoleLine; string(b) != want {
		t.Errorf("got %q, want the lines of both boots, %q", b, want)
	}
}

// Ephemeral disks are blank after a stop, and stay over a reboot.
func TestEphemeralDisks(t *testing.T) {
	t.Parallel()
	r, _ := open(t)
	image(t, r, "base")
	inst := launched(t, r, RunInstancesInput{Image: "base", BlockDeviceMappings: mapping(t, "/dev/sdf=ephemeral0")})
	head := r.layers.HeadPath(volumeOf(t, r, inst, "/dev/sdf").VolumeID)
	is := func() os.FileInfo { return get(os.Stat(head))(t) }
	first := is()
	must(t, r.RebootInstances(t.Context(), []ami.InstanceID{inst.InstanceID}, false))
	if !os.SameFile(first, is()) {
		t.Error("a reboot made the disk anew")
	}
	if _, err := r.CreateImage(t.Context(), CreateImageInput{InstanceID: inst.InstanceID, Name: "new"}); err != nil {
		t.Errorf("got %v, want no error", err)
	}
	if !os.SameFile(first, is()) {
		t.Error("the reboot for an image made the disk anew")
	}
	stop(t, r, inst.InstanceID)
	_, err := r.StartInstances(t.Context(), []ami.InstanceID{inst.InstanceID}, false)
	must(t, err)
	if os.SameFile(first, is()) {
		t.Error("the disk is the same after a stop, want a blank one")
	}
}

// broken is a hypervisor that answers nothing.
type broken struct{ *fake.Driver }

func (broken) States(context.Context) (map[ami.InstanceID]hypervisor.State, error) {
	return nil, errors.New("no answer\nnone at all")
}

// An unreachable hypervisor spoils the states of its own instances and no listing.
func TestUnreachableHypervisor(t *testing.T) {
	t.Parallel()
	tests := map[string]func(o *Options){
		"nobody is there": func(o *Options) {
			o.NewDriver = func(context.Context, string) (hypervisor.Driver, error) { return nil, hypervisor.ErrUnreachable }
		},
		"no answer": func(o *Options) {
			o.NewDriver = func(context.Context, string) (hypervisor.Driver, error) { return broken{fake.New()}, nil }
		},
	}
	for name, edit := range tests {
		t.Run(name, func(t *testing.T) {
			h := newHouse(t)
			r := h.open(t)
			run, off := running(t, r), stopped(t, r)
			before := look(t, r, h.driver)
			far := h.open(t, edit)
			got := wantState(t, far, run.InstanceID, ami.InstanceRunning)
			if got.StateReason == nil || got.StateReason.Code != "Server.InternalError" {
				t.Errorf("got the reason %v, want that the state is the last known one", got.StateReason)
			}
			if got := wantState(t, far, off.InstanceID, ami.InstanceStopped); got.StateReason.Code != "Client.UserInitiatedShutdown" {
				t.Errorf("got the reason %v for one that is off, want its own", got.StateReason)
			}
			if ids, err := instanceIDs(far)(t, DescribeInput{}); err != nil || len(ids) != 2 {
				t.Errorf("got %v, %v; want both instances", ids, err)
			}
			for _, list := range []func(*testing.T, DescribeInput) ([]string, error){imageIDs(far), snapshotIDs(far), volumeIDs(far)} {
				if ids, err := list(t, DescribeInput{}); err != nil || len(ids) != 2 {
					t.Errorf("got %v, %v; want two", ids, err)
				}
			}
			if diff := cmp.Diff(before, look(t, r, h.driver)); diff != "" {
				t.Errorf("looking changed something (-before +after):\n%s", diff)
			}
		})
	}
	h := newHouse(t)
	run := running(t, h.open(t))
	far := h.open(t, tests["nobody is there"])
	_, err := far.StopInstances(t.Context(), StopInput{InstanceIDs: []ami.InstanceID{run.InstanceID}})
	wantCode(t, err, ami.CodeInsufficientInstanceCapacity)
	_, err = far.RunInstances(t.Context(), RunInstancesInput{Image: string(run.ImageID)})
	wantCode(t, err, ami.CodeInsufficientInstanceCapacity)
}
