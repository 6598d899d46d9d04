package region

import (
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
)

func inRegion(name string) func(*Options) { return func(o *Options) { o.Name = name } }

// copied copies an image to a region of a house.
func (h *house) copied(t *testing.T, to string, in CopyImageInput, edit ...func(*Options)) (CopiedImage, error) {
	t.Helper()
	opts := h.options()
	opts.Name = to
	for _, e := range edit {
		e(&opts)
	}
	return CopyImage(t.Context(), opts, in)
}

// region makes a region in a house.
func (h *house) region(t *testing.T, name, at string) {
	t.Helper()
	get(CreateAt(t.Context(), h.home, name, at, false))(t)
}

// twoLayers is an image, and one that stands on it with a block changed.
func twoLayers(t *testing.T, r *Region) (base, child ami.Image) {
	t.Helper()
	parent := completeWith(t, r, start(t, r), marks{0: 9, 7: 9})
	return registered(t, r, parent.SnapshotID), registered(t, r, completeWith(t, r, start(t, r, over(parent.SnapshotID)), marks{1: 5, 7: 0}).SnapshotID)
}

// wantMarks checks what an image's root has in its blocks.
func wantMarks(t *testing.T, r *Region, id ami.ImageID, want marks) {
	t.Helper()
	image := get(r.ResolveImage(t.Context(), string(id), false))(t)
	for i, mark := range want {
		data, _ := get2(r.GetSnapshotBlock(t.Context(), rootSnapshot(image), i, Checksum{}))(t)
		if data[0] != mark {
			t.Errorf("%s: block %d has the mark %d, want %d", id, i, data[0], mark)
		}
	}
	wantSound(t, r)
}

// wantSound checks that all of a region is well, and that nobody is at work in it.
func wantSound(t *testing.T, r *Region) {
	t.Helper()
	for _, v := range get(r.VerifyStore(t.Context(), VerifyInput{}))(t).Results {
		if !v.OK {
			t.Errorf("%+v is not well", v)
		}
	}
	must(t, r.catalog.View(t.Context(), func(tx *catalog.Tx) error {
		leases, err := tx.Leases()
		if len(leases) > 0 {
			t.Errorf("got the leases %v, want none", leases)
		}
		return err
	}))
}

// wantNone checks that nothing came of a copy.
func wantNone(t *testing.T, r *Region) {
	t.Helper()
	images, snaps := get(r.DescribeImages(t.Context(), DescribeInput{}))(t), get(r.DescribeSnapshots(t.Context(), DescribeInput{}))(t)
	if len(images)+len(snaps) > 0 {
		t.Errorf("got the images %v and snapshots %v, want none", images, snaps)
	}
	wantSound(t, r)
}

