package region

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kamivm/kami/pkg/ami"
)

const day = 24 * time.Hour

func TestDeprecateImage(t *testing.T) {
	t.Parallel()
	h, hand := newHouse(t), newHand()
	r := h.open(t, hand.clock)
	i := image(t, r, "base")
	share(t, r, i.ImageID, accountOf(stranger))
	o := h.open(t, as(stranger), hand.clock)
	set := func(r *Region, at time.Time) error {
		_, err := r.DeprecateImage(t.Context(), i.ImageID, at, false)
		return err
	}
	wantCode(t, set(r, hand.at.Add(-time.Hour)), ami.CodeInvalidParameterValue)
	wantCode(t, set(r, hand.at.AddDate(10, 0, 1)), ami.CodeInvalidParameterValue)
	wantCode(t, set(o, hand.at.Add(day)), ami.CodeAuthFailure)
	_, err := r.DeprecateImage(t.Context(), i.ImageID, hand.at.Add(day), true)
	wantCode(t, err, ami.CodeDryRunOperation)
	must(t, set(r, hand.at.Add(day+31*time.Second)))
	at := get(r.image(t.Context(), i.ImageID))(t).DeprecationTime
	if at.Second() != 0 || at.Sub(hand.at.Add(day)).Abs() > 2*time.Minute {
		t.Errorf("it is deprecated at %s, want a whole minute a day from %s", at, hand.at)
	}
	listed := func(r *Region) int { return len(get(r.DescribeImages(t.Context(), DescribeInput{}))(t)) }
	if mine, its := listed(r), listed(o); mine != 1 || its != 1 {
		t.Errorf("before, its owner sees %d and others %d, want 1 and 1", mine, its)
	}
	hand.turn(2 * day)
	if mine, its := listed(r), listed(o); mine != 1 || its != 0 {
		t.Errorf("deprecated, its owner sees %d and others %d, want 1 and 0", mine, its)
	}
	launched(t, o, RunInstancesInput{Image: string(i.ImageID)}) // by its id
	_, err = r.CancelDeprecation(t.Context(), i.ImageID, false)
	must(t, err)
	if its := listed(o); its != 1 {
		t.Errorf("others see %d, want it again", its)
	}
	share(t, r, i.ImageID, everybody())
	now, err := r.CancelDeprecation(t.Context(), i.ImageID, false)
	must(t, err)
	if !now.DeprecationTime.Equal(publicDeprecation(i)) {
		t.Errorf("a public image is deprecated at %s, want two years after it was made", now.DeprecationTime)
	}
}

func TestDisableImage(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	r, o := h.open(t), h.open(t, as(stranger))
	i := image(t, r, "base")
	share(t, r, i.ImageID, accountOf(stranger), everybody())
	inst := launched(t, o, RunInstancesInput{Image: "base"})
	disable := func(dry bool) error { _, err := r.DisableImage(t.Context(), i.ImageID, dry); return err }
	enable := func(dry bool) error { _, err := r.EnableImage(t.Context(), i.ImageID, dry); return err }
	wantCode(t, enable(false), ami.CodeIncorrectState)
	wantCode(t, disable(true), ami.CodeDryRunOperation)
	must(t, disable(false))
	wantCode(t, disable(false), ami.CodeIncorrectState)
	wantCode(t, launchErr(t, r, string(i.ImageID)), ami.CodeInvalidAMIIDUnavailable)
	wantCode(t, launchErr(t, o, string(i.ImageID)), ami.CodeInvalidAMIIDNotFound)
	wantCode(t, shareErr(t, r, i.ImageID, accountOf(stranger)), ami.CodeIncorrectState)
	wantCode(t, r.DeleteSnapshot(t.Context(), rootSnapshot(i), false), ami.CodeInvalidSnapshotInUse)
	wantState(t, o, inst.InstanceID, ami.InstanceRunning)
	if all, err := r.DescribeImages(t.Context(), DescribeInput{}); err != nil || len(all) > 0 {
		t.Errorf("got the images %v (%v), want none", all, err)
	}
	if id, err := r.ResolveOwnImage(t.Context(), "base"); err != nil || id != i.ImageID {
		t.Errorf("by its name it is %s (%v)", id, err)
	}
	other := image(t, r, "base") // the name is free
	wantCode(t, enable(false), ami.CodeInvalidAMINameDuplicate)
	if id, err := r.ResolveOwnImage(t.Context(), "base"); err != nil || id != other.ImageID {
		t.Errorf("by its name it is %s (%v), want the available one", id, err)
	}
	_, err := r.DeregisterImage(t.Context(), other.ImageID, true, false)
	must(t, err)
	wantCode(t, enable(true), ami.CodeDryRunOperation)
	must(t, enable(false))
	if now := get(r.image(t.Context(), i.ImageID))(t); now.Public || len(now.LaunchPermissions) > 0 {
		t.Errorf("got %+v, want it shared with nobody", now)
	}
	launched(t, r, RunInstancesInput{Image: "base"})
	_, err = r.ResolveOwnImage(t.Context(), "nothing")
	wantCode(t, err, ami.CodeInvalidAMIIDNotFound)
	_, err = r.ResolveOwnImage(t.Context(), "ami-x")
	wantCode(t, err, ami.CodeInvalidAMIIDMalformed)
}

