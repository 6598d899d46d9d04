package region

import (
	"fmt"
	"math/rand"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
	"github.com/kamivm/kami/pkg/digest"
	"github.com/kamivm/kami/pkg/hypervisor/hypervisortest"
	"github.com/kamivm/kami/pkg/qcow2"
	"github.com/kamivm/kami/pkg/snapshot"
)

// wholeLayer is another layer of the same content, that stands on nothing.
func wholeLayer(t *testing.T, r *Region, of digest.Digest) snapshot.Layer {
	t.Helper()
	img := get(r.layers.OpenLayer(of))(t)
	defer img.Close()
	return get(r.layers.WriteLayer(t.Context(), qcow2.Flatten(img), "", ami.NoProgress.Step("", 0)))(t)
}

// mergedAtBegin has do run while the layer of an image's snapshot is replaced as by
// a merge: after do has read its records and before it writes its first one. do is
// known to be there by the lock of what it begins, whose id has the prefix.
func mergedAtBegin(t *testing.T, r *Region, i ami.Image, prefix string, do func() error) (now snapshot.Layer, err error) {
	t.Helper()
	old := layerOf(t, r, i)
	now = wholeLayer(t, r, old)
	done := make(chan error, 1)
	must(t, r.catalog.Update(t.Context(), func(tx *catalog.Tx) error {
		before := get(names(r.path("tmp"), prefix, ".lock"))(t)
		go func() { done <- do() }()
		for began := false; !began; time.Sleep(time.Millisecond) {
			select {
			case err := <-done:
				return fmt.Errorf("it did not begin: %w", err)
			default:
			}
			for _, id := range get(names(r.path("tmp"), prefix, ".lock"))(t) {
				began = began || !slices.Contains(before, id)
			}
		}
		if ids, err := r.switchLayer(tx, old, now); err != nil || len(ids) != 1 {
			return fmt.Errorf("switched %v: %w", ids, err)
		}
		return r.layers.RemoveLayer(old)
	}))
	return now, <-done
}

// A volume stands on the layer that its snapshot has when the volume is recorded,
// whatever was read before.
func TestVolumeOnAMergedChain(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, prefix string
		make         func(t *testing.T, r *Region, i ami.Image) (do func() error)
	}{
		{"created", "vol-", func(t *testing.T, r *Region, i ami.Image) func() error {
			return func() error {
				_, err := r.CreateVolume(t.Context(), CreateVolumeInput{SnapshotID: rootSnapshot(i)})
				return err
			}
		}},
		{"launched", "i-", func(t *testing.T, r *Region, i ami.Image) func() error {
			return func() error {
				_, err := r.RunInstances(t.Context(), RunInstancesInput{Image: string(i.ImageID)})
				return err
			}
		}},
		{"a new root", "vol-", func(t *testing.T, r *Region, i ami.Image) func() error {
			inst := stop(t, r, launched(t, r, RunInstancesInput{Image: "base"}).InstanceID)
			// Its lock is no sign that the new one has begun.
			must(t, os.WriteFile(r.lockPath(string(volumeOf(t, r, inst, "/dev/sda1").VolumeID)), nil, 0o600))
			return func() error {
				_, err := r.ReplaceRootVolume(t.Context(), ReplaceRootInput{InstanceID: inst.InstanceID, ImageID: i.ImageID, DeleteReplacedVolume: true})
				return err
			}
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h := newHouse(t)
			r, other := h.open(t), h.open(t)
			_, child := lineage(t, other)
			do := tt.make(t, r, child)
			now, err := mergedAtBegin(t, other, child, tt.prefix, do)
			must(t, err)
			all := get(r.DescribeVolumes(t.Context(), DescribeInput{}))(t)
			if len(all) != 1 {
				t.Fatalf("got the volumes %v, want one", all)
			}
			v := all[0]
			if v.Layer != now.Digest || v.TrackedLayer != now.Digest || v.TrackedBy != bitmapName(now.Digest) {
				t.Errorf("got %+v, want it on %s and tracked since that", v, now.Digest.Short())
			}
			must(t, get(r.layers.OpenHead(v.VolumeID, v.Layer))(t).Close())
		})
	}
}

// Who removes layers has looked at what is needed a moment before. Volumes that
// begin in between, without a lock, stand on what stays.
func TestVolumesWhileLayersGo(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	rs := h.openTwice(t)
	inst, v := noisy(t, rs[0])
	images := imagesOf(t, rs[0], inst, v, 1, past+6)
	done := make(chan struct{})
	for _, err := range race(rs, func(n int, r *Region) error {
		if n == 0 {
			defer close(done)
			_, err := r.MergeChains(t.Context(), MergeInput{})
			return err
		}
		for {
			for _, i := range images[past-1:] {
				if _, err := r.CreateVolume(t.Context(), CreateVolumeInput{SnapshotID: rootSnapshot(i)}); err != nil {
					return err
				}
			}
			select {
			case <-done:
				return nil
			default:
			}
		}
	}) {
		must(t, err)
	}
	for _, v := range get(rs[0].DescribeVolumes(t.Context(), DescribeInput{}))(t) {
		head, err := rs[0].layers.OpenHead(v.VolumeID, v.Layer)
		if err != nil {
			t.Errorf("%s, which is %s, cannot be read: %v", v.VolumeID, v.State, err)
			continue
		}
		must(t, head.Close())
	}
	wantIntact(t, rs[0], images)
}

