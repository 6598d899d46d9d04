package region

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/bundle"
)

func offered(t *testing.T, r *Region, code string, edit ...func(*CreateOfferInput)) ami.Offer {
	t.Helper()
	in := CreateOfferInput{ProductCode: code, Title: "Web server", HourlyPrice: "0.02", Currency: "EUR"}
	for _, e := range edit {
		e(&in)
	}
	return get(r.CreateOffer(t.Context(), in))(t)
}

func subscribed(t *testing.T, r *Region, code string) ami.Subscription {
	t.Helper()
	return get(r.Subscribe(t.Context(), code, true, false))(t)
}

// sold is an image with a product code that is shared with who might buy it.
func sold(t *testing.T, r *Region, name, code string, with ...ami.LaunchPermission) ami.Image {
	t.Helper()
	i := get(r.AddProductCodes(t.Context(), image(t, r, name).ImageID, []string{code}, false))(t)
	if len(with) > 0 {
		share(t, r, i.ImageID, with...)
	}
	return i
}

func wantCodes(t *testing.T, what string, got []ami.ProductCode, want ...string) {
	t.Helper()
	if ids := ami.ProductCodeIDs(got); !slices.Equal(ids, want) {
		t.Errorf("%s: got the product codes %v, want %v", what, ids, want)
	}
}

func TestCreateOffer(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	r := h.open(t)
	o := offered(t, r, "", func(in *CreateOfferInput) { in.HourlyPrice, in.Currency, in.Terms = "", "", "One.\r\n\tTwo.\n" })
	if len(o.ProductCode) != 25 || o.HourlyPrice != "0" || o.MonthlyPrice != "0" || o.Currency != "USD" || o.OwnerID != r.account || o.CreationTime.IsZero() {
		t.Errorf("got %+v", o)
	}
	offered(t, r, "web")
	for name, tt := range map[string]struct {
		edit func(*CreateOfferInput)
		want ami.Code
	}{
		"a code of another":  {func(in *CreateOfferInput) { in.ProductCode = "web" }, ami.CodeInvalidParameterValue},
		"no code":            {func(in *CreateOfferInput) { in.ProductCode = "a b" }, ami.CodeInvalidParameterValue},
		"a long code":        {func(in *CreateOfferInput) { in.ProductCode = strings.Repeat("x", 65) }, ami.CodeInvalidParameterValue},
		"no title":           {func(in *CreateOfferInput) { in.Title = "" }, ami.CodeMissingParameter},
		"a title of lines":   {func(in *CreateOfferInput) { in.Title = "a\nb" }, ami.CodeInvalidParameterValue},
		"a long title":       {func(in *CreateOfferInput) { in.Title = strings.Repeat("x", 256) }, ami.CodeInvalidParameterValue},
		"a price of no sort": {func(in *CreateOfferInput) { in.HourlyPrice = "cheap" }, ami.CodeInvalidParameterValue},
		"below nothing":      {func(in *CreateOfferInput) { in.MonthlyPrice = "-1" }, ami.CodeInvalidParameterValue},
		"a float":            {func(in *CreateOfferInput) { in.HourlyPrice = "1e-3" }, ami.CodeInvalidParameterValue},
		"no currency":        {func(in *CreateOfferInput) { in.Currency = "" }, ami.CodeMissingParameter},
		"another currency":   {func(in *CreateOfferInput) { in.Currency = "euro" }, ami.CodeInvalidParameterValue},
		"long terms":         {func(in *CreateOfferInput) { in.Terms = strings.Repeat("x", 64<<10+1) }, ami.CodeInvalidParameterValue},
		"no text as terms":   {func(in *CreateOfferInput) { in.Terms = "Pay.\n\x1b[2J" }, ami.CodeInvalidParameterValue},
		"a dry run":          {func(in *CreateOfferInput) { in.DryRun = true }, ami.CodeDryRunOperation},
	} {
		in := CreateOfferInput{ProductCode: "new", Title: "x", HourlyPrice: "1", Currency: "EUR"}
		tt.edit(&in)
		_, err := r.CreateOffer(t.Context(), in)
		if got := ami.ErrorCode(err); got != tt.want {
			t.Errorf("%s: got the code %q (%v), want %q", name, got, err, tt.want)
		}
	}
	o2 := h.open(t, as(stranger))
	_, err := o2.DeleteOffer(t.Context(), "web", false)
	wantCode(t, err, ami.CodeAuthFailure)
	_, err = r.DeleteOffer(t.Context(), "none", false)
	wantCode(t, err, ami.CodeInvalidParameterValue)
	_, err = r.DeleteOffer(t.Context(), "web", true)
	wantCode(t, err, ami.CodeDryRunOperation)
	get(r.DeleteOffer(t.Context(), "web", false))(t)
	_, err = r.DeleteOffer(t.Context(), "web", false)
	wantCode(t, err, ami.CodeIncorrectState)
	if all := get(o2.Offers(t.Context(), false))(t); len(all) != 1 || all[0].ProductCode != o.ProductCode {
		t.Errorf("got %+v, want the one that is offered still", all)
	}
	if all := get(o2.Offers(t.Context(), true))(t); len(all) != 2 || get(o2.Offer(t.Context(), "web"))(t).DeletionTime.IsZero() {
		t.Errorf("got %+v, want the deleted one too", all)
	}
	_, err = r.CreateOffer(t.Context(), CreateOfferInput{ProductCode: "web", Title: "again"})
	wantCode(t, err, ami.CodeInvalidParameterValue)
}

