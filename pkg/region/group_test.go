package region

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
	"github.com/kamivm/kami/pkg/hypervisor/fake"
)

func imageGroup(image string) *ami.GroupLaunch {
	return &ami.GroupLaunch{Data: ami.LaunchTemplateData{ImageID: image}}
}

// grouped makes a group of n instances of an image and reconciles it.
func grouped(t *testing.T, r *Region, n int) ami.Group {
	t.Helper()
	image(t, r, "one")
	image(t, r, "two")
	get(r.CreateGroup(t.Context(), GroupInput{Name: "web", Launch: imageGroup("one"), Desired: new(n), Max: new(9)}))(t)
	reconciled(t, r, n)
	return groupOf(t, r)
}

// reconciled reconciles the group, and checks how many steps that took.
func reconciled(t *testing.T, r *Region, steps int) []GroupAction {
	t.Helper()
	done := get(r.ReconcileGroups(t.Context(), nil, false))(t)
	if len(done) != steps {
		t.Errorf("got the steps %v, want %d", done, steps)
	}
	return done
}

func groupOf(t *testing.T, r *Region) ami.Group {
	t.Helper()
	return get(r.Group(t.Context(), "web"))(t)
}

// wantGroup checks what there is of the group: how many run, and of those how many are
// what it launches. Nothing runs beside it.
func wantGroup(t *testing.T, r *Region, d *fake.Driver, run, current int) ami.Group {
	t.Helper()
	g := groupOf(t, r)
	var n, c int
	for _, i := range g.Instances {
		if i.State == ami.InstanceRunning {
			n++
			if i.Current {
				c++
			}
		}
	}
	var guests int
	for _, s := range get(d.States(t.Context()))(t) {
		if s.On() {
			guests++
		}
	}
	if n != run || c != current || guests != run {
		t.Errorf("%d instances run, %d of them current, and %d guests; want %d and %d", n, c, guests, run, current)
	}
	return g
}

func TestGroupReconciles(t *testing.T) {
	t.Parallel()
	r, d := open(t)
	g := grouped(t, r, 3)
	wantGroup(t, r, d, 3, 3)
	reconciled(t, r, 0)

	// What died, was stopped or was terminated is replaced.
	d.PowerOff(g.Instances[0].InstanceID)
	stop(t, r, g.Instances[1].InstanceID)
	terminate(t, r, g.Instances[2].InstanceID)
	plan := get(r.ReconcileGroups(t.Context(), []string{"web"}, true))(t)
	wantGroup(t, r, d, 0, 0)
	done := reconciled(t, r, 5)
	if len(plan) != len(done) {
		t.Errorf("got the plan %v, want what was done: %v", plan, done)
	}
	g = wantGroup(t, r, d, 3, 3)

	// Another image is for what is launched from then on.
	get(r.SetGroup(t.Context(), GroupInput{Name: "web", Launch: imageGroup("two"), Desired: new(4)}))(t)
	reconciled(t, r, 1)
	wantGroup(t, r, d, 4, 1)
	get(r.SetGroup(t.Context(), GroupInput{Name: "web", Desired: new(1)}))(t)
	gone := reconciled(t, r, 3)
	if gone[0].InstanceID != g.Instances[0].InstanceID {
		t.Errorf("%s went first, want the oldest of those that are not current", gone[0].InstanceID)
	}
	wantGroup(t, r, d, 1, 1)
}

