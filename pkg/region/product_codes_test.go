package region

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/kamivm/kami/pkg/ami"
)

// aBuyer is a seller of "web", who has subscribed to it, and an instance of his.
func aBuyer(t *testing.T) (h *house, seller, buyer *Region, inst ami.Instance) {
	t.Helper()
	h = newHouse(t)
	seller, buyer = h.open(t), h.open(t, as(stranger))
	offered(t, seller, "web")
	i := sold(t, seller, "web-1", "web", accountOf(stranger))
	subscribed(t, buyer, "web")
	return h, seller, buyer, launched(t, buyer, RunInstancesInput{Image: string(i.ImageID)})
}

// snapshotted is a snapshot of an instance's root.
func snapshotted(t *testing.T, r *Region, inst ami.Instance) ami.Snapshot {
	t.Helper()
	return get(r.CreateSnapshot(t.Context(), CreateSnapshotInput{VolumeID: inst.BlockDeviceMappings[0].Ebs.VolumeID}))(t)
}

// By blocks, a snapshot that is sold is no more to be had than as a file, and what is
// put over it is sold as well.
func TestProductCodesOfBlocks(t *testing.T) {
	t.Parallel()
	_, seller, buyer, inst := aBuyer(t)
	ctx := t.Context()
	snap := snapshotted(t, buyer, inst)
	get(buyer.ListSnapshotBlocks(ctx, snap.SnapshotID, BlocksInput{}))(t)
	_, _, err := buyer.GetSnapshotBlock(ctx, snap.SnapshotID, 0, Checksum{})
	wantCode(t, err, ami.CodeOperationNotPermitted)
	delta := completeWith(t, buyer, start(t, buyer, over(snap.SnapshotID)), marks{1: 1})
	wantCodes(t, "a snapshot over it", delta.ProductCodes, "web")
	wantCodes(t, "its record", described(t, buyer, delta.SnapshotID).ProductCodes, "web")
	_, _, err = buyer.GetSnapshotBlock(ctx, delta.SnapshotID, 0, Checksum{})
	wantCode(t, err, ami.CodeOperationNotPermitted)
	own := snapshotted(t, seller, launched(t, seller, RunInstancesInput{Image: "web-1"}))
	wantCodes(t, "the seller's own", own.ProductCodes, "web")
	get2(seller.GetSnapshotBlock(ctx, own.SnapshotID, 0, Checksum{}))(t)
}

// A bundle keeps its product codes in either format, and is unpacked by the seller alone.
func TestProductCodesOfBundles(t *testing.T) {
	t.Parallel()
	_, seller, buyer, inst := aBuyer(t)
	ctx := t.Context()
	out := filepath.Join(t.TempDir(), "out.raw")
	get(buyer.BundleInstance(ctx, BundleInstanceInput{BundleSpec: BundleSpec{Location: "images/web", NoFilter: true}, InstanceID: inst.InstanceID}))(t)
	unpack := UnpackBundleInput{BundleRef: BundleRef{Location: "images/web"}, Path: out}
	wantCode(t, buyer.UnpackBundle(ctx, unpack), ami.CodeOperationNotPermitted)
	must(t, seller.UnpackBundle(ctx, unpack))
	must(t, os.Remove(out))

	next := get(buyer.CreateImage(ctx, CreateImageInput{InstanceID: inst.InstanceID, Name: "next"}))(t)
	for _, source := range []string{string(next.ImageID), string(rootSnapshot(next)), "images/web"} {
		old := ReadEC2Input{From: t.TempDir(), Manifest: "old.manifest.xml"}
		b := get(buyer.ExportEC2Bundle(ctx, ExportEC2Input{Source: source, To: old.From, Prefix: "old", ProductCodes: []string{"web", "more"}}))(t)
		if want := []string{"web", "more"}; !slices.Equal(b.ProductCodes, want) {
			t.Errorf("%s: got the product codes %v, want %v", source, b.ProductCodes, want)
		}
		wantCode(t, second(buyer.UnpackEC2Bundle(ctx, UnpackEC2Input{ReadEC2Input: old, File: out})), ami.CodeOperationNotPermitted)
		in := ImportEC2Input{ReadEC2Input: old, BundleSpec: BundleSpec{Location: "back/" + filepath.Base(source), ProductCodes: []string{"other"}}}
		back := get(buyer.ImportEC2Bundle(ctx, in))(t)
		if want := []string{"web", "more", "other"}; !slices.Equal(back.Manifest.ProductCodes, want) {
			t.Errorf("%s, imported: got the product codes %v, want %v", source, back.Manifest.ProductCodes, want)
		}
	}
	if _, err := os.Lstat(out); err == nil {
		t.Error("something was unpacked")
	}
}