func TestSubscribe(t *testing.T) {
	t.Parallel()
	h, clock := newHouse(t), newHand()
	r := h.open(t, clock.clock)
	o := h.open(t, as(stranger), clock.clock)
	offered(t, r, "web", func(in *CreateOfferInput) { in.Terms = "Be nice." })
	i := sold(t, r, "web-1", "web", accountOf(stranger), accountOf(third))
	launched(t, r, RunInstancesInput{Image: "web-1"}) // the seller's own

	err := launchErr(t, o, string(i.ImageID))
	wantCode(t, err, ami.CodeOptInRequired)
	wantSays(t, err, "Web server")
	_, err = o.RunInstances(t.Context(), RunInstancesInput{Image: string(i.ImageID), DryRun: true})
	wantCode(t, err, ami.CodeOptInRequired)
	_, err = o.Subscribe(t.Context(), "web", false, false)
	wantCode(t, err, ami.CodeOptInRequired) // the terms
	_, err = o.Subscribe(t.Context(), "none", true, false)
	wantCode(t, err, ami.CodeInvalidParameterValue)
	_, err = r.Subscribe(t.Context(), "web", true, false)
	wantCode(t, err, ami.CodeOperationNotPermitted) // one's own
	_, err = o.Subscribe(t.Context(), "web", true, true)
	wantCode(t, err, ami.CodeDryRunOperation)
	_, err = o.Unsubscribe(t.Context(), "web", false)
	wantCode(t, err, ami.CodeInvalidParameterValue)

	s := subscribed(t, o, "web")
	clock.turn(time.Hour)
	if again := subscribed(t, o, "web"); again != s {
		t.Errorf("got %+v, want %+v", again, s)
	}
	inst := launched(t, o, RunInstancesInput{Image: string(i.ImageID)})
	wantCode(t, launchErr(t, h.open(t, as(third)), string(i.ImageID)), ami.CodeOptInRequired)
	_, err = o.Unsubscribe(t.Context(), "web", true)
	wantCode(t, err, ami.CodeDryRunOperation)
	clock.turn(-2 * time.Hour) // a clock that is set back ends nothing before it began
	gone := get(o.Unsubscribe(t.Context(), "web", false))(t)
	if !gone.CancelledAt.After(gone.SubscribedAt) {
		t.Errorf("got %+v", gone)
	}
	wantState(t, o, inst.InstanceID, ami.InstanceRunning) // and lives on
	stop(t, o, inst.InstanceID)
	get(o.StartInstances(t.Context(), []ami.InstanceID{inst.InstanceID}, false))(t)
	wantCode(t, launchErr(t, o, string(i.ImageID)), ami.CodeOptInRequired)

	if again := subscribed(t, o, "web"); again.SubscribedAt.Before(gone.CancelledAt) {
		t.Errorf("got %+v, want it after %+v", again, gone)
	}
	get(r.DeleteOffer(t.Context(), "web", false))(t)
	launched(t, o, RunInstancesInput{Image: string(i.ImageID)}) // who has subscribed stays so
	_, err = h.open(t, as(third)).Subscribe(t.Context(), "web", true, false)
	wantCode(t, err, ami.CodeIncorrectState)
	for _, tt := range []struct {
		r    *Region
		in   SubscriptionsInput
		want int
	}{
		{o, SubscriptionsInput{}, 1},
		{o, SubscriptionsInput{Cancelled: true}, 2},
		{o, SubscriptionsInput{Sold: true}, 0},
		{r, SubscriptionsInput{Cancelled: true}, 0},
		{r, SubscriptionsInput{Sold: true}, 1},
		{r, SubscriptionsInput{Sold: true, Cancelled: true}, 2},
	} {
		if got := get(tt.r.Subscriptions(t.Context(), tt.in))(t); len(got) != tt.want {
			t.Errorf("%s, %+v: got %+v, want %d", tt.r.account, tt.in, got, tt.want)
		}
	}
}

