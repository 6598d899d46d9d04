package region

import (
	"os"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
	"github.com/kamivm/kami/pkg/digest"
)

// lineage is an image, and another one that was made of an instance of it and
// stands on it.
func lineage(t *testing.T, r *Region) (base, child ami.Image) {
	t.Helper()
	base = image(t, r, "base")
	inst := stop(t, r, launched(t, r, RunInstancesInput{Image: "base"}).InstanceID)
	scribble(t, r, volumeOf(t, r, inst, "/dev/sda1").VolumeID, 7)
	child, err := r.CreateImage(t.Context(), CreateImageInput{InstanceID: inst.InstanceID, Name: "child"})
	must(t, err)
	terminate(t, r, inst.InstanceID)
	return base, child
}

func layerOf(t *testing.T, r *Region, i ami.Image) digest.Digest {
	t.Helper()
	return get(r.snapshot(t.Context(), rootSnapshot(i)))(t).Layer
}

func (r *Region) layerFile(d digest.Digest) string { return r.path("layers", d.Hex()+".qcow2") }

func sizeOf(t *testing.T, path string) int64 {
	t.Helper()
	return get(os.Stat(path))(t).Size()
}

func TestStoreUsage(t *testing.T) {
	t.Parallel()
	r, _ := open(t)
	base, child := lineage(t, r)
	b, c := sizeOf(t, r.layerFile(layerOf(t, r, base))), sizeOf(t, r.layerFile(layerOf(t, r, child)))
	other := image(t, r, "other")
	o := sizeOf(t, r.layerFile(layerOf(t, r, other)))
	inst := running(t, r)
	garbage := get(r.ResolveImage(t.Context(), string(inst.ImageID), false))(t)
	g := sizeOf(t, r.layerFile(layerOf(t, r, garbage)))
	got, err := r.StoreUsage(t.Context())
	must(t, err)
	cost := func(i ami.Image, chain, unique int64) ImageCost {
		return ImageCost{ImageID: i.ImageID, Name: i.Name, Virtual: 1 << 30, Chain: chain, Unique: unique}
	}
	want := StoreUsage{
		Images: []ImageCost{cost(base, b, 0), cost(child, b+c, c), cost(other, o, o), cost(garbage, g, g)},
		Layers: b + c + o + g, Volumes: allocated(r.layers.HeadPath(volumeOf(t, r, inst, "/dev/sda1").VolumeID)),
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("usage (-want +got):\n%s", diff)
	}
	if want.Volumes == 0 {
		t.Error("the head of a volume takes nothing")
	}
	// What no record names is garbage, and costs until it is collected.
	must(t, r.catalog.Update(t.Context(), func(tx *catalog.Tx) error {
		if err := tx.DeleteImage(other.ImageID); err != nil {
			return err
		}
		return tx.DeleteSnapshot(rootSnapshot(other))
	}))
	got, err = r.StoreUsage(t.Context())
	must(t, err)
	if got.Garbage != o || got.Layers != b+c+o+g || len(got.Images) != 3 {
		t.Errorf("got %d bytes of garbage in %d of layers of %d images, want %d in %d of 3", got.Garbage, got.Layers, len(got.Images), o, b+c+o+g)
	}
	// A damaged layer does not hide the rest.
	damage(t, r, layerOf(t, r, child), 0)
	got, err = r.StoreUsage(t.Context())
	must(t, err)
	if len(got.Images) != 3 || got.Images[0].Chain != b {
		t.Errorf("got the images %+v, want all three", got.Images)
	}
}

func TestCollectGarbage(t *testing.T) {
	t.Parallel()
	r, d := open(t)
	base, child := lineage(t, r)
	keep := running(t, r)
	parent, top := layerOf(t, r, base), layerOf(t, r, child)
	size := sizeOf(t, r.layerFile(parent)) + sizeOf(t, r.layerFile(top))
	collect := func(dry bool, want GCPlan) {
		t.Helper()
		got, err := r.CollectGarbage(t.Context(), dry)
		must(t, err)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("dry run %v: plan (-want +got):\n%s", dry, diff)
		}
	}
	collect(false, GCPlan{})
	forget := func(i ami.Image) {
		t.Helper()
		must(t, r.catalog.Update(t.Context(), func(tx *catalog.Tx) error {
			if err := tx.DeleteImage(i.ImageID); err != nil {
				return err
			}
			return tx.DeleteSnapshot(rootSnapshot(i))
		}))
	}
	forget(base)
	collect(false, GCPlan{}) // the child stands on it
	forget(child)

	// While somebody is at work young layers stay: a record may be on its way.
	j, err := r.begin(t.Context(), nil, string(ami.NewVolumeID()))
	must(t, err)
	collect(false, GCPlan{})
	old := time.Now().Add(-2 * gcGrace)
	must(t, os.Chtimes(r.layerFile(top), old, old))
	collect(true, GCPlan{Layers: []digest.Digest{top}, Bytes: sizeOf(t, r.layerFile(top))})
	j.close(t.Context())

	plan := GCPlan{Layers: []digest.Digest{top, parent}, Bytes: size} // children first
	before := look(t, r, d)
	collect(true, plan)
	if diff := cmp.Diff(before, look(t, r, d)); diff != "" {
		t.Errorf("the dry run changed something (-before +after):\n%s", diff)
	}
	collect(false, plan)
	collect(false, GCPlan{})
	if got, want := look(t, r, d).Layers, []digest.Digest{volumeOf(t, r, keep, "/dev/sda1").Layer}; !slices.Equal(got, want) {
		t.Errorf("got the layers %v, want that of the instance, %v", got, want)
	}
	if left, _ := os.ReadDir(r.path("layers")); len(left) != 2 { // the layer and its list of blocks
		t.Errorf("got the files %v, want two", left)
	}
}

