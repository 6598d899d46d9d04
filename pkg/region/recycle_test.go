package region

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
)

func rule(t *testing.T, r *Region, kind string, days int, edit ...func(*RetentionRule)) RetentionRule {
	t.Helper()
	in := RetentionRule{ResourceType: kind, Retention: RetentionPeriod{Value: days}}
	for _, e := range edit {
		e(&in)
	}
	made, err := r.CreateRetentionRule(t.Context(), in, false)
	must(t, err)
	return made
}

func binIDs(t *testing.T, r *Region) (ids []string) {
	t.Helper()
	for _, o := range get(r.RecycleBin(t.Context()))(t) {
		ids = append(ids, o.ResourceID)
	}
	return ids
}

// What a rule covers is not there for anybody, costs what it did, and comes back as it
// was: snapshots before their image.
func TestRecycleBin(t *testing.T) {
	t.Parallel()
	h, hand := newHouse(t), newHand()
	r := h.open(t, hand.clock)
	rule(t, r, RecycleImages, 5)
	rule(t, r, RecycleImages, 9)
	rule(t, r, RecycleSnapshots, 3)
	i := image(t, r, "base")
	ctx, snap := t.Context(), rootSnapshot(i)
	share(t, r, i.ImageID, accountOf(stranger))
	before := get(r.image(ctx, i.ImageID))(t)
	bytes := onDisk(t, r)
	res, err := r.DeregisterImage(ctx, i.ImageID, true, false)
	must(t, err)
	exit := hand.at.AddDate(0, 0, 3)
	want := DeregisterResult{ImageID: i.ImageID, Return: true, RecycleBinExit: hand.at.AddDate(0, 0, 9), DeleteSnapshots: []SnapshotReturnCode{
		{SnapshotID: snap, ReturnCode: "success", RecycleBinExit: exit},
	}}
	if diff := cmp.Diff(want, res); diff != "" {
		t.Errorf("result (-want +got):\n%s", diff)
	}
	gone := func() {
		t.Helper()
		if all, err := r.DescribeSnapshots(ctx, DescribeInput{}); err != nil || len(all) > 0 {
			t.Errorf("got the snapshots %v (%v), want none", all, err)
		}
		if all, err := r.DescribeImages(ctx, DescribeInput{IncludeDisabled: true}); err != nil || len(all) > 0 {
			t.Errorf("got the images %v (%v), want none", all, err)
		}
		wantCode(t, launchErr(t, r, string(i.ImageID)), ami.CodeInvalidAMIIDUnavailable)
		wantCode(t, launchErr(t, h.open(t, as(stranger), hand.clock), "base"), ami.CodeInvalidAMIIDNotFound)
		wantCode(t, r.DeleteSnapshot(ctx, snap, false), ami.CodeInvalidSnapshotNotFound)
		wantCode(t, registerErr(t, r, snap), ami.CodeInvalidSnapshotNotFound)
		wantCode(t, tagErr(t, r, string(snap)), ami.CodeInvalidSnapshotNotFound)
		_, err = r.CreateVolume(ctx, CreateVolumeInput{SnapshotID: snap})
		wantCode(t, err, ami.CodeInvalidSnapshotNotFound)
		_, err = r.LockSnapshot(ctx, LockSnapshotInput{SnapshotID: snap, Mode: ami.LockGovernance, Days: 1})
		wantCode(t, err, ami.CodeInvalidSnapshotNotFound)
		_, err := r.DeregisterImage(ctx, i.ImageID, false, false) // the second time
		wantCode(t, err, ami.CodeInvalidAMIIDUnavailable)
	}
	gone()
	if diff := cmp.Diff([]string{string(snap), string(i.ImageID)}, binIDs(t, r)); diff != "" {
		t.Errorf("bin (-want +got):\n%s", diff)
	}
	if got := get(r.RecycleBin(ctx))(t)[1]; got.Name != "base" || got.Tags[0].Key != tagInBin || !got.EnterTime.Equal(hand.at) {
		t.Errorf("got %+v in the bin", got)
	}
	if ids := binIDs(t, h.open(t, as(stranger), hand.clock)); len(ids) > 0 {
		t.Errorf("others see %v in the bin", ids)
	}
	plan, err := r.CollectGarbage(ctx, false)
	must(t, err)
	usage, err := r.StoreUsage(ctx)
	must(t, err)
	if onDisk(t, r) != bytes || len(plan.Layers) > 0 || usage.Bin != bytes || usage.Garbage != 0 {
		t.Errorf("%d of %d bytes are left, %d garbage, %d for the bin; collected %v", onDisk(t, r), bytes, usage.Garbage, usage.Bin, plan.Layers)
	}
	verified, err := r.VerifyStore(ctx, VerifyInput{})
	must(t, err)
	for _, v := range verified.Results {
		if !v.OK {
			t.Errorf("it is not well: %+v", v)
		}
	}

	hand.turn(2 * day) // not yet
	r = h.open(t, hand.clock)
	gone()
	_, err = r.RestoreImage(ctx, i.ImageID, false)
	wantCode(t, err, ami.CodeIncorrectState)
	wantSays(t, err, string(snap))
	_, err = r.RestoreSnapshot(ctx, snap, true)
	wantCode(t, err, ami.CodeDryRunOperation)
	_, err = h.open(t, as(stranger), hand.clock).RestoreSnapshot(ctx, snap, false)
	wantCode(t, err, ami.CodeInvalidSnapshotNotFound)
	_, err = r.RestoreSnapshot(ctx, snap, false)
	must(t, err)
	_, err = r.RestoreSnapshot(ctx, snap, false)
	wantCode(t, err, ami.CodeIncorrectState)
	other := image(t, r, "base")
	_, err = r.RestoreImage(ctx, i.ImageID, false)
	wantCode(t, err, ami.CodeInvalidAMINameDuplicate)
	_, err = r.DisableImage(ctx, other.ImageID, false)
	must(t, err)
	_, err = r.RestoreImage(ctx, i.ImageID, true)
	wantCode(t, err, ami.CodeDryRunOperation)
	_, err = r.RestoreImage(ctx, i.ImageID, false)
	must(t, err)
	if diff := cmp.Diff(before, get(r.image(ctx, i.ImageID))(t)); diff != "" {
		t.Errorf("restored (-before +after):\n%s", diff)
	}
	launched(t, h.open(t, as(stranger), hand.clock), RunInstancesInput{Image: "base"}) // shared as it was
	_, err = r.RestoreImage(ctx, i.ImageID, false)
	wantCode(t, err, ami.CodeIncorrectState)
	_, err = r.RestoreImage(ctx, "ami-x", false)
	wantCode(t, err, ami.CodeInvalidAMIIDMalformed)
	_, err = r.RestoreSnapshot(ctx, "snap-x", false)
	wantCode(t, err, ami.CodeInvalidSnapshotIDMalformed)
}

