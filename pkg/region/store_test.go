package region

import (
	"encoding/binary"
	"math/rand"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
	"github.com/kamivm/kami/pkg/digest"
	"github.com/kamivm/kami/pkg/internal/durable"
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

// damage flips a byte of a layer, behind the back of all.
func damage(t *testing.T, r *Region, d digest.Digest, at int64) {
	t.Helper()
	flip(t, r.layerFile(d), at, 0xff)
}

// flip flips bits of one byte of a file.
func flip(t *testing.T, path string, at int64, bits byte) {
	t.Helper()
	must(t, os.Chmod(path, 0o600))
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	b := make([]byte, 1)
	_, err = f.ReadAt(b, at)
	must(t, err)
	b[0] ^= bits
	_, err = f.WriteAt(b, at)
	must(t, err)
}

// verified verifies everything and returns the results by what they are of.
func verified(t *testing.T, r *Region, in VerifyInput) map[string]VerifyResult {
	t.Helper()
	all := get(r.VerifyStore(t.Context(), in))(t).Results
	out := map[string]VerifyResult{}
	for _, v := range all {
		if _, twice := out[v.Resource]; twice {
			t.Errorf("%s is there twice", v.Resource)
		}
		out[v.Resource] = v
	}
	layers := slices.DeleteFunc(all, func(v VerifyResult) bool { return v.Layer == "" })
	if !slices.IsSortedFunc(layers, func(a, b VerifyResult) int { return strings.Compare(string(a.Layer), string(b.Layer)) }) {
		t.Errorf("the layers are not in order: %v", layers)
	}
	return out
}

// places are one of each part of a layer's file, by the format (docs/layers.md).
func places(t *testing.T, path string) map[string]int64 {
	t.Helper()
	b := get(os.ReadFile(path))(t)
	be := binary.BigEndian
	const offset = 0x00fffffffffffe00
	l1, refTable := int64(be.Uint64(b[40:])), int64(be.Uint64(b[48:]))
	l2 := int64(be.Uint64(b[l1:]) & offset)
	p := map[string]int64{
		"the magic number": 0, "the version": 7, "the size of the disk": 31, "the header's padding": 300, "the last byte of the header": 1<<16 - 1,
		"the refcount table": refTable + 6, "the end of the refcount table": refTable + 1<<16 - 1,
		"a refcount": int64(be.Uint64(b[refTable:])) + 1, "the end of the refcounts": int64(be.Uint64(b[refTable:])) + 1<<16 - 1,
		"the L1 table": l1 + 5, "the end of the L1 table": l1 + 1<<16 - 1,
		"an L2 table": l2 + 7, "the end of an L2 table": l2 + 1<<16 - 1,
		"the data": l2 + 1<<16, "the last byte": int64(len(b)) - 1, "the padding behind the data": int64(len(b)) - 512,
	}
	if name := int64(be.Uint64(b[8:])); name != 0 {
		p["the parent's name"] = name + 3
	}
	return p
}

// TestAFlippedBitIsFound flips one bit after the other in each part of the file of
// a layer, and at places taken at random: each is found, and what stands on the
// layer is named.
func TestAFlippedBitIsFound(t *testing.T) {
	t.Parallel()
	r, _ := open(t)
	base, child := lineage(t, r)
	other := image(t, r, "other")
	inst := launched(t, r, RunInstancesInput{Image: "child"})
	parent, top, apart := layerOf(t, r, base), layerOf(t, r, child), layerOf(t, r, other)
	snap := func(i ami.Image) ami.SnapshotID { return rootSnapshot(i) }
	root := volumeOf(t, r, inst, "/dev/sda1").VolumeID
	want := map[digest.Digest]VerifyResult{
		parent: {
			Images: []ami.ImageID{base.ImageID, child.ImageID}, Snapshots: []ami.SnapshotID{snap(base), snap(child)},
			Volumes: []ami.VolumeID{root}, Instances: []ami.InstanceID{inst.InstanceID},
		},
		top: {
			Images: []ami.ImageID{child.ImageID}, Snapshots: []ami.SnapshotID{snap(child)},
			Volumes: []ami.VolumeID{root}, Instances: []ami.InstanceID{inst.InstanceID},
		},
		apart: {Images: []ami.ImageID{other.ImageID}, Snapshots: []ami.SnapshotID{snap(other)}},
	}
	check := func(what string, bad digest.Digest) {
		t.Helper()
		got := verified(t, r, VerifyInput{})
		if len(got) != len(want) {
			t.Errorf("%s: got %d results, want one of each of %d layers", what, len(got), len(want))
		}
		for d, w := range want {
			v := got[d.Hex()]
			if v.OK == (d == bad) || (v.Detail == "") != v.OK || (v.Advice == "") != v.OK {
				t.Errorf("%s: got %+v of %s, want it well %v", what, v, d.Short(), d != bad)
			}
			// Above a layer whose header is unreadable lineage is not known.
			if d != bad && bad == top {
				continue
			}
			if !slices.Equal(v.Images, w.Images) || !slices.Equal(v.Snapshots, w.Snapshots) || !slices.Equal(v.Volumes, w.Volumes) || !slices.Equal(v.Instances, w.Instances) {
				t.Errorf("%s: got %+v, want what stands on it named: %+v", what, v, w)
			}
		}
	}
	check("nothing is flipped", "")
	random := rand.New(rand.NewSource(1))
	for _, d := range []digest.Digest{parent, top} {
		path := r.layerFile(d)
		for part, at := range places(t, path) {
			bit := byte(1) << random.Intn(8)
			flip(t, path, at, bit)
			check(part, d)
			flip(t, path, at, bit)
		}
		size := sizeOf(t, path)
		for range 100 {
			at, bit := random.Int63n(size), byte(1)<<random.Intn(8)
			flip(t, path, at, bit)
			check("a place at random", d)
			flip(t, path, at, bit)
		}
	}
	check("all is mended", "")
	must(t, os.Truncate(r.layerFile(apart), sizeOf(t, r.layerFile(apart))-1))
	check("cut off", apart)
}

// TestNotBacked: each record that names what is not there, and each file that is
// not what it was, is told of under its own name, and nothing else is.
func TestNotBacked(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		do   func(t *testing.T, r *Region, base, child ami.Image) (bad string, says string)
		also func(VerifyResult) bool // more that is to be so
	}{
		{"a layer that a snapshot names is missing", func(t *testing.T, r *Region, _, child ami.Image) (string, string) {
			d := layerOf(t, r, child)
			must(t, os.Remove(r.layerFile(d)))
			return d.Hex(), "missing"
		}, func(v VerifyResult) bool {
			return len(v.Images) == 1 && len(v.Snapshots) == 1 && strings.Contains(v.Advice, "Put a good copy")
		}},
		{"a parent that no record names is missing", func(t *testing.T, r *Region, base, child ami.Image) (string, string) {
			d := layerOf(t, r, base)
			_, err := r.DeregisterImage(t.Context(), base.ImageID, true, false)
			must(t, err)
			must(t, os.Remove(r.layerFile(d)))
			return layerOf(t, r, child).Hex(), d.Short() + ", on which it stands"
		}, func(v VerifyResult) bool { return len(v.Images) == 1 }},
		{"the list of a layer's blocks has a flipped bit", func(t *testing.T, r *Region, base, _ ami.Image) (string, string) {
			name := "layers/" + layerOf(t, r, base).Hex() + ".blocks"
			flip(t, r.path(name), sizeOf(t, r.path(name))/2, 1)
			return name, "does not have its digest"
		}, nil},
		{"the list of another layer's blocks", func(t *testing.T, r *Region, base, child ami.Image) (string, string) {
			name, other := "layers/"+layerOf(t, r, base).Hex()+".blocks", r.path("layers", layerOf(t, r, child).Hex()+".blocks")
			must(t, os.Remove(r.path(name)))
			must(t, os.WriteFile(r.path(name), get(os.ReadFile(other))(t), 0o400))
			return name, "comes to the content digest"
		}, nil},
		{"a volume's disk is missing", func(t *testing.T, r *Region, _, _ ami.Image) (string, string) {
			v := newVolume(t, r)
			must(t, os.Remove(r.layers.HeadPath(v.VolumeID)))
			return string(v.VolumeID), "missing"
		}, func(v VerifyResult) bool {
			return len(v.Volumes) == 1 && strings.Contains(v.Advice, "kami volume delete")
		}},
		{"a volume's disk is damaged", func(t *testing.T, r *Region, _, _ ami.Image) (string, string) {
			v := newVolume(t, r)
			flip(t, r.layers.HeadPath(v.VolumeID), 0, 1)
			return string(v.VolumeID), "not a qcow2 file"
		}, nil},
		{"a table in a volume's disk is damaged", func(t *testing.T, r *Region, _, _ ami.Image) (string, string) {
			v := newVolume(t, r)
			scribble(t, r, v.VolumeID, 7)
			path := r.layers.HeadPath(v.VolumeID)
			flip(t, path, int64(binary.BigEndian.Uint64(get(os.ReadFile(path))(t)[40:]))+3, 1)
			return string(v.VolumeID), "lies outside the file"
		}, nil},
		{"a volume's disk stands on another layer", func(t *testing.T, r *Region, base, child ami.Image) (string, string) {
			v := get(r.CreateVolume(t.Context(), CreateVolumeInput{SnapshotID: rootSnapshot(base)}))(t)
			must(t, r.layers.ReplaceHead(v.VolumeID, v.SizeBytes, layerOf(t, r, child), ""))
			return string(v.VolumeID), "stands on " + layerOf(t, r, child).Short()
		}, nil},
		{"a volume's disk is smaller than its record", func(t *testing.T, r *Region, _, _ ami.Image) (string, string) {
			v := newVolume(t, r)
			must(t, r.layers.ReplaceHead(v.VolumeID, v.SizeBytes/2, "", ""))
			return string(v.VolumeID), "is a disk of"
		}, nil},
		{"an instance's disk is missing", func(t *testing.T, r *Region, _, _ ami.Image) (string, string) {
			v := volumeOf(t, r, launched(t, r, RunInstancesInput{Image: "base"}), "/dev/sda1")
			must(t, os.Remove(r.layers.HeadPath(v.VolumeID)))
			return string(v.VolumeID), "missing"
		}, func(v VerifyResult) bool { return len(v.Instances) == 1 && strings.Contains(v.Advice, "terminate") }},
		{"an image's snapshot has no record", func(t *testing.T, r *Region, _, child ami.Image) (string, string) {
			must(t, r.catalog.Update(t.Context(), func(tx *catalog.Tx) error { return tx.DeleteSnapshot(rootSnapshot(child)) }))
			return string(child.ImageID), string(rootSnapshot(child)) + " does not exist"
		}, func(v VerifyResult) bool { return len(v.Images) == 1 && strings.Contains(v.Advice, "deregister") }},
		{"an instance's volume has no record", func(t *testing.T, r *Region, _, _ ami.Image) (string, string) {
			inst := launched(t, r, RunInstancesInput{Image: "base"})
			id := volumeOf(t, r, inst, "/dev/sda1").VolumeID
			must(t, r.catalog.Update(t.Context(), func(tx *catalog.Tx) error { return tx.DeleteVolume(id) }))
			return string(inst.InstanceID), string(id) + " does not exist"
		}, nil},
		{"a snapshot has no layer", func(t *testing.T, r *Region, _, _ ami.Image) (string, string) {
			s := r.newSnapshot("", "", 1<<20, nil)
			s.State = ami.SnapshotCompleted
			must(t, r.catalog.Update(t.Context(), func(tx *catalog.Tx) error { return tx.PutSnapshot(s) }))
			return string(s.SnapshotID), "no layer"
		}, nil},
		{"an image's variables are damaged", func(t *testing.T, r *Region, base, _ ami.Image) (string, string) {
			base.UEFIData = get(r.putObject(t.Context(), []byte("variables")))(t)
			must(t, r.catalog.Update(t.Context(), func(tx *catalog.Tx) error { return tx.PutImage(base) }))
			flip(t, r.objectPath(base.UEFIData), 3, 1)
			return string(base.ImageID), "UEFI variables"
		}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r, _ := open(t)
			base, child := lineage(t, r)
			bad, says := tt.do(t, r, base, child)
			for what, v := range verified(t, r, VerifyInput{}) {
				switch {
				case what != bad && !v.OK:
					t.Errorf("got %+v, want nothing said of it", v)
				case what == bad && (v.OK || !strings.Contains(v.Detail, says) || v.Advice == "" || tt.also != nil && !tt.also(v)):
					t.Errorf("got %+v, want it said that %q, and what to do", v, says)
				}
			}
			if _, told := verified(t, r, VerifyInput{Sample: 1})[bad]; !told && !strings.HasPrefix(bad, "vol-") {
				t.Errorf("a sample does not tell of %s", bad)
			}
		})
	}
}