func TestAddProductCodes(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	r := h.open(t)
	o := h.open(t, as(stranger))
	offered(t, r, "web")
	offered(t, o, "theirs")
	get(r.DeleteOffer(t.Context(), offered(t, r, "old").ProductCode, false))(t)
	i, public := image(t, r, "base"), image(t, r, "public")
	share(t, r, public.ImageID, everybody())
	off := image(t, r, "off")
	get(r.DisableImage(t.Context(), off.ImageID, false))(t)
	for name, tt := range map[string]struct {
		id   ami.ImageID
		code string
		want ami.Code
	}{
		"nobody's":       {i.ImageID, "none", ami.CodeInvalidParameterValue},
		"another's":      {i.ImageID, "theirs", ami.CodeAuthFailure},
		"deleted":        {i.ImageID, "old", ami.CodeIncorrectState},
		"a public image": {public.ImageID, "web", ami.CodeOperationNotPermitted},
		"a disabled one": {off.ImageID, "web", ami.CodeIncorrectState},
		"a kernel":       {ami.ImageID(kernel(t, r, "linux")), "web", ami.CodeUnsupportedOperation},
		"no image":       {ami.NewImageID(), "web", ami.CodeInvalidAMIIDNotFound},
	} {
		_, err := r.AddProductCodes(t.Context(), tt.id, []string{tt.code}, false)
		if got := ami.ErrorCode(err); got != tt.want {
			t.Errorf("%s: got the code %q (%v), want %q", name, got, err, tt.want)
		}
	}
	_, err := r.AddProductCodes(t.Context(), i.ImageID, []string{"web"}, true)
	wantCode(t, err, ami.CodeDryRunOperation)
	get(r.AddProductCodes(t.Context(), i.ImageID, []string{"web"}, false))(t)
	wantCodes(t, "twice", get(r.AddProductCodes(t.Context(), i.ImageID, []string{"web"}, false))(t).ProductCodes, "web")
	wantCode(t, shareErr(t, r, i.ImageID, everybody()), ami.CodeOperationNotPermitted)
	if got := found(t, r, DescribeInput{Filters: []Filter{filter("product-code", "w*")}}); !slices.Equal(got, []string{"base"}) {
		t.Errorf("got %v by its product code, want base", got)
	}
}