func TestCopyImageBetweenRegions(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	r := h.open(t)
	base, child := twoLayers(t, r)
	h.region(t, "lab-1", "")
	first := get(h.copied(t, "lab-1", CopyImageInput{SourceRegion: DefaultRegion, SourceImageID: string(base.ImageID), Name: "base"}))(t)
	if first.LayersCopied != 1 || first.LayersShared != 0 {
		t.Errorf("got %+v, want one layer copied", first)
	}
	// Of the second only what changed is read.
	told := &listener{}
	second := get(h.copied(t, "lab-1", CopyImageInput{
		SourceRegion: DefaultRegion, SourceImageID: string(child.ImageID), Name: "child", Tags: []ami.Tag{{Key: "a", Value: "b"}},
	}, tellingTo(told)))(t)
	reads := slices.DeleteFunc(told.steps, func(s string) bool { return !strings.HasPrefix(s, "copying ") })
	if second.LayersCopied != 1 || second.LayersShared != 1 || len(reads) != 1 {
		t.Errorf("got %+v and the steps %q, want one layer copied", second, told.steps)
	}
	// What it came from may go.
	for _, i := range []ami.Image{base, child} {
		get(r.DeregisterImage(t.Context(), i.ImageID, true, false))(t)
	}
	get(r.CollectGarbage(t.Context(), false))(t)
	lab := h.open(t, inRegion("lab-1"))
	wantMarks(t, lab, first.ImageID, marks{0: 9, 1: 0, 7: 9})
	wantMarks(t, lab, second.ImageID, marks{0: 9, 1: 5, 7: 0})
	got := get(lab.ResolveImage(t.Context(), "child", false))(t)
	if got.SourceImageID != child.ImageID || got.SourceImageRegion != DefaultRegion || got.State != ami.ImageAvailable || len(got.Tags) != 1 ||
		!strings.HasPrefix(got.Description, "[Copied "+string(child.ImageID)+" from local-1]") || got.RootDeviceName != child.RootDeviceName {
		t.Errorf("got %+v", got)
	}
	// Within one region a copy costs nothing.
	again := get(h.copied(t, "lab-1", CopyImageInput{SourceImageID: "child", Name: "child-2"}))(t)
	if again.MovedBytes != 0 || again.LayersCopied != 0 || again.SourceRegion != "lab-1" {
		t.Errorf("got %+v, want nothing moved", again)
	}
	wantSound(t, r)
}

// The same content in another file is known by its digest, and what stands on it is
// written over that one.
func TestCopyImageOverAnotherFile(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	r := h.open(t)
	h.region(t, "lab-1", "")
	base, child := twoLayers(t, r)
	lab := h.open(t, inRegion("lab-1"))
	other := completeWith(t, lab, start(t, lab), marks{0: 1})
	other = completeWith(t, lab, start(t, lab, over(other.SnapshotID)), marks{0: 9, 7: 9}) // two layers where the source has one
	if b := described(t, r, rootSnapshot(base)); b.ContentDigest != other.ContentDigest || b.Layer == other.Layer {
		t.Fatalf("got %v and %v, want the same content in two files", b, other)
	}
	done := get(h.copied(t, "lab-1", CopyImageInput{SourceRegion: DefaultRegion, SourceImageID: string(child.ImageID), Name: "child"}))(t)
	if done.LayersShared != 1 || done.LayersCopied != 1 {
		t.Errorf("got %+v, want one layer shared", done)
	}
	wantMarks(t, lab, done.ImageID, marks{0: 9, 1: 5, 7: 0})
}