// A layer whose header is damaged is collected as well, when nothing needs it.
func TestCollectDamagedGarbage(t *testing.T) {
	t.Parallel()
	r, d := open(t)
	i := image(t, r, "base")
	damage(t, r, layerOf(t, r, i), 0)
	_, err := r.DeregisterImage(t.Context(), i.ImageID, true, false)
	must(t, err)
	_, err = r.CollectGarbage(t.Context(), false)
	must(t, err)
	if got := look(t, r, d).Layers; len(got) > 0 {
		t.Errorf("got the layers %v, want none", got)
	}
}

// damage flips a byte of a layer, behind the back of all.
func damage(t *testing.T, r *Region, d digest.Digest, at int64) {
	t.Helper()
	path := r.layerFile(d)
	must(t, os.Chmod(path, 0o600))
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	b := make([]byte, 1)
	_, err = f.ReadAt(b, at)
	must(t, err)
	b[0] ^= 0xff
	_, err = f.WriteAt(b, at)
	must(t, err)
}

// TestVerify flips bytes one after the other: each is found, and the images that
// stand on the layer are named.
func TestVerify(t *testing.T) {
	t.Parallel()
	r, _ := open(t)
	base, child := lineage(t, r)
	other := image(t, r, "other")
	parent, top := layerOf(t, r, base), layerOf(t, r, child)
	stands := map[digest.Digest][]ami.ImageID{
		parent: {base.ImageID, child.ImageID}, top: {child.ImageID}, layerOf(t, r, other): {other.ImageID},
	}
	verify := func() map[digest.Digest]VerifyResult {
		t.Helper()
		all, err := r.VerifyStore(t.Context())
		must(t, err)
		out := map[digest.Digest]VerifyResult{}
		for _, v := range all {
			out[v.Layer] = v
		}
		if len(all) != 3 || len(out) != 3 {
			t.Fatalf("got %d results, want one of each of 3 layers", len(all))
		}
		return out
	}
	for d, v := range verify() {
		if !v.OK || v.Detail != "" || !slices.Equal(v.Images, stands[d]) {
			t.Errorf("got %+v, want it well and under %v", v, stands[d])
		}
	}
	for _, d := range []digest.Digest{parent, top} {
		size := sizeOf(t, r.layerFile(d))
		places := []int64{size / 2, size - 1, size - 512}
		for at := int64(0); at < 160; at++ { // the header, its extensions and the parent's name
			places = append(places, at)
		}
		for at := int64(4096); at < size; at += size/64 + 1 {
			places = append(places, at)
		}
		for _, at := range places {
			damage(t, r, d, at)
			for got, v := range verify() {
				switch {
				case got == d && (v.OK || v.Detail == "" || !slices.Equal(v.Images, stands[d])):
					t.Errorf("byte %d of %s: got %+v, want it damaged and %v named", at, d.Short(), v, stands[d])
				case got != d && !v.OK && (d != parent || got != top): // what stands on it may be unreadable
					t.Errorf("byte %d of %s: got %+v for another layer", at, d.Short(), v)
				}
			}
			damage(t, r, d, at)
		}
	}
	for d, v := range verify() {
		if !v.OK {
			t.Errorf("all is mended, and %s is %+v", d.Short(), v)
		}
	}
	// One that is not there at all is missed.
	must(t, os.Remove(r.layerFile(top)))
	if v := verify()[top]; v.OK || !slices.Equal(v.Images, stands[top]) {
		t.Errorf("got %+v for a layer that is not there, want %v named", v, stands[top])
	}
}
