package region

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
	"github.com/kamivm/kami/pkg/hypervisor"
	"github.com/kamivm/kami/pkg/hypervisor/fake"
	"github.com/kamivm/kami/pkg/machine"
)

// The sweep tests run this test binary again as a child, which begins one of
// jobs in a home, says so, and waits in the midst of it to be killed.
const (
	envJob  = "REGION_TEST_JOB"
	envHome = "REGION_TEST_HOME"
	envArg  = "REGION_TEST_ARG"
)

func TestMain(m *testing.M) {
	job := os.Getenv(envJob)
	if job == "" {
		code := m.Run()
		os.RemoveAll(crashDir)
		os.Exit(code)
	}
	if err := jobs()[job](os.Getenv(envHome), os.Getenv(envArg)); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	os.Exit(1) // it was to be killed before
}

// here says that the child is where it is to be killed, and waits for that.
func here() {
	fmt.Fprintln(os.Stdout, "here")
	io.Copy(io.Discard, os.Stdin)
}

// lively is a hypervisor in which all guests run, whatever they are told.
type lively struct{ *fake.Driver }

func (lively) State(context.Context, ami.InstanceID) (hypervisor.State, error) {
	return hypervisor.StateRunning, nil
}

func (lively) Shutdown(context.Context, ami.InstanceID) error { here(); return nil }

func (d lively) States(context.Context) (map[ami.InstanceID]hypervisor.State, error) {
	return map[ami.InstanceID]hypervisor.State{ami.InstanceID(os.Getenv(envArg)): hypervisor.StateRunning}, nil
}

// jobs are what a child can do.
func jobs() map[string]func(home, arg string) error {
	ctx := context.Background()
	in := func(home string, l *listener, d hypervisor.Driver) (*Region, error) {
		return Open(ctx, Options{Home: home, Progress: l, NewDriver: func(context.Context, string) (hypervisor.Driver, error) { return d, nil }})
	}
	atNth := func(n int) *listener {
		return &listener{onStep: func(name string) {
			if strings.HasPrefix(name, "writing ") {
				if n--; n == 0 {
					here()
				}
			}
		}}
	}
	return map[string]func(home, arg string) error{
		"verify": verifyJob,
		"draft":  draftJob,
		"copy":   copyJob,
		"store":  storeJob,
		"import": func(home, source string) error {
			r, err := in(home, atNth(1), fake.New())
			if err == nil {
				_, err = r.ImportImage(ctx, ImportInput{Source: source, Name: "new"})
			}
			return err
		},
		"image": func(home, id string) error { // between the snapshots of its two volumes
			r, err := in(home, atNth(2), fake.New())
			if err == nil {
				_, err = r.CreateImage(ctx, CreateImageInput{InstanceID: ami.InstanceID(id), Name: "new"})
			}
			return err
		},
		"launch": func(home, name string) error {
			d := fake.New()
			d.FailStart = func(machine.Spec) error { here(); return nil }
			r, err := in(home, &listener{}, d)
			if err == nil {
				_, err = r.RunInstances(ctx, RunInstancesInput{Image: name, BlockDeviceMappings: []ami.BlockDeviceMapping{{DeviceName: "/dev/sdf", VirtualName: "ephemeral0"}}})
			}
			return err
		},
		"volume": func(home, _ string) error {
			r, err := in(home, &listener{}, fake.New())
			if err != nil {
				return err
			}
			v := ami.Volume{VolumeID: ami.NewVolumeID(), OwnerID: ami.DefaultAccount, SizeBytes: 1 << 30, State: ami.VolumeCreating}
			j, err := r.begin(ctx, func(tx *catalog.Tx) error { return tx.PutVolume(v) }, string(v.VolumeID))
			if err != nil {
				return err
			}
			defer runtime.KeepAlive(j) // a lock that nothing refers to is let go
			if _, err := r.layers.CreateHead(v.VolumeID, v.SizeBytes, "", ""); err != nil {
				return err
			}
			here()
			return nil
		},
		"stop": func(home, id string) error {
			r, err := in(home, &listener{}, lively{fake.New()})
			if err == nil {
				_, err = r.StopInstances(ctx, StopInput{InstanceIDs: []ami.InstanceID{ami.InstanceID(id)}})
			}
			return err
		},
	}
}