func TestCopyImageRefuses(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	r := h.open(t)
	img := image(t, r, "base")
	h.region(t, "lab-1", "")
	h.region(t, "far-1", "file://"+t.TempDir())
	h.region(t, "far-2", "file://"+t.TempDir())
	mine := func(o *Options) { o.Account = stranger }
	for _, tt := range []struct {
		name string
		to   string
		edit func(*CopyImageInput)
		as   []func(*Options)
		want ami.Code
	}{
		{"no name", "lab-1", func(in *CopyImageInput) { in.Name = "" }, nil, ami.CodeMissingParameter},
		{"a bad name", "lab-1", func(in *CopyImageInput) { in.Name = "a" }, nil, ami.CodeInvalidAMINameMalformed},
		{"a used name", DefaultRegion, func(in *CopyImageInput) { in.Name = "base" }, nil, ami.CodeInvalidAMINameDuplicate},
		{"no image", "lab-1", func(in *CopyImageInput) { in.SourceImageID = "" }, nil, ami.CodeMissingParameter},
		{"another image", "lab-1", func(in *CopyImageInput) { in.SourceImageID = string(ami.NewImageID()) }, nil, ami.CodeInvalidAMIIDNotFound},
		{"another region", "lab-1", func(in *CopyImageInput) { in.SourceRegion = "lab-2" }, nil, ami.CodeInvalidParameterValue},
		{"somebody else's", "lab-1", func(*CopyImageInput) {}, []func(*Options){mine}, ami.CodeInvalidAMIIDNotFound},
		{"a long description", "lab-1", func(in *CopyImageInput) { in.Description = strings.Repeat("x", 256) }, nil, ami.CodeInvalidParameterValue},
		{"a key without encryption", "lab-1", func(in *CopyImageInput) { in.KmsKeyID = "alias/x" }, nil, ami.CodeInvalidParameterDependency},
		{"a key that is not there", "lab-1", func(in *CopyImageInput) { in.KmsKeyID, in.Encrypted = "alias/x", true }, nil, ami.CodeKMSNotFound},
		{"a tag of Amazon's", "lab-1", func(in *CopyImageInput) { in.Tags = []ami.Tag{{Key: "aws:x"}} }, nil, ami.CodeInvalidTagKeyMalformed},
		{"far to far", "far-1", func(in *CopyImageInput) { in.SourceRegion = "far-2" }, nil, ami.CodeUnsupportedOperation},
		{"encrypted and far", "far-1", func(in *CopyImageInput) { in.Encrypted = true }, nil, ami.CodeUnsupportedOperation},
		{"not there and far", "far-1", func(in *CopyImageInput) { in.SourceImageID = "none" }, nil, ami.CodeInvalidAMIIDNotFound},
		{"from where it is not", "lab-1", func(in *CopyImageInput) { in.SourceRegion = "far-2" }, nil, ami.CodeInvalidAMIIDNotFound},
		{"dry", "lab-1", func(in *CopyImageInput) { in.DryRun = true }, nil, ami.CodeDryRunOperation},
		{"dry and far", "far-1", func(in *CopyImageInput) { in.DryRun = true }, nil, ami.CodeDryRunOperation},
	} {
		t.Run(tt.name, func(t *testing.T) {
			in := CopyImageInput{SourceRegion: DefaultRegion, SourceImageID: string(img.ImageID), Name: "copy"}
			tt.edit(&in)
			_, err := h.copied(t, tt.to, in, tt.as...)
			wantCode(t, err, tt.want)
		})
	}
	wantNone(t, h.open(t, inRegion("lab-1")))
	if _, err := Open(t.Context(), Options{Home: h.home, Name: "far-1"}); ami.ErrorCode(err) != ami.CodeUnsupportedOperation {
		t.Errorf("got %v, want that it only keeps images", err)
	}
}

// Launch permissions stay behind, and tags come where they are asked for and the
// caller's.
func TestCopyImageOfAnother(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	r := h.open(t)
	img := image(t, r, "base")
	img.Tags = []ami.Tag{{Key: "team", Value: "a"}}
	img.SetLaunchPermissions([]ami.LaunchPermission{{Group: ami.GroupAll}})
	must(t, r.catalog.Update(t.Context(), func(tx *catalog.Tx) error { return tx.PutImage(img) }))
	h.region(t, "lab-1", "")
	for _, tt := range []struct {
		as   string
		tags bool
		want int
	}{{ami.DefaultAccount, true, 1}, {ami.DefaultAccount, false, 0}, {stranger, true, 0}} {
		done := get(h.copied(t, "lab-1", CopyImageInput{SourceRegion: DefaultRegion, SourceImageID: string(img.ImageID), Name: "copy-" + tt.as + string(ami.NewImageID()), CopyImageTags: tt.tags}, as(tt.as)))(t)
		got := get(h.open(t, inRegion("lab-1"), as(tt.as)).ResolveImage(t.Context(), string(done.ImageID), false))(t)
		if len(got.Tags) != tt.want || got.Public || got.OwnerID != tt.as {
			t.Errorf("got %+v, want it owned by %s with %d tags and not public", got, tt.as, tt.want)
		}
	}
}