// When its time is over what lies in the bin is deleted by the next command, and not
// before, whatever happens to the clock.
func TestRecycleBinEnds(t *testing.T) {
	t.Parallel()
	h, hand := newHouse(t), newHand()
	r := h.open(t, hand.clock)
	rule(t, r, RecycleSnapshots, 3)
	rule(t, r, RecycleImages, 9)
	i := image(t, r, "base")
	_, err := r.DeregisterImage(t.Context(), i.ImageID, true, false)
	must(t, err)
	left := func(want int) {
		t.Helper()
		later := h.open(t, hand.clock)
		if ids := binIDs(t, later); len(ids) != want {
			t.Errorf("%s: got %v in the bin, want %d", hand.at, ids, want)
		}
		if got := look(t, later, h.driver); want == 0 && len(got.Images)+len(got.Snapshots)+len(got.Layers) > 0 {
			t.Errorf("it left something: %+v", got)
		}
	}
	hand.turn(-100 * day)
	left(2)
	second := image(t, r, "second") // is to stay for as long, whatever the clock says
	_, err = r.DeregisterImage(t.Context(), second.ImageID, true, false)
	must(t, err)
	hand.turn(103*day - time.Second)
	left(4)
	hand.turn(time.Second)
	left(2)
	hand.turn(5 * day)
	left(2)
	wantCode(t, func() error { _, err := h.open(t, hand.clock).RestoreImage(t.Context(), i.ImageID, false); return err }(), ami.CodeInvalidSnapshotNotFound)
	hand.turn(day)
	left(0)
	_, err = h.open(t, hand.clock).RestoreImage(t.Context(), i.ImageID, false)
	wantCode(t, err, ami.CodeInvalidAMIIDNotFound)
}