// Product codes go with all that is made of what has them.
func TestProductCodesTravel(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	r, o := h.open(t), h.open(t, as(stranger))
	offered(t, r, "web")
	i := sold(t, r, "web-1", "web", accountOf(stranger))
	subscribed(t, o, "web")
	ctx := t.Context()
	inst := launched(t, o, RunInstancesInput{Image: string(i.ImageID)})
	wantCodes(t, "the instance", inst.ProductCodes, "web")
	if md := get(o.Metadata(ctx, inst.InstanceID))(t); !slices.Equal(md.ProductCodes, []string{"web"}) || !strings.Contains(md.Identity.Document, `"web"`) {
		t.Errorf("got the metadata %v, %s", md.ProductCodes, md.Identity.Document)
	}
	for _, f := range []Filter{filter("product-code", "w?b"), filter("product-code.type", "marketplace")} {
		if all := get(o.DescribeInstances(ctx, DescribeInput{Filters: []Filter{f}}))(t); len(all) != 1 {
			t.Errorf("%s: got %d instances, want 1", f.Name, len(all))
		}
	}
	if all := get(o.DescribeInstances(ctx, DescribeInput{Filters: []Filter{filter("product-code", "x")}}))(t); len(all) != 0 {
		t.Errorf("got %d instances with a product code that none has", len(all))
	}
	vol := get(o.volume(ctx, inst.BlockDeviceMappings[0].Ebs.VolumeID))(t)
	wantCodes(t, "its volume", vol.ProductCodes, "web")
	next := get(o.CreateImage(ctx, CreateImageInput{InstanceID: inst.InstanceID, Name: "next"}))(t)
	wantCodes(t, "an image of it", next.ProductCodes, "web")
	wantCodes(t, "its snapshot", described(t, o, rootSnapshot(next)).ProductCodes, "web")
	snap := get(o.CreateSnapshot(ctx, CreateSnapshotInput{VolumeID: vol.VolumeID}))(t)
	wantCodes(t, "a snapshot", snap.ProductCodes, "web")
	twin := get(o.CopySnapshot(ctx, CopySnapshotInput{SnapshotID: snap.SnapshotID}))(t)
	wantCodes(t, "its copy", twin.ProductCodes, "web")
	wantCodes(t, "an image of that", registered(t, o, twin.SnapshotID).ProductCodes, "web")
	plain := image(t, o, "plain")
	wantCodes(t, "an image with it", get(o.CreateImage(ctx, CreateImageInput{
		InstanceID: launched(t, o, RunInstancesInput{Image: "plain"}).InstanceID, Name: "with",
		BlockDeviceMappings: []ami.BlockDeviceMapping{{DeviceName: "/dev/sdf", Ebs: &ami.EBSBlockDevice{SnapshotID: snap.SnapshotID}}},
	}))(t).ProductCodes, "web")
	b := get(o.BundleInstance(ctx, BundleInstanceInput{BundleSpec: BundleSpec{Location: "images/web", NoFilter: true}, InstanceID: inst.InstanceID}))(t)
	if !slices.Equal(b.Manifest.ProductCodes, []string{"web"}) {
		t.Errorf("a bundle: got the product codes %v", b.Manifest.ProductCodes)
	}
	ofIt := get(o.RegisterImage(ctx, ofBundle("web")))(t)
	if len(ofIt.ProductCodes) != 1 || ofIt.ProductCodes[0] != (ami.ProductCode{ID: "web", Type: ami.MarketplaceCode}) {
		t.Errorf("an image of it: got %v", ofIt.ProductCodes)
	}

	// To another region, and to a file: what is one's own goes, with its codes, and is
	// launched where it is offered.
	h.region(t, "lab-1", "")
	lab := h.open(t, as(stranger), inRegion("lab-1"))
	_, err := h.copied(t, "lab-1", CopyImageInput{SourceRegion: DefaultRegion, SourceImageID: "web-1", Name: "web-1"}, as(stranger))
	wantCode(t, err, ami.CodeOperationNotPermitted)
	get(h.copied(t, "lab-1", CopyImageInput{SourceRegion: DefaultRegion, SourceImageID: "next", Name: "next"}, as(stranger)))(t)
	copied := get(lab.ResolveImage(ctx, "next", false))(t)
	wantCodes(t, "a copy", copied.ProductCodes, "web")
	wantCodes(t, "its snapshot", described(t, lab, rootSnapshot(copied)).ProductCodes, "web")
	wantCode(t, launchErr(t, lab, "next"), ami.CodeOptInRequired)
	file := filepath.Join(t.TempDir(), "next.bin")
	get(o.StoreImage(ctx, StoreImageInput{Image: "next", To: file}))(t)
	get(lab.RestoreStoredImage(ctx, RestoreImageInput{From: file, Name: "restored"}))(t)
	wantCode(t, launchErr(t, lab, "restored"), ami.CodeOptInRequired)
	offered(t, h.open(t, inRegion("lab-1")), "web")
	subscribed(t, lab, "web")
	launched(t, lab, RunInstancesInput{Image: "restored"})

	// As a file without a record it goes to nobody but who sells it.
	raw := filepath.Join(t.TempDir(), "out.raw")
	wantCode(t, o.ExportSnapshot(ctx, ExportInput{SnapshotID: snap.SnapshotID, Path: raw}), ami.CodeOperationNotPermitted)
	_, err = o.ExportImage(ctx, ExportImageInput{Image: "next", Path: raw})
	wantCode(t, err, ami.CodeOperationNotPermitted)
	get(r.ExportImage(ctx, ExportImageInput{Image: "web-1", Path: raw}))(t)

	// By a volume, a mapping or a root they come to instances of other images.
	get(o.Unsubscribe(ctx, "web", false))(t)
	data := get(o.CreateVolume(ctx, CreateVolumeInput{SnapshotID: snap.SnapshotID}))(t)
	wantCodes(t, "a volume", data.ProductCodes, "web")
	other := launched(t, o, RunInstancesInput{Image: string(plain.ImageID)})
	mapped := RunInstancesInput{Image: string(plain.ImageID), BlockDeviceMappings: []ami.BlockDeviceMapping{{DeviceName: "/dev/sdf", Ebs: &ami.EBSBlockDevice{SnapshotID: snap.SnapshotID}}}}
	_, err = o.RunInstances(ctx, mapped)
	wantCode(t, err, ami.CodeOptInRequired)
	root := ReplaceRootInput{InstanceID: other.InstanceID, SnapshotID: snap.SnapshotID}
	_, err = o.ReplaceRootVolume(ctx, root)
	wantCode(t, err, ami.CodeOptInRequired)
	get(o.ReplaceRootVolume(ctx, ReplaceRootInput{InstanceID: inst.InstanceID}))(t) // its own again
	wantCode(t, attachErr(t, o, data.VolumeID, other.InstanceID), ami.CodeIncorrectInstanceState)
	stop(t, o, other.InstanceID)
	wantCode(t, attachErr(t, o, data.VolumeID, other.InstanceID), ami.CodeOptInRequired)
	subscribed(t, o, "web")
	must(t, attachErr(t, o, data.VolumeID, other.InstanceID))
	wantCodes(t, "what it is attached to", get(o.instance(ctx, other.InstanceID))(t).ProductCodes, "web")
	wantCodes(t, "what it is mapped to", launched(t, o, mapped).ProductCodes, "web")
	third := launched(t, o, RunInstancesInput{Image: string(plain.ImageID)})
	root.InstanceID = third.InstanceID
	get(o.ReplaceRootVolume(ctx, root))(t)
	wantCodes(t, "what has it as its root", get(o.instance(ctx, third.InstanceID))(t).ProductCodes, "web")
}

// What the bundles of old carry is a mark as long as nobody offers it.
func TestDevpayCodes(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	r := h.open(t)
	bundled(t, r, "web", func(_ *BundleSpec, m *bundle.Manifest) { m.ProductCodes = []string{"774F4FF8"} })
	i := get(r.RegisterImage(t.Context(), ofBundle("web")))(t)
	launched(t, r, RunInstancesInput{Image: string(i.ImageID)})
	offered(t, h.open(t, as(stranger)), "774F4FF8")
	wantCode(t, launchErr(t, r, string(i.ImageID)), ami.CodeOptInRequired)
}