// begun starts a child and returns when it is in the midst of its job.
func begun(t *testing.T, job, home, arg string) (kill func()) {
	t.Helper()
	self, err := os.Executable()
	must(t, err)
	cmd := exec.CommandContext(t.Context(), self)
	cmd.Env = append(os.Environ(), envJob+"="+job, envHome+"="+home, envArg+"="+arg)
	stdin, err := cmd.StdinPipe() // open, or the child would end by itself
	must(t, err)
	stdout, err := cmd.StdoutPipe()
	must(t, err)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	must(t, cmd.Start())
	killed := false
	kill = func() {
		if !killed {
			killed = true
			cmd.Process.Kill()
			stdin.Close()
			cmd.Wait()
		}
	}
	t.Cleanup(kill)
	if line, err := bufio.NewReader(stdout).ReadString('\n'); line != "here\n" {
		kill()
		t.Fatalf("the child said %q (%v)\n%s", line, err, &stderr)
	}
	return kill
}

// What a killed process has begun is left alone while it lives, and undone by
// the next command after that.
func TestKilledProcessIsUndone(t *testing.T) {
	t.Parallel()
	tests := []struct {
		job string
		arg func(*testing.T, *Region) string
	}{
		{"import", func(t *testing.T, _ *Region) string { return rawDisk(t, "new") }},
		{"launch", func(t *testing.T, r *Region) string { image(t, r, "base"); return "base" }},
		{"volume", func(*testing.T, *Region) string { return "" }},
		{"image", func(t *testing.T, r *Region) string {
			image(t, r, "base")
			inst := launched(t, r, RunInstancesInput{Image: "base", BlockDeviceMappings: mapping(t, "/dev/sdf=:1")})
			stop(t, r, inst.InstanceID)
			scribble(t, r, volumeOf(t, r, inst, "/dev/sda1").VolumeID, 7)
			return string(inst.InstanceID)
		}},
	}
	for _, tt := range tests {
		t.Run(tt.job, func(t *testing.T) {
			h := newHouse(t)
			r := h.open(t)
			arg := tt.arg(t, r)
			before := look(t, r, h.driver)
			kill := begun(t, tt.job, h.home, arg)
			during := look(t, h.open(t), h.driver)
			if cmp.Diff(before, during) == "" || len(during.Leases) == 0 {
				t.Errorf("got the leases %v while the child lives, want some", during.Leases)
			}
			kill()
			if diff := cmp.Diff(during, look(t, r, h.driver)); diff != "" {
				t.Errorf("its death changed something (-before +after):\n%s", diff)
			}
			l := &listener{}
			next := h.open(t, tellingTo(l))
			_, err := next.CollectGarbage(t.Context(), false) // a layer that was whole
			must(t, err)
			if diff := cmp.Diff(before, look(t, next, h.driver)); diff != "" {
				t.Errorf("it is not as it was (-before +after):\n%s", diff)
			}
			if !l.noted("was left half done by an interrupted command; it has been undone") {
				t.Errorf("got the notes %q, want to be told", l.notes)
			}
			for _, e := range get(os.ReadDir(r.path("tmp")))(t) {
				if strings.HasPrefix(e.Name(), "power-") || strings.HasSuffix(e.Name(), ".work") {
					t.Errorf("tmp still has %s", e.Name())
				}
			}
			again := begun(t, tt.job, h.home, arg) // it can be done again
			again()
		})
	}
}

// A stop whose process is killed may still take effect. The guest has not shut
// down of its own will then, so nothing of it goes.
func TestKilledStop(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	r := h.open(t)
	image(t, r, "base")
	inst := launched(t, r, RunInstancesInput{Image: "base", ShutdownBehavior: ami.ShutdownTerminate})
	kill := begun(t, "stop", h.home, string(inst.InstanceID))
	wantCode(t, stopErr(t, r, inst.InstanceID), ami.CodeIncorrectInstanceState) // the child is at it
	kill()
	wantState(t, h.open(t), inst.InstanceID, ami.InstanceRunning) // not yet
	h.driver.PowerOff(inst.InstanceID)
	got := wantState(t, h.open(t), inst.InstanceID, ami.InstanceStopped)
	if got.StateReason == nil || got.StateReason.Code != "Server.InternalError" {
		t.Errorf("got the reason %v, want that a command was interrupted", got.StateReason)
	}
	_, err := r.StartInstances(t.Context(), []ami.InstanceID{inst.InstanceID}, false)
	must(t, err)
	h.driver.PowerOff(inst.InstanceID) // and this is its own will
	wantState(t, r, inst.InstanceID, ami.InstanceTerminated)
}

// leave writes a lease that no process holds the lock of.
func leave(t *testing.T, r *Region, id string, records func(*catalog.Tx) error) {
	t.Helper()
	must(t, r.catalog.Update(t.Context(), func(tx *catalog.Tx) error {
		if err := records(tx); err != nil {
			return err
		}
		return tx.PutLease(catalog.Lease{ID: id, Holder: "0", Created: time.Now()})
	}))
}