// A public image comes back from the bin as one, unless it could not become one now.
func TestRestorePublicImages(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	told := &listener{}
	r := h.open(t, tellingTo(told))
	rule(t, r, RecycleImages, 9)
	i := image(t, r, "public")
	share(t, r, i.ImageID, everybody(), accountOf(stranger))
	binned := func() {
		t.Helper()
		get(r.DeregisterImage(t.Context(), i.ImageID, false, false))(t)
	}
	binned()
	if back := get(r.RestoreImage(t.Context(), i.ImageID, false))(t); !back.Public {
		t.Errorf("got %+v, want it public as it was", back)
	}
	binned()
	must(t, r.SetImageBlockPublicAccess(t.Context(), BlockNewSharing, false))
	back := get(r.RestoreImage(t.Context(), i.ImageID, false))(t)
	if back.Public || !slices.Equal(back.LaunchPermissions, []ami.LaunchPermission{accountOf(stranger)}) || !told.noted("public access is blocked") {
		t.Errorf("got %+v, want it shared with one account alone, and to be told", back)
	}
	if now := get(r.image(t.Context(), i.ImageID))(t); now.Public {
		t.Error("its record says that it is public")
	}
	must(t, r.SetImageBlockPublicAccess(t.Context(), Unblocked, false))
	share(t, r, i.ImageID, everybody())
	binned()
	for n := range maxPublic { // while it was away
		share(t, r, image(t, r, fmt.Sprint("public-", n)).ImageID, everybody())
	}
	if back := get(r.RestoreImage(t.Context(), i.ImageID, false))(t); back.Public {
		t.Errorf("the account has %d public images", maxPublic+1)
	}
}

func TestRetentionRules(t *testing.T) {
	t.Parallel()
	h, hand := newHouse(t), newHand()
	r := h.open(t, hand.clock)
	tags := func(s ...string) (out []RecycleTag) {
		for _, t := range s {
			k, v, _ := strings.Cut(t, "=")
			out = append(out, RecycleTag{k, v})
		}
		return out
	}
	with := func(s ...string) func(*RetentionRule) { return func(r *RetentionRule) { r.ResourceTags = tags(s...) } }
	without := func(s ...string) func(*RetentionRule) {
		return func(r *RetentionRule) { r.ExcludeResourceTags = tags(s...) }
	}
	for _, tt := range []struct {
		rule RetentionRule
		tags []ami.Tag
		want bool
	}{
		{RetentionRule{ResourceType: RecycleImages}, nil, true},
		{RetentionRule{ResourceType: RecycleSnapshots}, nil, false},
		{RetentionRule{ResourceType: RecycleImages, ResourceTags: tags("a=1", "b")}, nil, false},
		{RetentionRule{ResourceType: RecycleImages, ResourceTags: tags("a=1", "b")}, []ami.Tag{{Key: "a", Value: "2"}}, false},
		{RetentionRule{ResourceType: RecycleImages, ResourceTags: tags("a=1", "b")}, []ami.Tag{{Key: "b", Value: "2"}}, true},
		{RetentionRule{ResourceType: RecycleImages, ExcludeResourceTags: tags("a=1")}, []ami.Tag{{Key: "a", Value: "1"}}, false},
		{RetentionRule{ResourceType: RecycleImages, ExcludeResourceTags: tags("a=1")}, []ami.Tag{{Key: "a", Value: "2"}}, true},
	} {
		if got := tt.rule.covers(RecycleImages, tt.tags); got != tt.want {
			t.Errorf("%+v covers %v: got %t", tt.rule, tt.tags, got)
		}
	}
	many := strings.Fields(strings.Repeat("k=v ", 51))
	for _, tt := range []struct {
		kind string
		days int
		edit func(*RetentionRule)
		want ami.Code
	}{
		{"EBS_VOLUME", 1, with(), ami.CodeInvalidParameterValue},
		{RecycleImages, 0, with(), ami.CodeInvalidParameterValue},
		{RecycleImages, 366, with(), ami.CodeInvalidParameterValue},
		{RecycleImages, 1, with(many...), ami.CodeInvalidParameterValue},
		{RecycleImages, 1, without(many[:6]...), ami.CodeInvalidParameterValue},
		{RecycleImages, 1, with("aws:x"), ami.CodeInvalidTagKeyMalformed},
		{RecycleImages, 1, func(r *RetentionRule) { with("a")(r); without("b")(r) }, ami.CodeInvalidParameterCombination},
		{RecycleImages, 1, func(r *RetentionRule) { r.Description = strings.Repeat("x", 256) }, ami.CodeInvalidParameterValue},
	} {
		in := RetentionRule{ResourceType: tt.kind, Retention: RetentionPeriod{Value: tt.days}}
		tt.edit(&in)
		_, err := r.CreateRetentionRule(t.Context(), in, false)
		wantCode(t, err, tt.want)
	}
	_, err := r.CreateRetentionRule(t.Context(), RetentionRule{ResourceType: RecycleImages, Retention: RetentionPeriod{Value: 1}}, true)
	wantCode(t, err, ami.CodeDryRunOperation)

	all, some := rule(t, r, RecycleImages, 1), rule(t, r, RecycleImages, 1, with("a"))
	del := func(id string) error { return r.DeleteRetentionRule(t.Context(), id, false) }
	lock := func(id string, days int) error {
		_, err := r.LockRetentionRule(t.Context(), id, days, false)
		return err
	}
	unlock := func(id string) error { _, err := r.UnlockRetentionRule(t.Context(), id, false); return err }
	wantCode(t, del("nothing"), ami.CodeRuleNotFound)
	wantCode(t, lock("nothing", 7), ami.CodeRuleNotFound)
	wantCode(t, lock(all.Identifier, 6), ami.CodeInvalidParameterValue)
	wantCode(t, lock(some.Identifier, 7), ami.CodeInvalidParameterCombination)
	wantCode(t, unlock(all.Identifier), ami.CodeRuleConflict)
	must(t, lock(all.Identifier, 7))
	wantCode(t, lock(all.Identifier, 7), ami.CodeRuleConflict)
	wantCode(t, del(all.Identifier), ami.CodeRuleConflict)
	must(t, unlock(all.Identifier))
	hand.turn(7*day - time.Second)
	wantCode(t, del(all.Identifier), ami.CodeRuleConflict)
	hand.turn(-30 * day)
	wantCode(t, del(all.Identifier), ami.CodeRuleConflict)
	hand.turn(30*day + time.Second)
	if got := get(r.RetentionRules(t.Context()))(t); len(got) != 2 || got[0].LockState != ruleUnlocked {
		t.Errorf("got the rules %+v, want the first unlocked", got)
	}
	must(t, del(all.Identifier))
	must(t, del(some.Identifier))
	if got := get(r.RetentionRules(t.Context()))(t); len(got) > 0 {
		t.Errorf("got the rules %+v, want none", got)
	}
}

