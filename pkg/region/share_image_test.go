package region

import (
	"fmt"
	"testing"
	"time"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
)

const (
	third   = "444455556666"
	someOrg = "arn:aws:organizations::123456789012:organization/o-a1b2c3d4e5"
)

// hand is a clock that a test turns.
type hand struct{ at time.Time }

func newHand() *hand                                { return &hand{time.Now().UTC().Truncate(time.Second)} }
func (h *hand) turn(d time.Duration)                { h.at = h.at.Add(d) }
func (h *hand) clock(o *Options)                    { o.Clock = func() time.Time { return h.at } }
func accountOf(account string) ami.LaunchPermission { return ami.LaunchPermission{UserID: account} }

func everybody() ami.LaunchPermission { return ami.LaunchPermission{Group: ami.GroupAll} }

func share(t *testing.T, r *Region, id ami.ImageID, with ...ami.LaunchPermission) {
	t.Helper()
	_, err := r.ShareImage(t.Context(), ShareImageInput{ImageID: id, Add: with})
	must(t, err)
}

func shareErr(t *testing.T, r *Region, id ami.ImageID, with ...ami.LaunchPermission) error {
	t.Helper()
	_, err := r.ShareImage(t.Context(), ShareImageInput{ImageID: id, Add: with})
	return err
}

// Whoever an image is shared with launches it though its snapshots are not his, and
// can do nothing else with it or them.
func TestSharedImage(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	r := h.open(t)
	i := image(t, r, "base")
	must(t, r.CreateTags(t.Context(), []string{string(i.ImageID)}, []ami.Tag{{Key: "k", Value: "v"}}, false))
	o := h.open(t, as(stranger))
	wantCode(t, launchErr(t, o, string(i.ImageID)), ami.CodeInvalidAMIIDNotFound)
	share(t, r, i.ImageID, accountOf(stranger), accountOf(third))

	launched(t, o, RunInstancesInput{Image: string(i.ImageID)})
	inst := launched(t, o, RunInstancesInput{Image: "base"}) // by name: what is shown of it has no permissions
	next, err := o.CreateImage(t.Context(), CreateImageInput{InstanceID: inst.InstanceID, Name: "next"})
	must(t, err)
	launched(t, o, RunInstancesInput{Image: string(next.ImageID)})
	for _, ref := range []string{"base", string(i.ImageID)} {
		seen, err := o.ResolveImage(t.Context(), ref, false)
		must(t, err)
		if len(seen.Tags)+len(seen.LaunchPermissions) > 0 || !seen.LastLaunchedTime.IsZero() {
			t.Errorf("%s: its tags, permissions or launches are told to others: %+v", ref, seen)
		}
	}
	snap := rootSnapshot(i)
	ctx := t.Context()
	image(t, o, "other")
	wantCode(t, mapErr(t, o, snap), ami.CodeInvalidSnapshotNotFound) // apart from the image
	wantCode(t, registerErr(t, o, snap), ami.CodeInvalidSnapshotNotFound)
	wantCode(t, imageErr(t, o, inst, snap), ami.CodeInvalidSnapshotNotFound)
	_, err = o.CreateVolume(ctx, CreateVolumeInput{SnapshotID: snap})
	wantCode(t, err, ami.CodeInvalidSnapshotNotFound)
	_, err = o.readable(ctx, snap)
	wantCode(t, err, ami.CodeInvalidSnapshotNotFound)
	if all, err := o.DescribeSnapshots(ctx, DescribeInput{}); err != nil || len(all) != len(next.BlockDeviceMappings)+1 {
		t.Errorf("got the snapshots %v (%v), want its own alone", all, err)
	}
	_, err = o.DisableImage(ctx, i.ImageID, false)
	wantCode(t, err, ami.CodeAuthFailure)
	_, err = o.DeregisterImage(ctx, i.ImageID, true, false)
	wantCode(t, err, ami.CodeAuthFailure)
	wantCode(t, shareErr(t, o, i.ImageID, accountOf(third)), ami.CodeAuthFailure)
	_, err = o.DescribeLaunchPermissions(ctx, i.ImageID)
	wantCode(t, err, ami.CodeAuthFailure)

	// A restored root is read through the image, too; not when that is shared no more.
	replace := func() error {
		_, err := o.ReplaceRootVolume(ctx, ReplaceRootInput{InstanceID: inst.InstanceID})
		return err
	}
	must(t, replace())
	_, err = r.ShareImage(ctx, ShareImageInput{ImageID: i.ImageID, Remove: []ami.LaunchPermission{accountOf(stranger)}})
	must(t, err)
	wantCode(t, replace(), ami.CodeInvalidSnapshotNotFound)
	wantCode(t, launchErr(t, o, string(i.ImageID)), ami.CodeInvalidAMIIDNotFound)
	wantState(t, o, inst.InstanceID, ami.InstanceRunning) // which lives on
	if p, err := r.DescribeLaunchPermissions(ctx, i.ImageID); err != nil || len(p.LaunchPermissions) != 1 {
		t.Errorf("got %v (%v), want the one that is left", p, err)
	}
	must(t, r.ResetLaunchPermissions(ctx, i.ImageID, false))
	wantCode(t, launchErr(t, h.open(t, as(third)), string(i.ImageID)), ami.CodeInvalidAMIIDNotFound)
	now := get(r.image(ctx, i.ImageID))(t)
	if now.LastLaunchedTime.IsZero() || len(now.LaunchPermissions) > 0 {
		t.Errorf("got %+v, want it launched and shared with nobody", now)
	}
}