// Codes that the seller has put to an image alone are on the snapshots of its copies.
func TestProductCodesOfCopies(t *testing.T) {
	t.Parallel()
	h, seller, buyer, _ := aBuyer(t)
	ctx := t.Context()
	file := filepath.Join(t.TempDir(), "web.bin")
	get(seller.StoreImage(ctx, StoreImageInput{Image: "web-1", To: file}))(t)
	restored := get(buyer.RestoreStoredImage(ctx, RestoreImageInput{From: file, Name: "mine"}))(t)
	i := get(buyer.image(ctx, restored.ImageID))(t)
	wantCodes(t, "the restored image", i.ProductCodes, "web")
	wantCodes(t, "an image over its snapshot", registered(t, buyer, rootSnapshot(i)).ProductCodes, "web")
	_, err := buyer.ExportImage(ctx, ExportImageInput{Image: "mine", Path: filepath.Join(t.TempDir(), "out.raw")})
	wantCode(t, err, ami.CodeOperationNotPermitted)
	get(h.copied(t, DefaultRegion, CopyImageInput{SourceImageID: "web-1", Name: "web-2"}))(t)
	get(seller.ExportImage(ctx, ExportImageInput{Image: "web-2", Path: filepath.Join(t.TempDir(), "out.raw")}))(t)
}

// A bundle's image is sold as what it maps is, and not public.
func TestProductCodesOfABundlesMapping(t *testing.T) {
	t.Parallel()
	_, _, buyer, inst := aBuyer(t)
	snap := snapshotted(t, buyer, inst)
	bundled(t, buyer, "plain")
	in := ofBundle("plain")
	in.BlockDeviceMappings = mapping(t, "/dev/sdf="+string(snap.SnapshotID))
	i := get(buyer.RegisterImage(t.Context(), in))(t)
	wantCodes(t, "the image", i.ProductCodes, "web")
	wantCode(t, shareErr(t, buyer, i.ImageID, everybody()), ami.CodeOperationNotPermitted)
}

// A code that is put to an image while a launch of it is under way is paid for, and
// so is a subscription that has ended by then.
func TestProductCodesMeanwhile(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	r, o := h.open(t), h.open(t, as(stranger))
	ctx := t.Context()
	offered(t, r, "web")
	i := image(t, r, "web-1")
	share(t, r, i.ImageID, accountOf(stranger))
	root := stopped(t, o)
	planned := func(r *Region) func() (ami.Instance, error) {
		seen := get(r.image(ctx, i.ImageID))(t)
		proto, mapping, err := r.plan(ctx, seen, RunInstancesInput{InstanceType: "t3.micro"})
		must(t, err)
		driver := get(r.driver(ctx, ""))(t)
		proto.Driver, proto.Connect, proto.Accel = driver.Name(), driver.URI(), "tcg"
		return func() (ami.Instance, error) { return r.runOne(ctx, proto, seen, mapping, RunInstancesInput{}) }
	}
	sellers, others := planned(r), planned(o)
	replace := ReplaceRootInput{InstanceID: root.InstanceID, ImageID: i.ImageID}
	snap := get(o.rootSnapshot(ctx, root, replace))(t)
	get(r.AddProductCodes(ctx, i.ImageID, []string{"web"}, false))(t)

	_, err := others()
	wantCode(t, err, ami.CodeOptInRequired)
	_, _, err = o.swapRoot(ctx, get(o.instanceRecord(ctx, root.InstanceID))(t), snap, replace)
	wantCode(t, err, ami.CodeOptInRequired)
	inst := get(sellers())(t)
	wantCodes(t, "the instance", get(r.instance(ctx, inst.InstanceID))(t).ProductCodes, "web")
	wantCodes(t, "its volume", volumeOf(t, r, inst, "/dev/sda1").ProductCodes, "web")

	subscribed(t, o, "web")
	others = planned(o)
	get(o.Unsubscribe(ctx, "web", false))(t)
	_, err = others()
	wantCode(t, err, ami.CodeOptInRequired)
	if all := get(o.DescribeInstances(ctx, DescribeInput{}))(t); len(all) != 1 {
		t.Errorf("got %d instances, want no other than there was", len(all))
	}
}