// What became of each snapshot of a deregistered image is told in EC2's codes.
func TestDeregisterCodes(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	r, o := h.open(t), h.open(t, as(stranger))
	gone, locked, others, shared := image(t, r, "gone"), image(t, r, "locked"), image(t, o, "others"), image(t, r, "shared")
	i := image(t, r, "all")
	must(t, r.catalog.Update(t.Context(), func(tx *catalog.Tx) error {
		for n, from := range []ami.Image{gone, locked, others, shared} {
			m := from.BlockDeviceMappings[0]
			m.DeviceName = "/dev/sd" + string(rune('f'+n))
			i.BlockDeviceMappings = append(i.BlockDeviceMappings, m)
		}
		must(t, tx.PutImage(i))
		for _, from := range []ami.Image{gone, locked, others} {
			must(t, tx.DeleteImage(from.ImageID))
		}
		return tx.DeleteSnapshot(rootSnapshot(gone))
	}))
	_, err := r.LockSnapshot(t.Context(), LockSnapshotInput{SnapshotID: rootSnapshot(locked), Mode: ami.LockGovernance, Days: 1})
	must(t, err)
	res, err := r.DeregisterImage(t.Context(), i.ImageID, true, false)
	must(t, err)
	var got []string
	for _, s := range res.DeleteSnapshots {
		got = append(got, s.ReturnCode)
		if (s.Reason == "") != (s.ReturnCode == "success") {
			t.Errorf("%s has the reason %q", s.ReturnCode, s.Reason)
		}
	}
	if diff := cmp.Diff([]string{"success", "client-error", "client-error", "missing-permissions", "skipped"}, got); diff != "" {
		t.Errorf("codes (-want +got):\n%s", diff)
	}
}