func TestShareRefuses(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	r := h.open(t)
	i := image(t, r, "base")
	pending, encrypted, paid := image(t, r, "pending"), image(t, r, "encrypted"), image(t, r, "paid")
	must(t, r.catalog.Update(t.Context(), func(tx *catalog.Tx) error {
		pending.State = ami.ImagePending
		must(t, tx.PutImage(pending))
		paid.ProductCodes = []ami.ProductCode{{ID: "774F4FF8", Type: "devpay"}}
		must(t, tx.PutImage(paid))
		s, err := tx.Snapshot(rootSnapshot(encrypted))
		must(t, err)
		s.Encrypted = true
		return tx.PutSnapshot(s)
	}))
	many := make([]ami.LaunchPermission, 1001)
	for n := range many {
		many[n] = accountOf(fmt.Sprintf("%012d", n))
	}
	for _, tt := range []struct {
		name string
		in   ShareImageInput
		want ami.Code
	}{
		{"nobody", ShareImageInput{ImageID: i.ImageID}, ami.CodeMissingParameter},
		{"no account", ShareImageInput{ImageID: i.ImageID, Add: []ami.LaunchPermission{accountOf(third), accountOf("me")}}, ami.CodeInvalidAMIAttributeItemValue},
		{"no group", ShareImageInput{ImageID: i.ImageID, Remove: []ami.LaunchPermission{{Group: "some"}}}, ami.CodeInvalidAMIAttributeItemValue},
		{"both", ShareImageInput{ImageID: i.ImageID, Add: many[:1], Remove: many[:1]}, ami.CodeInvalidParameterCombination},
		{"too many", ShareImageInput{ImageID: i.ImageID, Add: many}, ami.CodeResourceLimitExceeded},
		{"no id", ShareImageInput{ImageID: "ami-x", Add: many[:1]}, ami.CodeInvalidAMIIDMalformed},
		{"no image", ShareImageInput{ImageID: ami.NewImageID(), Add: many[:1]}, ami.CodeInvalidAMIIDNotFound},
		{"everybody's kernel", ShareImageInput{ImageID: ami.ImageID(ami.PVGrub), Add: many[:1]}, ami.CodeAuthFailure},
		{"pending", ShareImageInput{ImageID: pending.ImageID, Add: many[:1]}, ami.CodeIncorrectState},
		{"encrypted", ShareImageInput{ImageID: encrypted.ImageID, Add: []ami.LaunchPermission{accountOf(third), everybody()}}, ami.CodeOperationNotPermitted},
		{"paid", ShareImageInput{ImageID: paid.ImageID, Add: []ami.LaunchPermission{everybody()}}, ami.CodeOperationNotPermitted},
		{"dry", ShareImageInput{ImageID: i.ImageID, Add: many[:1], DryRun: true}, ami.CodeDryRunOperation},
	} {
		_, err := r.ShareImage(t.Context(), tt.in)
		if got := ami.ErrorCode(err); got != tt.want {
			t.Errorf("%s: got %q (%v), want %q", tt.name, got, err, tt.want)
		}
	}
	for _, id := range []ami.ImageID{i.ImageID, encrypted.ImageID, paid.ImageID} { // all or none
		if p, err := r.DescribeLaunchPermissions(t.Context(), id); err != nil || len(p.LaunchPermissions) > 0 {
			t.Errorf("got %v (%v), want nobody", p, err)
		}
	}
	share(t, r, encrypted.ImageID, accountOf(third))
	share(t, r, paid.ImageID, accountOf(third))
}