func TestCopyImageEncrypted(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	r := h.open(t)
	_, child := twoLayers(t, r)
	h.region(t, "lab-1", "")
	lab := h.open(t, inRegion("lab-1"))
	check := func(to *Region, done CopiedImage) ami.Snapshot {
		t.Helper()
		wantMarks(t, to, done.ImageID, marks{0: 9, 1: 5, 7: 0})
		img := get(to.ResolveImage(t.Context(), string(done.ImageID), false))(t)
		s := described(t, to, rootSnapshot(img))
		if e := img.BlockDeviceMappings[0].Ebs.Encrypted; !s.Encrypted || s.KmsKeyID == "" || e == nil || !*e {
			t.Errorf("got %+v, want it encrypted", s)
		}
		return s
	}
	in := CopyImageInput{SourceRegion: DefaultRegion, SourceImageID: string(child.ImageID), Name: "secret", Encrypted: true}
	here := check(r, get(h.copied(t, DefaultRegion, in))(t))
	there := check(lab, get(h.copied(t, "lab-1", in))(t))
	if here.KmsKeyID == there.KmsKeyID {
		t.Errorf("two regions have the key %s", here.KmsKeyID)
	}
	// What is encrypted stays so: here with its key, at no cost, there by another.
	in = CopyImageInput{SourceRegion: DefaultRegion, SourceImageID: "secret", Name: "secret-2"}
	same := get(h.copied(t, DefaultRegion, in))(t)
	if s := check(r, same); s.KmsKeyID != here.KmsKeyID || same.MovedBytes != 0 {
		t.Errorf("got %+v with %s, want nothing moved with %s", same, s.KmsKeyID, here.KmsKeyID)
	}
	if s := check(lab, get(h.copied(t, "lab-1", in))(t)); s.KmsKeyID != there.KmsKeyID {
		t.Errorf("got the key %s, want %s", s.KmsKeyID, there.KmsKeyID)
	}
	h.region(t, "far-1", "file://"+t.TempDir())
	_, err := h.copied(t, "far-1", in)
	wantCode(t, err, ami.CodeUnsupportedOperation)
	// From a store without keys it can be encrypted on arrival.
	get(h.copied(t, "far-1", CopyImageInput{SourceRegion: DefaultRegion, SourceImageID: string(child.ImageID), Name: "plain"}))(t)
	check(lab, get(h.copied(t, "lab-1", CopyImageInput{SourceRegion: "far-1", SourceImageID: "plain", Name: "sealed", Encrypted: true}))(t))
}

func TestCopyImageOnce(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	r := h.open(t)
	img := image(t, r, "base")
	h.region(t, "lab-1", "")
	h.region(t, "far-1", "file://"+t.TempDir())
	for _, to := range []string{"lab-1", "far-1"} {
		in := CopyImageInput{SourceRegion: DefaultRegion, SourceImageID: string(img.ImageID), Name: "copy", ClientToken: "one"}
		first := get(h.copied(t, to, in))(t)
		again := get(h.copied(t, to, in))(t)
		if again.ImageID != first.ImageID || again.SourceImageID != img.ImageID {
			t.Errorf("%s: got %+v again, want %s", to, again, first.ImageID)
		}
		if to == "lab-1" { // and while it is out of use
			get(h.open(t, inRegion(to)).DisableImage(t.Context(), first.ImageID, false))(t)
			if again := get(h.copied(t, to, in))(t); again.ImageID != first.ImageID {
				t.Errorf("%s: got %+v once more, want %s, which is disabled", to, again, first.ImageID)
			}
		}
		in.Name = "other"
		_, err := h.copied(t, to, in)
		wantCode(t, err, ami.CodeIdempotentParameterMismatch)
		// One that was retired is made again.
		if to == "far-1" {
			get(DeregisterRemoteImage(t.Context(), Options{Home: h.home, Name: to}, string(first.ImageID), false))(t)
		} else {
			get(h.open(t, inRegion(to)).DeregisterImage(t.Context(), first.ImageID, true, false))(t)
		}
		if third := get(h.copied(t, to, in))(t); third.ImageID == first.ImageID {
			t.Errorf("%s: got %s, which is retired", to, third.ImageID)
		}
	}
}