// What is removed by who has looked before a volume began, between that and the
// making of its head, is not what the head stands on.
func TestRemovalAroundABegin(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	r, remover := h.open(t), h.open(t)
	_, child := lineage(t, r)
	old := layerOf(t, r, child)
	v := ami.Volume{VolumeID: ami.NewVolumeID(), SnapshotID: rootSnapshot(child), Layer: old, SizeBytes: gib, State: ami.VolumeCreating}
	now := wholeLayer(t, r, old)
	must(t, r.catalog.Update(t.Context(), func(tx *catalog.Tx) error {
		_, err := r.switchLayer(tx, old, now)
		return err
	}))
	set := get(remover.layerSet(t.Context()))(t)
	needed, _ := set.closure(get(remover.named(t.Context()))(t))
	j, err := r.begin(t.Context(), func(tx *catalog.Tx) error { return r.beginVolume(tx, &v) }, string(v.VolumeID))
	must(t, err)
	defer j.close(t.Context())
	var goes []digest.Digest
	for d := range set {
		if !needed[d] {
			goes = append(goes, d)
		}
	}
	if gone := get(remover.layers.RemoveLayers(goes))(t); !slices.Equal(gone, []digest.Digest{old}) {
		t.Fatalf("%v are removed, want %s", gone, old.Short())
	}
	_, err = r.layers.CreateHead(v.VolumeID, v.SizeBytes, v.Layer, "")
	must(t, err)
	must(t, get(r.layers.OpenHead(v.VolumeID, now.Digest))(t).Close())
}

// noting is a listener that something happens to at a note.
type noting struct {
	*listener
	onNote func(text string)
}

func (n noting) Note(format string, args ...any) {
	n.listener.Note(format, args...)
	n.onNote(fmt.Sprintf(format, args...))
}

// What a disk is to be laid over stays from the moment that it is found.
func TestRelativeStays(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	other := h.open(t)
	noise := make([]byte, 2<<20)
	rand.New(rand.NewSource(1)).Read(noise)
	copy(noise, hypervisortest.BootSector("noise"))
	first := get(other.ImportImage(t.Context(), ImportInput{Source: diskOf(t, noise, 2<<20), Name: "first"}))(t)
	under, told := layerOf(t, other, first), 0
	r := h.open(t, tellingTo(noting{&listener{}, func(text string) {
		if strings.Contains(text, "is laid over") {
			told++
			_, err := other.DeregisterImage(t.Context(), first.ImageID, true, false)
			must(t, err)
		}
	}}))
	noise[1<<20] ^= 1
	second, err := r.ImportImage(t.Context(), ImportInput{Source: diskOf(t, noise, 2<<20), Name: "second"})
	must(t, err)
	if l := topOf(t, r, second); told != 1 || l.Parent != under {
		t.Errorf("the image stands on %s, want %s; told %d times", l.Parent.Short(), under.Short(), told)
	}
	must(t, r.layers.VerifyLayer(t.Context(), layerOf(t, r, second), ami.NoProgress.Step("", 0)))
}

// A layer that a disk is like and that cannot be stood on any more costs room, and
// not the import.
func TestRelativeThatGoes(t *testing.T) {
	t.Parallel()
	l := &listener{}
	r, _ := open(t, tellingTo(l))
	base, child := lineage(t, r)
	raw := filepath.Join(t.TempDir(), "child.raw")
	must(t, r.ExportSnapshot(t.Context(), ExportInput{SnapshotID: rootSnapshot(child), Path: raw}))
	must(t, os.Remove(r.layerFile(layerOf(t, r, base))))
	again, err := r.ImportImage(t.Context(), ImportInput{Source: raw, Name: "again"})
	must(t, err)
	if got := topOf(t, r, again); got.Parent != "" || l.noted("is laid over") || written(t, r, rootSnapshot(again)) != 7 {
		t.Errorf("it stands on %s, want it on nothing; noted %q", got.Parent.Short(), l.notes)
	}
}

// A draft that comes to be while its snapshot is being deleted goes with it: that
// it is to go is in the commit that deletes the record, draft or not.
func TestDraftOfWhatIsDeleted(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	r := h.open(t)
	snap := r.newSnapshot("", "", gib, nil)
	must(t, r.catalog.Update(t.Context(), func(tx *catalog.Tx) error { return tx.PutSnapshot(snap) }))
	drafts := r.path("drafts")
	must(t, os.RemoveAll(drafts))
	must(t, os.WriteFile(drafts, nil, 0o600)) // so no draft can be looked for, nor removed
	must(t, r.DeleteSnapshot(t.Context(), snap.SnapshotID, false))
	must(t, os.Remove(drafts))
	must(t, r.layers.CreateDraft(snap.SnapshotID, snap.SizeBytes, time.Hour))
	wantNoDrafts(t, h.open(t))
}

// A merge that was to stand on what went is planned without it.
func TestMergeOverWhatWent(t *testing.T) {
	t.Parallel()
	r, _ := open(t)
	inst, v := noisy(t, r)
	images := imagesOf(t, r, inst, v, 1, past+2)
	long, short, err := r.chains(t.Context())
	must(t, err)
	top := long[len(long)-1]
	gone := digest.Of([]byte("gone"))
	for _, i := range images[past-1:] {
		short[equal{get(r.snapshot(t.Context(), rootSnapshot(i)))(t).ContentDigest, ""}] = gone
	}
	m, err := r.mergeChain(t.Context(), top, short)
	must(t, err)
	if !slices.Equal(m.Snapshots, []ami.SnapshotID{top.snapshot.SnapshotID}) || m.After > snapshot.MaxDepth {
		t.Errorf("got %+v, want the chain of %s merged", m, top.snapshot.SnapshotID)
	}
	for of, d := range short {
		if d == gone {
			t.Errorf("the layer that went still stands for %s", of.content.Short())
		}
	}
}