func TestPublicAccess(t *testing.T) {
	t.Parallel()
	h, hand := newHouse(t), newHand()
	r := h.open(t, hand.clock)
	i := image(t, r, "base")
	state := func() AccessBlock { return get(r.ImageBlockPublicAccess(t.Context()))(t) }
	if got := state(); got != Unblocked {
		t.Errorf("got %s, want unblocked", got)
	}
	share(t, r, i.ImageID, everybody())
	launched(t, h.open(t, as(stranger)), RunInstancesInput{Image: "base"})
	now := get(r.image(t.Context(), i.ImageID))(t)
	if want := i.CreationDate.AddDate(2, 0, 0).Round(time.Minute); !now.Public || !now.DeprecationTime.Equal(want) {
		t.Errorf("got public %t, deprecated at %s, want it public until %s", now.Public, now.DeprecationTime, want)
	}
	_, err := r.DeprecateImage(t.Context(), i.ImageID, now.DeprecationTime.Add(time.Minute), false)
	wantCode(t, err, ami.CodeInvalidParameterValue)

	wantCode(t, r.SetImageBlockPublicAccess(t.Context(), "maybe", false), ami.CodeInvalidParameterValue)
	wantCode(t, r.SetImageBlockPublicAccess(t.Context(), BlockNewSharing, true), ami.CodeDryRunOperation)
	must(t, r.SetImageBlockPublicAccess(t.Context(), BlockNewSharing, false))
	if got := state(); got != BlockNewSharing {
		t.Errorf("got %s, want block-new-sharing", got)
	}
	other := image(t, r, "other")
	wantCode(t, shareErr(t, r, other.ImageID, everybody()), ami.CodeOperationNotPermitted)
	share(t, r, other.ImageID, accountOf(third)) // which is not public
	share(t, r, i.ImageID, accountOf(third))     // what is public already stays so
	its := h.open(t, as(stranger))               // another account's setting is its own
	share(t, its, image(t, its, "its").ImageID, everybody())
	must(t, r.SetImageBlockPublicAccess(t.Context(), Unblocked, false))
	for n := range maxPublic - 1 {
		share(t, r, image(t, r, fmt.Sprint("public-", n)).ImageID, everybody())
	}
	wantCode(t, shareErr(t, r, other.ImageID, everybody()), ami.CodeResourceLimitExceeded)
	must(t, r.ResetLaunchPermissions(t.Context(), i.ImageID, false))
	share(t, r, other.ImageID, everybody())
}

func TestCancelLaunchPermission(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	r := h.open(t)
	i := image(t, r, "base")
	in := func(o *Options) { o.Organizations = map[string][]string{someOrg: {stranger}} }
	o := h.open(t, as(stranger), in)
	cancel := func(r *Region) error { return r.CancelLaunchPermission(t.Context(), i.ImageID, false) }
	wantCode(t, cancel(o), ami.CodeInvalidAMIIDNotFound)
	wantCode(t, cancel(r), ami.CodeOperationNotPermitted)
	wantCode(t, o.CancelLaunchPermission(t.Context(), "ami-x", false), ami.CodeInvalidAMIIDMalformed)

	share(t, r, i.ImageID, accountOf(stranger), accountOf(third))
	wantCode(t, o.CancelLaunchPermission(t.Context(), i.ImageID, true), ami.CodeDryRunOperation)
	must(t, cancel(o))
	wantCode(t, cancel(o), ami.CodeInvalidAMIIDNotFound)
	if p, err := r.DescribeLaunchPermissions(t.Context(), i.ImageID); err != nil || len(p.LaunchPermissions) != 1 || p.LaunchPermissions[0] != accountOf(third) {
		t.Errorf("got %v (%v), want the other's", p, err)
	}
	share(t, r, i.ImageID, ami.LaunchPermission{OrganizationARN: someOrg})
	launched(t, o, RunInstancesInput{Image: "base"})
	err := cancel(o)
	wantCode(t, err, ami.CodeOperationNotPermitted)
	wantSays(t, err, someOrg)
	wantCode(t, launchErr(t, h.open(t, as(stranger)), "base"), ami.CodeInvalidAMIIDNotFound) // not in it any more
}