// What a guest writes to, or another command has, is not taken for damaged.
func TestWhatIsInUseIsNotDamaged(t *testing.T) {
	t.Parallel()
	r, _ := open(t)
	inst := running(t, r)
	held, locked := volumeOf(t, r, inst, "/dev/sda1").VolumeID, newVolume(t, r).VolumeID
	release := hold(t, r, held)
	flip(t, r.layers.HeadPath(held), sizeOf(t, r.layers.HeadPath(held))-1, 1) // in a table that may be being written
	must(t, r.layers.ReplaceHead(locked, 1<<20, "", ""))
	lock, free, err := durable.TryLock(r.lockPath(string(locked)))
	if must(t, err); !free {
		t.Fatal("the volume is locked")
	}
	got := verified(t, r, VerifyInput{})
	if len(got) != 1 {
		t.Errorf("got %+v, want the layer alone", got)
	}
	for _, v := range got {
		if !v.OK || !slices.Equal(v.Running, []ami.InstanceID{inst.InstanceID}) {
			t.Errorf("got %+v, want it well, and said that the instance runs", v)
		}
	}
	must(t, lock.Unlock())
	release()
	if v := verified(t, r, VerifyInput{})[string(locked)]; v.OK || v.Detail == "" {
		t.Errorf("got %+v once it is free, want it damaged", v)
	}
}

// A bad disk that cannot be read does not stop the rest.
func TestUnreadableLayer(t *testing.T) {
	t.Parallel()
	r, _ := open(t)
	base, other := layerOf(t, r, image(t, r, "base")), layerOf(t, r, image(t, r, "other"))
	must(t, os.Remove(r.layerFile(base)))
	must(t, os.Mkdir(r.layerFile(base), 0o700)) // which opens and cannot be read
	got := verified(t, r, VerifyInput{})
	if v := got[base.Hex()]; v.OK || !strings.Contains(v.Detail, "reading layer") {
		t.Errorf("got %+v, want that it cannot be read", v)
	}
	if !got[other.Hex()].OK {
		t.Errorf("got %+v, want the other one read", got[other.Hex()])
	}
	if _, err := os.Stat(filepath.Join(r.dir, "verify.json")); err != nil {
		t.Error(err)
	}
}