func TestGroupRefuses(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	r := h.open(t)
	grouped(t, r, 1)
	create := func(in GroupInput) error { _, err := r.CreateGroup(t.Context(), in); return err }
	set := func(in GroupInput) error { in.Name = "web"; _, err := r.SetGroup(t.Context(), in); return err }
	_, rollErr := r.RollGroup(t.Context(), RollInput{Name: "web", Launch: imageGroup("three")})
	_, deleteErr := r.DeleteGroup(t.Context(), "web", false, false)
	_, noneErr := h.open(t, as(stranger)).Group(t.Context(), "web")
	_, noneSet := r.SetGroup(t.Context(), GroupInput{Name: "none", Desired: new(1)})
	inst := groupOf(t, r).Instances[0].InstanceID
	for name, tt := range map[string]struct {
		err  error
		want ami.Code
	}{
		"its name twice":        {create(GroupInput{Name: "web", Launch: imageGroup("one")}), ami.CodeGroupExists},
		"a bad name":            {create(GroupInput{Name: "a/b", Launch: imageGroup("one")}), ami.CodeInvalidParameterValue},
		"nothing to launch":     {create(GroupInput{Name: "x", Launch: &ami.GroupLaunch{}}), ami.CodeMissingParameter},
		"nothing said of that":  {create(GroupInput{Name: "x"}), ami.CodeMissingParameter},
		"its name twice, dry":   {create(GroupInput{Name: "web", Launch: imageGroup("one"), DryRun: true}), ami.CodeGroupExists},
		"a dry run":             {create(GroupInput{Name: "x", Launch: imageGroup("one"), DryRun: true}), ami.CodeDryRunOperation},
		"no such group":         {noneSet, ami.CodeGroupNotFound},
		"no such image":         {create(GroupInput{Name: "x", Launch: imageGroup("three")}), ami.CodeInvalidAMIIDNotFound},
		"no such template":      {set(GroupInput{Launch: &ami.GroupLaunch{Template: "none"}}), ami.CodeTemplateNotFound},
		"more than the most":    {set(GroupInput{Desired: new(10)}), ami.CodeInvalidParameterValue},
		"less than the least":   {set(GroupInput{Min: new(2)}), ami.CodeInvalidParameterValue},
		"a grace below nothing": {set(GroupInput{Grace: -time.Second}), ami.CodeInvalidParameterValue},
		"a health of its own":   {set(GroupInput{HealthCheck: "fine"}), ami.CodeInvalidParameterValue},
		"a roll to nothing":     {rollErr, ami.CodeInvalidAMIIDNotFound},
		"deleted with one":      {deleteErr, ami.CodeGroupInUse},
		"another account":       {noneErr, ami.CodeGroupNotFound},
		"its tag for another":   {launchErrTagged(t, r, ami.TagGroup), ami.CodeInvalidTagKeyMalformed},
		"its tag taken away":    {r.DeleteTags(t.Context(), []string{string(inst)}, []string{ami.TagGroup}, false), ami.CodeInvalidTagKeyMalformed},
		"another tag, which is": {r.CreateTags(t.Context(), []string{string(inst)}, []ami.Tag{{Key: "a", Value: "b"}}, false), ""},
	} {
		if got := ami.ErrorCode(tt.err); got != tt.want {
			t.Errorf("%s: got %q (%v), want %q", name, got, tt.err, tt.want)
		}
	}
	if g := groupOf(t, r); g.Refresh != nil || g.DesiredCapacity != 1 {
		t.Errorf("what was refused changed the group: %+v", g)
	}
}

func launchErrTagged(t *testing.T, r *Region, key string) error {
	t.Helper()
	_, err := r.RunInstances(t.Context(), RunInstancesInput{Image: "one", Tags: []ami.Tag{{Key: key, Value: "web"}}})
	return err
}

func TestGroupIsOfOneCommandAtATime(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	r := h.open(t)
	grouped(t, r, 1)
	unlock := get(r.lockGroup("web"))(t)
	other := h.open(t)
	_, err := other.ReconcileGroups(t.Context(), []string{"web"}, false)
	wantCode(t, err, ami.CodeGroupContention)
	_, err = other.RollGroup(t.Context(), RollInput{Name: "web"})
	wantCode(t, err, ami.CodeGroupContention)
	unlock()
	get(other.ReconcileGroups(t.Context(), []string{"web"}, false))(t)
}

func TestGroupRolls(t *testing.T) {
	t.Parallel()
	r, d := open(t)
	grouped(t, r, 3)
	get(r.RollGroup(t.Context(), RollInput{Name: "web", Launch: imageGroup("two"), DryRun: true}))(t)
	wantGroup(t, r, d, 3, 3)
	done := get(r.RollGroup(t.Context(), RollInput{Name: "web", Launch: imageGroup("two"), Batch: 2}))(t)
	var words []string
	for _, a := range done {
		words = append(words, a.Action)
	}
	if got, want := strings.Join(words, " "), "launch launch terminate terminate launch terminate finish"; got != want {
		t.Errorf("got the steps %q, want %q", got, want)
	}
	g := wantGroup(t, r, d, 3, 3)
	if g.Refresh.Status != ami.RefreshSuccessful || g.Launch.Data.ImageID != "two" {
		t.Errorf("got the group %+v, want it rolled", g)
	}
	again := get(r.RollGroup(t.Context(), RollInput{Name: "web"}))(t)
	if len(again) != 1 {
		t.Errorf("got the steps %v, want nothing but that it is done", again)
	}
	done = get(r.DeleteGroup(t.Context(), "web", true, false))(t)
	if len(done) != 4 {
		t.Errorf("got the steps %v, want three to end and the end", done)
	}
	_, err := r.Group(t.Context(), "web")
	wantCode(t, err, ami.CodeGroupNotFound)
}

// A roll whose new instances do not come up stops, with the old ones at work.
func TestGroupRollStops(t *testing.T) {
	t.Parallel()
	r, d := open(t)
	g := grouped(t, r, 2)
	get(r.SetGroup(t.Context(), GroupInput{Name: "web", HealthCheck: WaitSSH, Grace: time.Second}))(t) // which these guests never answer
	done, err := r.RollGroup(t.Context(), RollInput{Name: "web", Launch: imageGroup("two"), Batch: 2})
	wantCode(t, err, ami.CodeIncorrectState)
	wantSays(t, err, "The roll of the group web stopped")
	if len(done) != 4 {
		t.Errorf("got the steps %v, want two launched and terminated", done)
	}
	now := wantGroup(t, r, d, 2, 2)
	if now.Refresh.Status != ami.RefreshFailed || now.Refresh.Reason == "" || now.Launch.Data.ImageID != "one" {
		t.Errorf("got the group %+v, want a failed roll and what it launched before", now)
	}
	if now.Instances[0].InstanceID != g.Instances[0].InstanceID || now.Instances[1].InstanceID != g.Instances[1].InstanceID {
		t.Errorf("got the instances %v, want those of before: %v", now.Instances, g.Instances)
	}
	get(r.SetGroup(t.Context(), GroupInput{Name: "web", HealthCheck: WaitRunning}))(t)
	reconciled(t, r, 0)
}