func TestDeregistrationProtection(t *testing.T) {
	t.Parallel()
	h, hand := newHouse(t), newHand()
	r := h.open(t, hand.clock)
	i := image(t, r, "base")
	ctx, id := t.Context(), i.ImageID
	deregister := func() error { _, err := r.DeregisterImage(ctx, id, true, true); return err } // dry: nothing is lost
	protect := func(cooldown bool) { _, err := r.ProtectImage(ctx, id, cooldown, false); must(t, err) }
	unprotect := func() { _, err := r.UnprotectImage(ctx, id, false); must(t, err) }
	wantCode(t, deregister(), ami.CodeDryRunOperation)
	protect(false)
	wantCode(t, deregister(), ami.CodeOperationNotPermitted)
	unprotect()
	wantCode(t, deregister(), ami.CodeDryRunOperation)

	protect(true)
	unprotect()
	wantCode(t, deregister(), ami.CodeOperationNotPermitted)
	hand.turn(day - time.Minute)
	wantCode(t, deregister(), ami.CodeOperationNotPermitted)
	hand.turn(-30 * day) // a clock that is set back lets nothing go
	wantCode(t, deregister(), ami.CodeOperationNotPermitted)
	hand.turn(30*day + time.Minute)
	wantCode(t, deregister(), ami.CodeDryRunOperation)

	protect(true)
	protect(false) // a weaker protection is no way around the cooldown
	unprotect()
	wantCode(t, deregister(), ami.CodeOperationNotPermitted)
	hand.turn(-3 * day)
	protect(true)
	unprotect() // and its day begins when it is, whatever the clock says
	hand.turn(3*day + time.Hour)
	wantCode(t, deregister(), ami.CodeOperationNotPermitted)
	hand.turn(day)
	wantCode(t, deregister(), ami.CodeDryRunOperation)
	_, err := r.ProtectImage(ctx, id, false, true)
	wantCode(t, err, ami.CodeDryRunOperation)
	_, err = r.ProtectImage(ctx, "ami-x", false, false)
	wantCode(t, err, ami.CodeInvalidAMIIDMalformed)
}