func TestAllowedImages(t *testing.T) {
	t.Parallel()
	h, hand := newHouse(t), newHand()
	r := h.open(t)
	web, db := image(t, r, "web-1"), image(t, r, "db-1")
	share(t, r, web.ImageID, accountOf(stranger))
	share(t, r, db.ImageID, accountOf(stranger))
	heard := &listener{}
	o := h.open(t, as(stranger), hand.clock, tellingTo(heard))
	own := image(t, o, "own")
	set := func(state AllowedState, criteria ...ImageCriterion) {
		t.Helper()
		_, err := o.SetAllowedImages(t.Context(), state, criteria, false)
		must(t, err)
	}
	names := func(filters ...Filter) (out []string) {
		t.Helper()
		for _, i := range get(o.DescribeImages(t.Context(), DescribeInput{Filters: filters}))(t) {
			out = append(out, i.Name)
		}
		return out
	}
	want := func(got []string, want ...string) {
		t.Helper()
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("got %v, want %v", got, want)
		}
	}
	is := func(v string) Filter { return Filter{Name: "image-allowed", Values: []string{v}} }
	want(names(is("true")), "web-1", "db-1", "own") // without a policy everything is
	set(AllowedAudit, ImageCriterion{ImageNames: []string{"web-*"}})
	want(names(), "web-1", "db-1", "own")
	want(names(is("true")), "web-1", "own")
	want(names(is("false")), "db-1")
	launched(t, o, RunInstancesInput{Image: "db-1"})
	if !heard.noted("not among the allowed images") {
		t.Errorf("the launch was not told of: %v", heard.notes)
	}
	set(AllowedEnabled)
	want(names(), "web-1", "own")
	launched(t, o, RunInstancesInput{Image: string(own.ImageID)})
	launched(t, o, RunInstancesInput{Image: "web-1"})
	wantCode(t, launchErr(t, o, "db-1"), ami.CodeInvalidAMIIDNotFound)
	wantCode(t, launchErr(t, o, string(db.ImageID)), ami.CodeInvalidAMIIDNotFound)
	_, err := o.DescribeImages(t.Context(), DescribeInput{IDs: []string{string(db.ImageID)}})
	wantCode(t, err, ami.CodeInvalidAMIIDNotFound)
	want(func() []string { _, err := r.image(t.Context(), db.ImageID); must(t, err); return nil }()) // to its owner it is there

	days := func(n int) *CreationCondition { return &CreationCondition{n} }
	set("", ImageCriterion{ImageProviders: []string{"none"}}, ImageCriterion{ImageProviders: []string{ami.DefaultAccount}, CreationDateCondition: days(3)})
	want(names(), "web-1", "db-1", "own")
	hand.turn(4 * 24 * time.Hour)
	want(names(), "own")
	_, err = r.DeprecateImage(t.Context(), db.ImageID, time.Now().Add(24*time.Hour), false)
	must(t, err)
	set("", ImageCriterion{DeprecationTimeCondition: &DeprecationCondition{0}})
	wantCode(t, launchErr(t, o, string(db.ImageID)), ami.CodeInvalidAMIIDNotFound)
	set("", ImageCriterion{DeprecationTimeCondition: &DeprecationCondition{30}})
	_, err = o.image(t.Context(), db.ImageID)
	must(t, err)
	set(AllowedDisabled)

	none := 1 << 20
	for _, tt := range []struct {
		state    AllowedState
		criteria []ImageCriterion
		want     ami.Code
	}{
		{"off", nil, ami.CodeInvalidParameterValue},
		{"", []ImageCriterion{{}}, ami.CodeMissingParameter},
		{"", []ImageCriterion{{ImageProviders: []string{"me"}}}, ami.CodeInvalidParameterValue},
		{"", []ImageCriterion{{ImageProviders: []string{"none", "amazon"}}}, ami.CodeInvalidParameterCombination},
		{"", []ImageCriterion{{ImageNames: []string{""}}}, ami.CodeInvalidParameterValue},
		{"", []ImageCriterion{{CreationDateCondition: days(none)}}, ami.CodeInvalidParameterValue},
		{"", make([]ImageCriterion, maxCriteria+1), ami.CodeInvalidParameterValue},
	} {
		_, err := o.SetAllowedImages(t.Context(), tt.state, tt.criteria, false)
		wantCode(t, err, tt.want)
	}
	_, err = o.SetAllowedImages(t.Context(), AllowedEnabled, nil, true)
	wantCode(t, err, ami.CodeDryRunOperation)
}

// Others launch a paravirtual image with a kernel that was shared with them, too.
func TestSharedKernel(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	r, o := h.open(t), h.open(t, as(stranger))
	k := kernel(t, r, "linux")
	pv := pvImage(t, r, image(t, r, "base"), "pv-1", PVBoot{KernelID: k})
	share(t, r, pv.ImageID, accountOf(stranger))
	wantCode(t, launchErr(t, o, "pv-1"), ami.CodeInvalidAMIIDNotFound)
	share(t, r, ami.ImageID(k), accountOf(stranger))
	launched(t, o, RunInstancesInput{Image: "pv-1"})
	_, err := r.DisableImage(t.Context(), ami.ImageID(k), false)
	wantCode(t, err, ami.CodeUnsupportedOperation)
}