// A roll to what comes up and falls over stops too, before all that is well has gone.
func TestGroupRollOfWhatFallsOver(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	r := h.open(t)
	grouped(t, r, 2)
	opts := h.options()
	opts.Progress = &listener{onStep: func(name string) {
		if !strings.HasPrefix(name, "terminating ") { // which is when the first of the new ones is healthy
			return
		}
		for _, i := range groupOf(t, r).Instances {
			if i.Revision != groupOf(t, r).Instances[0].Revision {
				h.driver.PowerOff(i.InstanceID)
			}
		}
	}}
	rolling := get(Open(t.Context(), opts))(t)
	defer rolling.Close()
	_, err := rolling.RollGroup(t.Context(), RollInput{Name: "web", Launch: imageGroup("two")})
	wantSays(t, err, "The roll of the group web stopped")
	g := groupOf(t, r)
	if g.Refresh.Status != ami.RefreshFailed || g.Launch.Data.ImageID != "one" {
		t.Errorf("got the group %+v, want a failed roll and what it launched before", g)
	}
	wantGroup(t, r, h.driver, 1, 1)
	reconciled(t, r, 1)
	wantGroup(t, r, h.driver, 2, 2)
}

var errKilled = errors.New("killed")

// killed does something until the nth step that is told of begins or ends, as a kill
// would; it says whether it came so far.
func killed(h *house, t *testing.T, n int, do func(context.Context, *Region) error) (was bool) {
	t.Helper()
	count := 0
	hit := func(string) {
		if count++; count == n {
			panic(errKilled)
		}
	}
	l := &listener{onStep: hit, onDone: hit}
	opts := h.options()
	opts.Progress = l
	r := get(Open(t.Context(), opts))(t)
	defer r.Close()
	defer func() {
		if e := recover(); e != nil {
			if e != any(errKilled) {
				panic(e)
			}
			was = true
		}
	}()
	must(t, do(t.Context(), r))
	return false
}

// openRuns is how many runs of instances are metered now.
func openRuns(t *testing.T, r *Region) (n int) {
	t.Helper()
	var all []catalog.UsageRecord
	must(t, r.catalog.View(t.Context(), func(tx *catalog.Tx) (err error) { all, err = tx.Usages(time.Time{}, time.Time{}); return err }))
	for _, u := range all {
		if u.Kind == ami.UsageInstance && u.To.IsZero() {
			n++
		}
	}
	return n
}

// Wherever a reconciliation or a roll is killed, the next reconciliation ends with what
// is desired, and no guest beside it.
func TestGroupKilledAtEveryStep(t *testing.T) {
	t.Parallel()
	for _, job := range []string{"reconcile", "roll", "delete"} {
		for n := 1; ; n++ {
			h := newHouse(t)
			r := h.open(t)
			g := grouped(t, r, 2)
			get(r.SetGroup(t.Context(), GroupInput{Name: "web", Desired: new(3)}))(t)
			d := h.driver
			was := killed(h, t, n, func(ctx context.Context, r *Region) (err error) {
				switch job {
				case "reconcile":
					d.PowerOff(g.Instances[0].InstanceID)
					_, err = r.ReconcileGroups(ctx, nil, false)
				case "roll":
					_, err = r.RollGroup(ctx, RollInput{Name: "web", Launch: imageGroup("two"), Batch: 2})
				case "delete":
					_, err = r.DeleteGroup(ctx, "web", true, false)
				}
				return err
			})
			r = h.open(t)
			get(r.ReconcileGroups(t.Context(), nil, false))(t)
			if job == "delete" {
				if all := get(r.Groups(t.Context()))(t); len(all) != 0 && was {
					t.Errorf("delete %d: the group is still there: %+v", n, all)
				}
			} else {
				g := wantGroup(t, r, d, 3, 3)
				if job == "roll" && g.Launch.Data.ImageID != "two" {
					t.Errorf("roll %d: the roll was not finished: %+v", n, g.Refresh)
				}
				if open := openRuns(t, r); open != 3 {
					t.Errorf("%d runs are metered, want those of the 3 instances", open)
				}
				if t.Failed() {
					t.Fatalf("%s killed at step %d", job, n)
				}
			}
			if !was {
				if n < 4 {
					t.Errorf("%s has only %d steps", job, n)
				}
				break
			}
		}
	}
}