func TestLockSnapshot(t *testing.T) {
	t.Parallel()
	h, hand := newHouse(t), newHand()
	r := h.open(t, hand.clock)
	i := image(t, r, "base")
	id := rootSnapshot(i)
	_, err := r.DeregisterImage(t.Context(), i.ImageID, false, false)
	must(t, err)
	lock := func(in LockSnapshotInput) error {
		in.SnapshotID = id
		_, err := r.LockSnapshot(t.Context(), in)
		return err
	}
	unlock := func() error { _, err := r.UnlockSnapshot(t.Context(), id, false); return err }
	del := func() error { return r.DeleteSnapshot(t.Context(), id, true) }
	for _, tt := range []struct {
		name string
		in   LockSnapshotInput
		want ami.Code
	}{
		{"no mode", LockSnapshotInput{Days: 1}, ami.CodeInvalidParameterValue},
		{"no end", LockSnapshotInput{Mode: ami.LockGovernance}, ami.CodeInvalidParameterCombination},
		{"two ends", LockSnapshotInput{Mode: ami.LockGovernance, Days: 1, Until: hand.at.Add(9 * day)}, ami.CodeInvalidParameterCombination},
		{"for ever", LockSnapshotInput{Mode: ami.LockGovernance, Days: 36501}, ami.CodeInvalidParameterValue},
		{"an hour", LockSnapshotInput{Mode: ami.LockGovernance, Until: hand.at.Add(time.Hour)}, ami.CodeInvalidParameterValue},
		{"long cooling off", LockSnapshotInput{Mode: ami.LockCompliance, Days: 1, CoolOffPeriod: 73}, ami.CodeInvalidParameterValue},
		{"cooling off of nothing", LockSnapshotInput{Mode: ami.LockGovernance, Days: 1, CoolOffPeriod: 1}, ami.CodeInvalidParameterCombination},
		{"dry", LockSnapshotInput{Mode: ami.LockGovernance, Days: 1, DryRun: true}, ami.CodeDryRunOperation},
	} {
		if got := ami.ErrorCode(lock(tt.in)); got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
	}
	wantCode(t, unlock(), ami.CodeIncorrectState)

	must(t, lock(LockSnapshotInput{Mode: ami.LockGovernance, Until: hand.at.Add(day + time.Hour)}))
	wantCode(t, del(), ami.CodeOperationNotPermitted)
	must(t, unlock())
	wantCode(t, del(), ami.CodeDryRunOperation)
	must(t, lock(LockSnapshotInput{Mode: ami.LockGovernance, Days: 2}))
	hand.turn(2 * day)
	wantCode(t, del(), ami.CodeDryRunOperation)
	wantCode(t, unlock(), ami.CodeIncorrectState)

	must(t, lock(LockSnapshotInput{Mode: ami.LockCompliance, Days: 10, CoolOffPeriod: 24}))
	hand.turn(23 * time.Hour)
	must(t, unlock()) // still cooling off
	must(t, lock(LockSnapshotInput{Mode: ami.LockCompliance, Days: 10, CoolOffPeriod: 24}))
	hand.turn(day)
	wantCode(t, unlock(), ami.CodeOperationNotPermitted)
	h.open(t, hand.clock)                                // any command has seen that time
	hand.turn(-12 * time.Hour)                           // in which it was cooling off
	wantCode(t, unlock(), ami.CodeOperationNotPermitted) // what was settled stays so
	hand.turn(12 * time.Hour)
	wantCode(t, lock(LockSnapshotInput{Mode: ami.LockCompliance, Days: 8}), ami.CodeOperationNotPermitted)
	wantCode(t, lock(LockSnapshotInput{Mode: ami.LockGovernance, Days: 20}), ami.CodeOperationNotPermitted)
	must(t, lock(LockSnapshotInput{Mode: ami.LockCompliance, Days: 20}))
	hand.turn(19 * day)
	wantCode(t, del(), ami.CodeOperationNotPermitted)
	hand.turn(day)
	wantCode(t, del(), ami.CodeDryRunOperation)

	o := h.open(t, as(stranger))
	_, err = o.LockSnapshot(t.Context(), LockSnapshotInput{SnapshotID: id, Mode: ami.LockGovernance, Days: 1})
	wantCode(t, err, ami.CodeInvalidSnapshotNotFound)
	_, err = o.UnlockSnapshot(t.Context(), "snap-x", false)
	wantCode(t, err, ami.CodeInvalidSnapshotIDMalformed)
}

