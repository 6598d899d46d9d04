package region

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/bundle"
	"github.com/kamivm/kami/pkg/catalog"
)

func TestRegions(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	at := func(name string) string { return filepath.Join(h.home, "regions", name) }
	info := func(name string, images int) Info { return Info{RegionName: name, Path: at(name), Images: images} }
	list := func(want ...Info) {
		t.Helper()
		if diff := cmp.Diff(want, get(List(t.Context(), h.home))(t)); diff != "" {
			t.Errorf("regions (-want +got):\n%s", diff)
		}
	}
	in := func(name string) func(*Options) { return func(o *Options) { o.Name = name } }
	list(info("local-1", 0)) // also in a home that is not there yet
	got, err := Create(t.Context(), h.home, "lab-1", false)
	must(t, err)
	if diff := cmp.Diff(info("lab-1", 0), got); diff != "" {
		t.Errorf("region (-want +got):\n%s", diff)
	}
	must(t, os.RemoveAll(at("local-1")))
	must(t, os.WriteFile(at("a-file"), nil, 0o600))
	must(t, os.Mkdir(at(".hidden"), 0o700))
	list(info("lab-1", 0), info("local-1", 0)) // the default one is there whatever else is

	lab := h.open(t, in("lab-1"))
	i := image(t, lab, "base")
	if ids, err := imageIDs(h.open(t))(t, DescribeInput{}); err != nil || len(ids) != 0 {
		t.Errorf("the other region has the images %v (%v), want none", ids, err)
	}
	list(info("lab-1", 1), info("local-1", 0))

	wantCode(t, Delete(t.Context(), h.home, "lab-1", false), ami.CodeIncorrectState)
	_, err = lab.DeregisterImage(t.Context(), i.ImageID, false, false)
	must(t, err)
	err = Delete(t.Context(), h.home, "lab-1", false)
	wantCode(t, err, ami.CodeIncorrectState)
	wantSays(t, err, "0 images, 1 snapshots and 0 volumes")
	must(t, lab.DeleteSnapshot(t.Context(), rootSnapshot(i), false))
	// What another account has counts as well.
	v := newVolume(t, h.open(t, in("lab-1"), as(stranger)))
	wantCode(t, Delete(t.Context(), h.home, "lab-1", false), ami.CodeIncorrectState)
	must(t, lab.catalog.Update(t.Context(), func(tx *catalog.Tx) error { return tx.DeleteVolume(v.VolumeID) }))
	bundled(t, lab, "web", func(s *BundleSpec, _ *bundle.Manifest) { s.Unsigned = true }) // nor is one lost
	err = Delete(t.Context(), h.home, "lab-1", false)
	wantCode(t, err, ami.CodeIncorrectState)
	wantSays(t, err, "1 bundles")
	get(lab.DeleteBundle(t.Context(), DeleteBundleInput{Location: "images/web"}))(t)
	wantCode(t, Delete(t.Context(), h.home, "lab-1", true), ami.CodeDryRunOperation)
	list(info("lab-1", 0), info("local-1", 0))
	// What was left of one that was being removed is no obstacle.
	must(t, os.MkdirAll(filepath.Join(at(".deleted-lab-1"), "layers"), 0o700))
	must(t, Delete(t.Context(), h.home, "lab-1", false))
	list(info("local-1", 0))
	for _, name := range []string{"lab-1", ".deleted-lab-1"} {
		if _, err := os.Stat(at(name)); !os.IsNotExist(err) {
			t.Errorf("%s is still there: %v", name, err)
		}
	}
}

func TestRegionsRefuse(t *testing.T) {
	t.Parallel()
	home := t.TempDir()
	_, err := Create(t.Context(), home, "lab-1", false)
	must(t, err)
	for _, dry := range []bool{true, false} {
		for _, name := range []string{"lab-1", "", "Lab", "../x", "-x", "a b", ".deleted-x"} {
			_, err := Create(t.Context(), home, name, dry)
			if got := ami.ErrorCode(err); got != ami.CodeInvalidParameterValue {
				t.Errorf("Create(%q, dry %v): got %v, want InvalidParameterValue", name, dry, err)
			}
		}
		wantCode(t, Delete(t.Context(), home, "none-1", dry), ami.CodeInvalidParameterValue)
	}
	_, err = Open(t.Context(), Options{Home: home, Name: "none-1"})
	wantCode(t, err, ami.CodeInvalidParameterValue)
	wantSays(t, err, "none-1")
	file := filepath.Join(t.TempDir(), "file")
	must(t, os.WriteFile(file, nil, 0o600))
	_, err = Open(t.Context(), Options{Home: file})
	wantCode(t, err, ami.CodeInternalError)
}

// One broken region does not hide the others.
func TestListWithABrokenRegion(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	image(t, h.open(t), "base")
	must(t, os.MkdirAll(filepath.Join(h.home, "regions", "broken"), 0o700))
	must(t, os.WriteFile(filepath.Join(h.home, "regions", "broken", "catalog.db"), []byte("no database at all, and long enough to be none"), 0o600))
	got := get(List(t.Context(), h.home))(t)
	want := []Info{
		{RegionName: "broken", Path: filepath.Join(h.home, "regions", "broken")},
		{RegionName: "local-1", Path: filepath.Join(h.home, "regions", "local-1"), Images: 1},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("regions (-want +got):\n%s", diff)
	}
}
