package region

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
)

// smallStore is a region with what a line of the table puts into it. Its layers
// are called by letters: b is base's, c stands on b, d on c, o is another.
type smallStore struct {
	*testing.T
	r     *Region
	sizes map[byte]int64
	image map[string]ami.Image
}

// named begins the name of every image, which has to have three characters.
const named = "image "

// chain makes the images "b", "c" and "d", each of an instance of the one before.
func (s *smallStore) chain(names ...string) {
	s.image["b"] = image(s.T, s.r, named+"b")
	for i, name := range names {
		before := append([]string{"b"}, names...)[i]
		inst := stop(s.T, s.r, launched(s.T, s.r, RunInstancesInput{Image: named + before}).InstanceID)
		scribble(s.T, s.r, volumeOf(s.T, s.r, inst, "/dev/sda1").VolumeID, byte(7+i))
		made, err := s.r.CreateImage(s.Context(), CreateImageInput{InstanceID: inst.InstanceID, Name: named + name})
		must(s.T, err)
		s.image[name] = made
		terminate(s.T, s.r, inst.InstanceID)
	}
	for name, i := range s.image {
		s.sizes[name[0]] = sizeOf(s.T, s.r.layerFile(layerOf(s.T, s.r, i)))
	}
}

// bytes is the size of the layers of some letters.
func (s *smallStore) bytes(letters string) (sum int64) {
	for _, l := range []byte(letters) {
		if s.sizes[l] == 0 {
			s.Fatalf("no layer %c", l)
		}
		sum += s.sizes[l]
	}
	return sum
}

// register makes an image over the snapshot of another.
func (s *smallStore) register(name, of string) {
	made, err := s.r.RegisterImage(s.Context(), RegisterImageInput{Name: named + name, BlockDeviceMappings: mapping(s.T, "/dev/sda1="+string(rootSnapshot(s.image[of])))})
	must(s.T, err)
	s.image[name] = made
}

func (s *smallStore) deregister(name string, deleteSnapshots bool) {
	_, err := s.r.DeregisterImage(s.Context(), s.image[name].ImageID, deleteSnapshots, false)
	must(s.T, err)
	delete(s.image, name)
}