// An object that is finished, or that is gone already, only loses its lease.
func TestLeaseOfWhatIsFinished(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	r := h.open(t)
	i := image(t, r, "base")
	inst := launched(t, r, RunInstancesInput{Image: "base"})
	v := newVolume(t, r)
	before := look(t, r, h.driver)
	none := func(*catalog.Tx) error { return nil }
	for _, id := range []string{
		string(i.ImageID), string(rootSnapshot(i)), string(v.VolumeID), string(inst.InstanceID),
		string(ami.NewImageID()), string(ami.NewSnapshotID()), string(ami.NewVolumeID()), string(ami.NewInstanceID()), "x-unknown",
	} {
		leave(t, r, id, none)
	}
	if diff := cmp.Diff(before, look(t, h.open(t), h.driver)); diff != "" {
		t.Errorf("it is not as it was (-before +after):\n%s", diff)
	}
}

// A pending instance whose hypervisor does not answer is undone another time.
func TestUndoWaitsForTheHypervisor(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	r := h.open(t)
	image(t, r, "base")
	inst := launched(t, r, RunInstancesInput{Image: "base"})
	leave(t, r, string(inst.InstanceID), func(tx *catalog.Tx) error {
		inst.State = ami.StateRecord(ami.InstancePending)
		return tx.PutInstance(inst)
	})
	l := &listener{}
	far := h.open(t, tellingTo(l), func(o *Options) {
		o.NewDriver = func(context.Context, string) (hypervisor.Driver, error) { return nil, hypervisor.ErrUnreachable }
	})
	if got := look(t, far, h.driver); len(got.Leases) != 1 || len(got.Guests) != 1 || !l.noted("cannot be undone yet") {
		t.Errorf("got the leases %v, guests %v and notes %q, want all left for another time", got.Leases, got.Guests, l.notes)
	}
	if got := look(t, h.open(t), h.driver); len(got.Leases)+len(got.Guests)+len(got.Instances)+len(got.Volumes)+len(got.Files) > 0 {
		t.Errorf("got %+v, want nothing of the instance", got)
	}
}

// Files whose record was deleted by a command that was killed before it came to
// the files are removed; those of others stay.
func TestFilesWithoutRecords(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	r := h.open(t)
	gone, forgotten, stays := running(t, r), running(t, r), running(t, r)
	v := newVolume(t, r)
	must(t, r.updateInstance(t.Context(), gone.InstanceID, func(i *ami.Instance) {
		i.State, i.Terminated = ami.StateRecord(ami.InstanceTerminated), time.Now()
	}))
	must(t, r.catalog.Update(t.Context(), func(tx *catalog.Tx) error {
		for _, inst := range []ami.Instance{gone, forgotten} {
			if err := tx.DeleteVolume(inst.BlockDeviceMappings[0].Ebs.VolumeID); err != nil {
				return err
			}
		}
		if err := tx.DeleteVolume(v.VolumeID); err != nil {
			return err
		}
		return tx.DeleteInstance(forgotten.InstanceID)
	}))
	locks := []string{r.lockPath(string(v.VolumeID)), r.instanceLockPath(gone.InstanceID), r.instanceLockPath(forgotten.InstanceID)}
	for _, path := range locks {
		must(t, os.WriteFile(path, nil, 0o600))
	}
	want := []string{"volumes/" + string(volumeOf(t, r, stays, "/dev/sda1").VolumeID) + ".qcow2", "instances/" + string(stays.InstanceID)}
	if diff := cmp.Diff(want, files(t, h.open(t))); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
	for _, path := range locks {
		if _, err := os.Stat(path); !os.IsNotExist(err) {
			t.Errorf("%s is still there: %v", path, err)
		}
	}
}

// A command that comes to its end after its lease was read, and before its lock
// was asked for, has nothing to be undone.
func TestEndedBeforeItsLock(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	r := h.open(t)
	image(t, r, "base")
	left, kept := launched(t, r, RunInstancesInput{Image: "base"}), builderPrefix+string(running(t, r).InstanceID)
	leave(t, r, kept, func(*catalog.Tx) error { return nil })
	leave(t, r, string(left.InstanceID), func(tx *catalog.Tx) error { // undone first
		left.State = ami.StateRecord(ami.InstancePending)
		return tx.PutInstance(left)
	})
	l := &listener{}
	other := h.open(t, tellingTo(l), func(o *Options) {
		o.NewDriver = func(ctx context.Context, _ string) (hypervisor.Driver, error) {
			return h.driver, r.catalog.Update(ctx, func(tx *catalog.Tx) error { return tx.DeleteLease(kept) })
		}
	})
	if l.noted(kept) || !l.noted(string(left.InstanceID)) {
		t.Errorf("got the notes %q, want only %s undone", l.notes, left.InstanceID)
	}
	wantState(t, other, ami.InstanceID(strings.TrimPrefix(kept, builderPrefix)), ami.InstanceRunning)
}