// The source may be deleted while it is copied.
func TestCopyImageOfWhatGoes(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	r := h.open(t)
	base, child := twoLayers(t, r)
	h.region(t, "lab-1", "")
	gone := false
	told := &listener{onStep: func(name string) {
		if gone || !strings.HasPrefix(name, "copying ") {
			return
		}
		gone = true
		for _, i := range []ami.Image{base, child} {
			get(r.DeregisterImage(t.Context(), i.ImageID, true, false))(t)
		}
		get(r.CollectGarbage(t.Context(), false))(t)
	}}
	done := get(h.copied(t, "lab-1", CopyImageInput{SourceRegion: DefaultRegion, SourceImageID: string(child.ImageID), Name: "child"}, tellingTo(told)))(t)
	wantMarks(t, h.open(t, inRegion("lab-1")), done.ImageID, marks{0: 9, 1: 5, 7: 0})
	wantNone(t, h.open(t))
}

// A damaged source gives no copy.
func TestCopyImageDamaged(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	r := h.open(t)
	img := image(t, r, "base")
	h.region(t, "lab-1", "")
	h.region(t, "far-1", "file://"+t.TempDir())
	path := get(r.layers.Chain(described(t, r, rootSnapshot(img)).Layer))(t)[0]
	must(t, os.Chmod(path, 0o600))
	f := get(os.OpenFile(path, os.O_RDWR, 0))(t)
	st := get(f.Stat())(t)
	get(f.WriteAt([]byte{0xff, 0xff}, st.Size()-20))(t)
	must(t, f.Close())
	_, err := h.copied(t, "lab-1", CopyImageInput{SourceRegion: DefaultRegion, SourceImageID: "base", Name: "copy"})
	wantSays(t, err, "damaged layer")
	wantNone(t, h.open(t, inRegion("lab-1")))
	_, err = r.StoreImage(t.Context(), StoreImageInput{Image: "base", To: t.TempDir()})
	wantSays(t, err, "damaged layer")
}

// A region may lie in another folder, also in that of another home.
func TestRegionElsewhere(t *testing.T) {
	t.Parallel()
	h, other := newHouse(t), newHouse(t)
	h.region(t, "disk-2", filepath.Join(t.TempDir(), "new"))
	img := image(t, other.open(t), "theirs")
	h.region(t, "theirs-1", filepath.Join(other.home, "regions", DefaultRegion))
	done := get(h.copied(t, "disk-2", CopyImageInput{SourceRegion: "theirs-1", SourceImageID: string(img.ImageID), Name: "copy"}))(t)
	if got := get(h.open(t, inRegion("disk-2")).ResolveImage(t.Context(), "copy", false))(t); got.ImageID != done.ImageID {
		t.Errorf("got %s, want %s", got.ImageID, done.ImageID)
	}
	var names []string
	for _, i := range get(List(t.Context(), h.home))(t) {
		names = append(names, i.RegionName)
	}
	if !slices.Equal(names, []string{"disk-2", "local-1", "theirs-1"}) {
		t.Errorf("got the regions %q", names)
	}
	full := t.TempDir()
	must(t, os.WriteFile(filepath.Join(full, "x"), nil, 0o600))
	for name, at := range map[string]string{"disk-2": full + "/y", "disk-3": full, "disk-4": "relative", "disk-5": "gopher://x/y"} {
		_, err := CreateAt(t.Context(), h.home, name, at, false)
		wantCode(t, err, ami.CodeInvalidParameterValue)
	}
	must(t, Delete(t.Context(), h.home, "theirs-1", false))
	if got := get(other.open(t).ResolveImage(t.Context(), "theirs", false))(t); got.ImageID != img.ImageID {
		t.Errorf("got %s, want %s", got.ImageID, img.ImageID)
	}
}

// noiseOf is bytes that nothing else has.
func noiseOf(seed uint64, n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	io.ReadFull(r, b)
	return b
}