// TestStoreUsage: what each image costs, alone and with others, and what would be
// free without it; and that it is, when it is deregistered.
func TestStoreUsage(t *testing.T) {
	t.Parallel()
	type cost struct{ chain, unique, shared, freed string } // by the letters of layers
	for _, tt := range []struct {
		name    string
		make    func(*smallStore)
		want    map[string]cost
		garbage string
	}{
		{"one image", func(s *smallStore) { s.chain() }, map[string]cost{"b": {"b", "b", "", "b"}}, ""},
		{"two that have nothing in common", func(s *smallStore) {
			s.image["o"] = image(s.T, s.r, named+"o")
			s.chain()
		}, map[string]cost{"b": {"b", "b", "", "b"}, "o": {"o", "o", "", "o"}}, ""},
		{"a lineage", func(s *smallStore) { s.chain("c", "d") }, map[string]cost{
			"b": {"b", "", "b", ""}, "c": {"cb", "", "cb", ""}, "d": {"dcb", "d", "cb", "d"},
		}, ""},
		{"a lineage whose middle is deregistered", func(s *smallStore) {
			s.chain("c", "d")
			s.deregister("c", true)
		}, map[string]cost{"b": {"b", "", "b", ""}, "d": {"dcb", "dc", "b", "dc"}}, ""},
		{"a lineage of which only the last is left", func(s *smallStore) {
			s.chain("c", "d")
			s.deregister("b", true)
			s.deregister("c", true)
		}, map[string]cost{"d": {"dcb", "dcb", "", "dcb"}}, ""},
		{"deregistered, with its snapshot left", func(s *smallStore) {
			s.chain("c")
			s.deregister("b", false)
		}, map[string]cost{"c": {"cb", "cb", "", "c"}}, ""},
		{"one content twice", func(s *smallStore) {
			s.chain()
			made, err := s.r.ImportImage(s.Context(), ImportInput{Source: rawDisk(s.T, named+"b"), Name: named + "same"})
			must(s.T, err)
			s.image["same"] = made
		}, map[string]cost{"b": {"b", "", "b", ""}, "same": {"b", "", "b", ""}}, ""},
		{"one snapshot twice", func(s *smallStore) {
			s.chain("c")
			s.register("same", "c")
		}, map[string]cost{"b": {"b", "", "b", ""}, "c": {"cb", "", "cb", ""}, "same": {"cb", "", "cb", ""}}, ""},
		{"a volume stands on it", func(s *smallStore) {
			s.chain("c")
			_, err := s.r.CreateVolume(s.Context(), CreateVolumeInput{SnapshotID: rootSnapshot(s.image["c"])})
			must(s.T, err)
		}, map[string]cost{"b": {"b", "", "b", ""}, "c": {"cb", "c", "b", ""}}, ""},
		{"an instance runs of what it stands on", func(s *smallStore) {
			s.chain("c")
			launched(s.T, s.r, RunInstancesInput{Image: named + "b"})
			s.deregister("b", true)
		}, map[string]cost{"c": {"cb", "cb", "", "c"}}, ""},
		{"a snapshot of no image names its layer", func(s *smallStore) {
			s.chain("c")
			v, err := s.r.CreateVolume(s.Context(), CreateVolumeInput{SnapshotID: rootSnapshot(s.image["c"])})
			must(s.T, err)
			_, err = s.r.CreateSnapshot(s.Context(), CreateSnapshotInput{VolumeID: v.VolumeID})
			must(s.T, err)
			must(s.T, s.r.DeleteVolume(s.Context(), v.VolumeID, false))
		}, map[string]cost{"b": {"b", "", "b", ""}, "c": {"cb", "c", "b", ""}}, ""},
		{"a lease holds its layer", func(s *smallStore) {
			s.chain()
			j, err := s.r.begin(s.Context(), nil, string(ami.NewSnapshotID()))
			must(s.T, err)
			s.Cleanup(func() { j.close(s.Context()) })
			held, err := s.r.holdLayer(s.Context(), j.ids[0], layerOf(s.T, s.r, s.image["b"]))
			if must(s.T, err); !held {
				s.Fatal("the layer is not held")
			}
		}, map[string]cost{"b": {"b", "b", "", ""}}, ""},
		{"a disk without a record stands on it", func(s *smallStore) {
			s.chain()
			layer := layerOf(s.T, s.r, s.image["b"])
			_, err := s.r.layers.CreateHead(ami.NewVolumeID(), 1<<30, layer, "")
			must(s.T, err)
		}, map[string]cost{"b": {"b", "b", "", ""}}, ""},
		{"garbage", func(s *smallStore) {
			s.image["o"] = image(s.T, s.r, named+"o")
			s.chain("c")
			for _, name := range []string{"o", "c"} {
				forget(s.T, s.r, s.image[name])
				delete(s.image, name)
			}
		}, map[string]cost{"b": {"b", "b", "", ""}}, "oc"}, // which stands on it until it is collected
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r, _ := open(t)
			s := &smallStore{t, r, map[byte]int64{}, map[string]ami.Image{}}
			tt.make(s)
			got := get(r.StoreUsage(t.Context()))(t)
			var volumes int64
			must(t, r.catalog.View(t.Context(), func(tx *catalog.Tx) error {
				vols, err := tx.Volumes()
				for _, v := range vols {
					volumes += allocated(r.layers.HeadPath(v.VolumeID))
				}
				return err
			}))
			if got.Layers != onDisk(t, r) || got.Garbage != s.bytes(tt.garbage) || got.Volumes != volumes {
				t.Errorf("got %d of layers, %d of garbage and %d of volumes, want %d, %d and %d", got.Layers, got.Garbage, got.Volumes, onDisk(t, r), s.bytes(tt.garbage), volumes)
			}
			if len(got.Images) != len(tt.want) {
				t.Errorf("got %d images, want %d", len(got.Images), len(tt.want))
			}
			for _, c := range got.Images {
				letter := strings.TrimPrefix(c.Name, named)
				w := tt.want[letter]
				want := ImageCost{
					ImageID: s.image[letter].ImageID, Name: c.Name, Virtual: 1 << 30,
					Chain: s.bytes(w.chain), Unique: s.bytes(w.unique), Shared: s.bytes(w.shared), Freed: s.bytes(w.freed),
				}
				if diff := cmp.Diff(want, c); diff != "" {
					t.Errorf("%s (-want +got):\n%s", c.Name, diff)
				}
			}
			// What was told of one comes true.
			slices.SortFunc(got.Images, func(a, b ImageCost) int { return int(b.Freed - a.Freed) })
			before := onDisk(t, r)
			s.deregister(strings.TrimPrefix(got.Images[0].Name, named), true)
			if freed := before - onDisk(t, r); freed != got.Images[0].Freed {
				t.Errorf("deregistering %s freed %d, want %d", got.Images[0].Name, freed, got.Images[0].Freed)
			}
		})
	}
}

// onDisk is the size of all layers' files.
func onDisk(t *testing.T, r *Region) (sum int64) {
	t.Helper()
	for _, l := range get(r.layers.Layers(t.Context()))(t) {
		sum += l.FileSize
	}
	return sum
}

// forget removes an image's records alone.
func forget(t *testing.T, r *Region, i ami.Image) {
	t.Helper()
	must(t, r.catalog.Update(t.Context(), func(tx *catalog.Tx) error {
		if err := tx.DeleteImage(i.ImageID); err != nil {
			return err
		}
		return tx.DeleteSnapshot(rootSnapshot(i))
	}))
}

// A damaged layer does not hide what the others cost, and nothing is taken for
// garbage while it is not known what it stands on.
func TestUsageOfDamagedLayers(t *testing.T) {
	t.Parallel()
	l := &listener{}
	r, _ := open(t, tellingTo(l))
	base, child := lineage(t, r)
	b := sizeOf(t, r.layerFile(layerOf(t, r, base)))
	damage(t, r, layerOf(t, r, child), 0)
	got := get(r.StoreUsage(t.Context()))(t)
	if len(got.Images) != 2 || got.Images[0].Chain != b || got.Images[0].Freed != 0 || got.Garbage != 0 {
		t.Errorf("got %+v, want both images, and nothing of what may be needed free", got)
	}
	if !l.noted("what is garbage cannot be told") {
		t.Errorf("got the notes %q, want that it cannot be told", l.notes)
	}
	// The damaged one itself can go.
	if c := sizeOf(t, r.layerFile(layerOf(t, r, child))); got.Images[1].Freed != c {
		t.Errorf("got %d that the damaged image frees, want %d", got.Images[1].Freed, c)
	}
}