func TestPrune(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	r := h.open(t)
	for _, name := range []string{"web-1", "web-2", "web-3", "web-4", "db-1"} {
		image(t, r, name)
	}
	image(t, h.open(t, as(stranger)), "web-9")
	inst := launched(t, r, RunInstancesInput{Image: "web-1"})
	two := get(r.ResolveOwnImage(t.Context(), "web-2"))(t)
	_, err := r.ProtectImage(t.Context(), two, false, false)
	must(t, err)
	plan, err := r.PlanPrune(t.Context(), PruneInput{Name: "web-*", Keep: 1})
	must(t, err)
	actions := func(p PrunePlan) (out []string) {
		for _, i := range p.Images {
			out = append(out, i.Name+" "+i.Action)
		}
		return out
	}
	want := []string{"web-4 keep", "web-3 deregister", "web-2 keep", "web-1 deregister"}
	if diff := cmp.Diff(want, actions(plan)); diff != "" {
		t.Fatalf("plan (-want +got):\n%s", diff)
	}
	three := get(r.ResolveOwnImage(t.Context(), "web-3"))(t)
	_, err = r.ProtectImage(t.Context(), three, false, false) // meanwhile
	must(t, err)
	done, err := r.ExecutePrune(t.Context(), plan)
	must(t, err)
	want[1] = "web-3 keep"
	if diff := cmp.Diff(want, actions(done)); diff != "" {
		t.Errorf("done (-want +got):\n%s", diff)
	}
	if done.Freed != 0 { // the instance has the one layer that there was to free
		t.Errorf("it freed %d bytes, want none", done.Freed)
	}
	wantState(t, r, inst.InstanceID, ami.InstanceRunning)
	for _, id := range []ami.ImageID{two, three} {
		_, err := r.UnprotectImage(t.Context(), id, false)
		must(t, err)
	}
	if plan, err = r.PlanPrune(t.Context(), PruneInput{Name: "web-*", UnusedFor: time.Hour}); err != nil || plan.Images[0].Goes() {
		t.Errorf("got %+v (%v), want what was just made kept", plan, err)
	}
	plan, err = r.PlanPrune(t.Context(), PruneInput{Name: "*-*"})
	must(t, err)
	before := onDisk(t, r)
	done, err = r.ExecutePrune(t.Context(), plan)
	must(t, err)
	freed := before - onDisk(t, r)
	if done.Freed != freed || plan.Freed != freed || freed == 0 {
		t.Errorf("planned to free %d, said to free %d, freed %d", plan.Freed, done.Freed, freed)
	}
	if all, err := imageIDs(r)(t, DescribeInput{}); err != nil || len(all) > 0 {
		t.Errorf("got the images %v (%v), want none", all, err)
	}
	_, err = r.PlanPrune(t.Context(), PruneInput{})
	wantCode(t, err, ami.CodeMissingParameter)
	_, err = r.PlanPrune(t.Context(), PruneInput{Name: "x", Keep: -1})
	wantCode(t, err, ami.CodeInvalidParameterValue)
}

func TestImageUsage(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	r, o := h.open(t), h.open(t, as(stranger))
	i := image(t, r, "base")
	share(t, r, i.ImageID, accountOf(stranger))
	mine := launched(t, r, RunInstancesInput{Image: "base"})
	its := launched(t, o, RunInstancesInput{Image: "base"})
	launched(t, o, RunInstancesInput{Image: "base"})
	terminate(t, r, launched(t, r, RunInstancesInput{Image: "base"}).InstanceID)
	u, err := r.ImageUsage(t.Context(), i.ImageID)
	must(t, err)
	want := []ImageUsageEntry{{ami.DefaultAccount, ResourceInstance, 1}, {stranger, ResourceInstance, 2}}
	if diff := cmp.Diff(want, u.Entries); diff != "" || u.LastLaunchedTime.IsZero() {
		t.Errorf("usage (-want +got):\n%s", diff)
	}
	_, err = o.ImageUsage(t.Context(), i.ImageID)
	wantCode(t, err, ami.CodeAuthFailure)
	refs, err := r.ImageReferences(t.Context(), []ami.ImageID{i.ImageID, ami.NewImageID()})
	must(t, err)
	if diff := cmp.Diff([]ImageReference{{i.ImageID, ResourceInstance, string(mine.InstanceID)}}, refs); diff != "" {
		t.Errorf("references (-want +got):\n%s", diff)
	}
	_, err = r.ImageReferences(t.Context(), []ami.ImageID{"ami-x"})
	wantCode(t, err, ami.CodeInvalidAMIIDMalformed)

	next, err := o.CreateImage(t.Context(), CreateImageInput{InstanceID: its.InstanceID, Name: "next"})
	must(t, err)
	line := func() (out []ami.ImageID) {
		for _, a := range get(o.ImageAncestry(t.Context(), next.ImageID))(t) {
			out = append(out, a.ImageID)
		}
		return out
	}
	if diff := cmp.Diff([]ami.ImageID{next.ImageID, i.ImageID}, line()); diff != "" {
		t.Errorf("ancestry (-want +got):\n%s", diff)
	}
	must(t, r.ResetLaunchPermissions(t.Context(), i.ImageID, false))
	if diff := cmp.Diff([]ami.ImageID{next.ImageID}, line()); diff != "" {
		t.Errorf("ancestry of what is not seen (-want +got):\n%s", diff)
	}
}
