package region

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/hypervisor"
	"github.com/kamivm/kami/pkg/hypervisor/fake"
	"github.com/kamivm/kami/pkg/machine"
)

// storeJob is what a child does with an instance-store image. It says when it is
// done.
func storeJob(home, arg string) error {
	ctx := context.Background()
	d := fake.New()
	r, err := Open(ctx, Options{Home: home, NewDriver: func(context.Context, string) (hypervisor.Driver, error) { return d, nil }})
	if err != nil {
		return err
	}
	do, id, _ := strings.Cut(arg, " ")
	switch do {
	case "launch":
		_, err = r.RunInstances(ctx, RunInstancesInput{Image: "web"})
	case "register":
		_, err = r.RegisterImage(ctx, RegisterImageInput{Name: "next", BundleImageInput: BundleImageInput{ImageLocation: "images/web"}})
	case "deregister":
		_, err = r.DeregisterImage(ctx, ami.ImageID(id), false, false)
	case "collect":
		var plan GCPlan
		if plan, err = r.PlanGarbage(ctx, GCInput{Cache: true}); err == nil {
			_, err = r.RemoveGarbage(ctx, plan)
		}
	case "reboot":
		if err = d.Start(ctx, machine.Spec{ID: ami.InstanceID(id), Console: machine.Console{Log: r.consolePath(ami.InstanceID(id))}}); err == nil {
			err = r.RebootInstances(ctx, []ami.InstanceID{ami.InstanceID(id)}, false)
		}
	}
	if err == nil {
		fmt.Fprintln(os.Stdout, "done")
	}
	return errors.Join(err, r.Close())
}

// TestStoreKilledAtEveryStep kills a child at each durable step of what it does with
// an instance-store image. The next command finds all as before or as after, and
// nothing is left of what was under way.
func TestStoreKilledAtEveryStep(t *testing.T) {
	t.Parallel()
	child := func(h *house, arg, env string) (string, error) {
		return crashChild(t, h, "store", arg, env)
	}
	none := func(t *testing.T, r *Region) string { storeImage(t, r, "web"); return "" }
	cached := func(t *testing.T, r *Region) string {
		inst := storeGuest(t, r)
		terminate(t, r, inst.InstanceID)
		return string(inst.ImageID)
	}
	tests := []struct {
		job   string
		ready func(t *testing.T, r *Region) (arg string)
		steps []string // some that it must come by
	}{
		{"launch", none, []string{"job.begin#1", "layer.written#1", "cache.layer#1", "job.committed#1", "launch.heads#1", "launch.started#1", "job.committed#2"}},
		{"register", none, []string{"bundle.registered#1"}},
		{"deregister", cached, []string{"remove.removed#1"}},
		{"collect", cached, []string{"cache.forgotten#1", "remove.removed#1"}},
		{"reboot", func(t *testing.T, r *Region) string { return string(storeGuest(t, r).InstanceID) }, []string{"reboot.marked#1", "power.off#1"}},
	}
	for _, tt := range tests {
		t.Run(tt.job, func(t *testing.T) {
			list := filepath.Join(t.TempDir(), "steps")
			h := newHouse(t)
			arg := tt.job + " " + tt.ready(t, h.open(t))
			if out, _ := child(h, arg, "KAMI_CRASH_LIST="+list); out != "done\n" {
				t.Fatalf("the job fails: %s", out)
			}
			steps := strings.Fields(string(get(os.ReadFile(list))(t)))
			for _, want := range tt.steps {
				if !slices.Contains(steps, want) {
					t.Errorf("got the steps %q, want %s among them", steps, want)
				}
			}
			for n, at := range steps {
				h := newHouse(t)
				id := tt.ready(t, h.open(t))
				out, err := child(h, tt.job+" "+id, "KAMI_CRASH_AT="+at)
				var exit *exec.ExitError
				if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
					t.Fatalf("%s: got %v, want it killed\n%s", at, err, out)
				}
				if tt.job == "reboot" {
					// The child's guest is not ours: it is off from the shutdown until
					// the mark goes.
					if off := slices.Index(steps, "power.off#1"); n >= off && n < len(steps)-1 {
						h.driver.PowerOff(ami.InstanceID(id))
					}
					wantState(t, h.open(t), ami.InstanceID(id), ami.InstanceRunning)
				}
				wantNothingLeft(t, h)
				if t.Failed() {
					t.Fatalf("killed at %s", at)
				}
			}
		})
	}
}

// wantNothingLeft ends all guests of a house and takes back all that is cached: then
// there is nothing any more, and it can all be made again.
func wantNothingLeft(t *testing.T, h *house) {
	t.Helper()
	r := h.open(t)
	for _, inst := range get(r.DescribeInstances(t.Context(), DescribeInput{}))(t) {
		terminate(t, r, inst.InstanceID)
	}
	collect(t, r, GCInput{Cache: true})
	got := look(t, r, h.driver)
	bundles := func(path string) bool { return path == "objects/images" || strings.HasPrefix(path, "objects/.kami") }
	got.Files = slices.DeleteFunc(got.Files, bundles)
	if len(got.Volumes)+len(got.Leases)+len(got.Layers)+len(got.Files)+len(cachedLayers(t, r)) > 0 {
		t.Errorf("something is left: %+v, cached %v", got, cachedLayers(t, r))
	}
	for _, i := range got.Images {
		if i.State == ami.ImageAvailable {
			launched(t, r, RunInstancesInput{Image: string(i.ImageID)})
		}
	}
	if found := get(r.VerifyStore(t.Context(), VerifyInput{}))(t).Results; slices.ContainsFunc(found, func(v VerifyResult) bool { return !v.OK }) {
		t.Errorf("not well: %+v", found)
	}
}
