package region

import (
	"context"
	"errors"
	"fmt"
	"math/rand"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
	"github.com/kamivm/kami/pkg/digest"
	"github.com/kamivm/kami/pkg/hypervisor/hypervisortest"
	"github.com/kamivm/kami/pkg/internal/durable"
	"github.com/kamivm/kami/pkg/snapshot"
)

// past is how many images an instance has when the last one's chain is the first
// that is too long.
const past = snapshot.MaxDepth

// noisy is a stopped instance whose disk of 16 MiB cannot be compressed, and its
// root volume.
func noisy(t *testing.T, r *Region) (ami.Instance, ami.Volume) {
	t.Helper()
	const size = 16 << 20
	b := make([]byte, size)
	rand.New(rand.NewSource(1)).Read(b)
	copy(b, hypervisortest.BootSector("noisy"))
	name := "noisy-" + string(ami.NewImageID())
	_, err := r.ImportImage(t.Context(), ImportInput{Source: diskOf(t, b, size), Name: name})
	must(t, err)
	inst := stop(t, r, launched(t, r, RunInstancesInput{Image: name}).InstanceID)
	return inst, volumeOf(t, r, inst, "/dev/sda1")
}

// imagesOf makes n images of a stopped instance, each with a change of its own.
func imagesOf(t *testing.T, r *Region, inst ami.Instance, v ami.Volume, first, n int) (images []ami.Image) {
	t.Helper()
	for i := first; i < first+n; i++ {
		scribble(t, r, v.VolumeID, byte(i))
		image, err := r.CreateImage(t.Context(), CreateImageInput{InstanceID: inst.InstanceID, Name: fmt.Sprintf("%s %d", inst.InstanceID, i)})
		must(t, err)
		images = append(images, image)
	}
	return images
}

func topOf(t *testing.T, r *Region, i ami.Image) snapshot.Layer {
	t.Helper()
	return get(r.layers.Layer(get(r.snapshot(t.Context(), rootSnapshot(i)))(t).Layer))(t)
}

// wantIntact checks that every image has the content that it was made with, on a
// short chain, and that nothing lies about.
func wantIntact(t *testing.T, r *Region, images []ami.Image) {
	t.Helper()
	for _, image := range images {
		snap := get(r.snapshot(t.Context(), rootSnapshot(image)))(t)
		l := topOf(t, r, image)
		if l.Depth > snapshot.MaxDepth || l.FileSize != snap.LayerBytes {
			t.Errorf("%s stands on %d layers, the first with %d bytes and %d in its record", image.Name, l.Depth, l.FileSize, snap.LayerBytes)
		}
		if got := get(r.layers.Blocks(t.Context(), snap.Layer))(t).Content(); got != snap.ContentDigest {
			t.Errorf("%s has the content %s, want %s", image.Name, got.Short(), snap.ContentDigest.Short())
		}
		_, mark, _ := strings.Cut(image.Name, " ")
		if got := fmt.Sprint(written(t, r, snap.SnapshotID)); got != mark {
			t.Errorf("%s has the byte %s, want %s", image.Name, got, mark)
		}
	}
	must(t, r.catalog.View(t.Context(), func(tx *catalog.Tx) error {
		leases, err := tx.Leases()
		if len(leases) > 0 {
			t.Errorf("got the leases %v, want none", leases)
		}
		named, lerr := tx.LayerRefs()
		if err = errors.Join(err, lerr); err != nil {
			return err
		}
		for d := range named {
			_, err = r.layers.Layer(d)
			must(t, err)
		}
		return nil
	}))
	layers := get(r.layers.Layers(t.Context()))(t)
	needed := map[digest.Digest]bool{}
	for d := range get(r.named(t.Context()))(t) {
		for d != "" {
			needed[d], d = true, get(r.layers.Layer(d))(t).Parent
		}
	}
	for _, l := range layers {
		if !needed[l.Digest] {
			t.Errorf("the layer %s is there and nothing needs it", l.Digest.Short())
		}
		must(t, r.layers.VerifyLayer(t.Context(), l.Digest, ami.NoProgress.Step("", 0)))
	}
}

// mergeAllChains merges as a person does.
func mergeAllChains(t *testing.T, r *Region) []MergedChain {
	t.Helper()
	merged, err := r.MergeChains(t.Context(), MergeInput{})
	must(t, err)
	return merged
}

// Every image of a lineage costs what changed, also the ninth; when its chain has
// been merged the next ones stand on the merged layer, with nothing to compare.
func TestMergeChains(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	r := h.open(t)
	inst, v := noisy(t, r)
	images := imagesOf(t, r, inst, v, 1, past+4)
	if !r.MergeDue() || h.open(t).MergeDue() {
		t.Error("who wrote long chains is not told, or who did not is")
	}
	for i, image := range images {
		if l := topOf(t, r, image); l.FileSize > 600<<10 || l.Depth != i+2 {
			t.Errorf("image %d costs %d bytes and stands on %d layers", i+1, l.FileSize, l.Depth)
		}
	}
	old := topOf(t, r, images[past+3])
	l := &listener{}
	merged := mergeAllChains(t, h.open(t, tellingTo(l)))
	if len(merged) != 5 || merged[0].Before != past+1 || !slices.Equal(merged[0].Snapshots, []ami.SnapshotID{rootSnapshot(images[past-1])}) {
		t.Errorf("got %+v, want the last five merged", merged)
	}
	if want := fmt.Sprintf("merging the chain of %s (%d layers)", rootSnapshot(images[past-1]), past+1); !slices.Contains(l.steps, want) {
		t.Errorf("got the steps %q, want %q among them", l.steps, want)
	}
	wantIntact(t, r, images)
	if _, err := r.layers.Layer(old.Digest); !errors.Is(err, snapshot.ErrNotFound) {
		t.Errorf("the layer that was replaced: got %v, want it removed", err)
	}
	if again := mergeAllChains(t, r); len(again) > 0 {
		t.Errorf("merged again: got %+v, want nothing to do", again)
	}

	// The next one stands on the merged layer, and costs as little.
	last := topOf(t, r, images[past+3])
	if now := get(r.volumeRecord(t.Context(), v.VolumeID))(t); now.TrackedLayer != last.Digest || now.TrackedBy != v.TrackedBy || now.Layer != v.Layer {
		t.Errorf("the volume is %+v, want it tracked since %s", now, last.Digest.Short())
	}
	next := imagesOf(t, r, inst, v, past+5, 1)
	if l := topOf(t, r, next[0]); l.Parent != last.Digest || l.FileSize > 600<<10 {
		t.Errorf("the next image stands on %s and costs %d bytes, want %s and little", l.Parent.Short(), l.FileSize, last.Digest.Short())
	}
	launched(t, r, RunInstancesInput{Image: images[past+3].Name})
	diff, err := r.DiffSnapshots(t.Context(), rootSnapshot(images[past+3]), rootSnapshot(next[0]))
	if must(t, err); len(diff.Indexes) != 1 {
		t.Errorf("got %d changed blocks, want 1", len(diff.Indexes))
	}

	// What nobody needs goes as ever.
	terminate(t, r, get(r.DescribeInstances(t.Context(), DescribeInput{}))(t)[1].InstanceID, inst.InstanceID)
	for _, i := range get(r.DescribeImages(t.Context(), DescribeInput{}))(t) {
		_, err := r.DeregisterImage(t.Context(), i.ImageID, true, false)
		must(t, err)
	}
	if left := get(r.layers.Layers(t.Context()))(t); len(left) > 0 {
		t.Errorf("%d layers are left when all images are gone", len(left))
	}
}

// A head that was made before the merge keeps standing on the long chain, which
// stays for it; images of it stand on the merged layer.
func TestMergeUnderAHead(t *testing.T) {
	t.Parallel()
	r, _ := open(t)
	inst, v := noisy(t, r)
	images := imagesOf(t, r, inst, v, 1, past)
	old := topOf(t, r, images[past-1])
	early := launched(t, r, RunInstancesInput{Image: images[past-1].Name})
	own := volumeOf(t, r, early, "/dev/sda1")
	if merged := mergeAllChains(t, r); len(merged) != 1 {
		t.Fatalf("got %+v, want one chain merged", merged)
	}
	now := get(r.volumeRecord(t.Context(), own.VolumeID))(t)
	to := topOf(t, r, images[past-1])
	if now.Layer != old.Digest || now.TrackedBy != own.TrackedBy || now.TrackedLayer != to.Digest {
		t.Errorf("got %+v, want the head where it was and its next image on %s", now, to.Digest.Short())
	}
	wantIntact(t, r, images)
	stop(t, r, early.InstanceID)
	next := imagesOf(t, r, early, own, 77, 1)
	if l := topOf(t, r, next[0]); l.Parent != to.Digest || written(t, r, rootSnapshot(next[0])) != 77 {
		t.Errorf("its image stands on %s, want %s", l.Parent.Short(), to.Digest.Short())
	}
	_, err := r.StartInstances(t.Context(), []ami.InstanceID{early.InstanceID}, false)
	must(t, err)
	terminate(t, r, early.InstanceID)
	_, err = r.dropLayers(t.Context(), old.Digest) // as kami store gc does
	must(t, err)
	wantIntact(t, r, append(images, next...))
}

// Snapshots that are deleted while their chain is merged do not come back, and
// leave nothing.
func TestMergeOfWhatIsDeleted(t *testing.T) {
	t.Parallel()
	for _, when := range []string{"begun", "done"} {
		t.Run(when, func(t *testing.T) {
			h := newHouse(t)
			r := h.open(t)
			inst, v := noisy(t, r)
			images := imagesOf(t, r, inst, v, 1, past+1)
			remove := func(string) {
				_, err := r.DeregisterImage(t.Context(), images[past-1].ImageID, true, false)
				must(t, err)
			}
			l := &listener{onStep: remove}
			if when == "done" {
				l = &listener{onDone: remove}
			}
			var once bool
			guard := func(fn func(string)) func(string) {
				return func(name string) {
					if fn != nil && !once && strings.HasPrefix(name, "merging ") {
						once = true
						fn(name)
					}
				}
			}
			l.onStep, l.onDone = guard(l.onStep), guard(l.onDone)
			merged := mergeAllChains(t, h.open(t, tellingTo(l)))
			if len(merged) != 1 || merged[0].Snapshots[0] != rootSnapshot(images[past]) {
				t.Errorf("got %+v, want only the ninth image's", merged)
			}
			if _, err := r.snapshot(t.Context(), rootSnapshot(images[past-1])); err == nil {
				t.Error("the snapshot is there again")
			}
			wantIntact(t, r, append(images[:past-1:past-1], images[past]))
		})
	}
}

// Two that merge at once do it once, and a third in the background goes away.
func TestMergeAtOnce(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	rs := []*Region{h.open(t), h.open(t), h.open(t)}
	inst, v := noisy(t, rs[0])
	images := imagesOf(t, rs[0], inst, v, 1, past+1)
	all := make([][]MergedChain, len(rs))
	for _, err := range race(rs, func(n int, r *Region) (err error) {
		all[n], err = r.MergeChains(t.Context(), MergeInput{Background: n == 2})
		return err
	}) {
		must(t, err)
	}
	if got := slices.Concat(all...); len(got) != 2 {
		t.Errorf("got %+v, want two chains merged once", got)
	}
	wantIntact(t, rs[0], images)

	turn, err := rs[0].turnToMerge(t.Context(), true)
	must(t, err)
	ended, cancel := context.WithCancel(t.Context())
	waits := make(chan error)
	go func() {
		_, err := rs[1].turnToMerge(ended, false)
		waits <- err
	}()
	for { // until that one waits
		lock, free, err := durable.TryLock(rs[0].lockPath("merge-next"))
		must(t, err)
		if !free {
			break
		}
		must(t, lock.Unlock())
	}
	if third, err := rs[2].turnToMerge(t.Context(), true); third != nil || err != nil {
		t.Errorf("got a turn (%v) in the background while another one waits for it", err)
	}
	cancel()
	if err := <-waits; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v for who waits no more, want context.Canceled", err)
	}
	must(t, turn.Unlock())
}

// Images are made while their chains are merged: each has what it was made of.
func TestCreateWhileMerging(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	rs := []*Region{h.open(t), h.open(t)}
	inst, v := noisy(t, rs[0])
	images := imagesOf(t, rs[0], inst, v, 1, past)
	done := make(chan struct{})
	for _, err := range race(rs, func(n int, r *Region) error {
		if n == 0 {
			defer close(done)
			images = append(images, imagesOf(t, r, inst, v, past+1, 16)...)
			return nil
		}
		for {
			if _, err := r.MergeChains(t.Context(), MergeInput{Background: true}); err != nil {
				return err
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
	mergeAllChains(t, rs[0])
	for _, image := range images {
		if l := topOf(t, rs[0], image); l.FileSize > 2<<20 {
			t.Errorf("%s has %d bytes for what changed", image.Name, l.FileSize)
		}
	}
	wantIntact(t, rs[0], images)
}

// An interrupt leaves what there was; a chain that is damaged does not keep the
// others from being merged.
func TestMergeThatFails(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	r := h.open(t)
	inst, v := noisy(t, r)
	images := imagesOf(t, r, inst, v, 1, past+1)
	before := look(t, r, h.driver)
	ctx, cancel := context.WithCancel(t.Context())
	l := &listener{onStep: func(name string) {
		if strings.HasPrefix(name, "merging ") {
			cancel()
		}
	}}
	if _, err := h.open(t, tellingTo(l)).MergeChains(ctx, MergeInput{}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
	if diff := cmp.Diff(before, look(t, r, h.driver)); diff != "" {
		t.Errorf("an interrupt changed something (-before +after):\n%s", diff)
	}
	// A record that says another content than the layer has.
	must(t, r.catalog.Update(t.Context(), func(tx *catalog.Tx) error {
		s, err := tx.Snapshot(rootSnapshot(images[past-1]))
		if err != nil {
			return err
		}
		s.ContentDigest = digest.Of(nil)
		return tx.PutSnapshot(s)
	}))
	merged, err := r.MergeChains(t.Context(), MergeInput{})
	wantSays(t, err, string(rootSnapshot(images[past-1])))
	if len(merged) != 1 || topOf(t, r, images[past-1]).Depth != past+1 || topOf(t, r, images[past]).Depth > snapshot.MaxDepth {
		t.Errorf("got %+v, want only the other chain merged", merged)
	}
}

// A killed merge leaves the long chain, which the next one merges.
func TestKilledMerge(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	r := h.open(t)
	inst, v := noisy(t, r)
	images := imagesOf(t, r, inst, v, 1, past+1)
	before := look(t, r, h.driver)
	leave(t, r, "merge-"+topOf(t, r, images[past-1]).Digest.Short(), func(*catalog.Tx) error { return nil })
	if diff := cmp.Diff(before, look(t, h.open(t), h.driver)); diff != "" {
		t.Errorf("it is not as it was (-before +after):\n%s", diff)
	}
	mergeAllChains(t, r)
	wantIntact(t, r, images)
	for _, l := range get(r.layers.Layers(t.Context()))(t) {
		path := r.path("layers", l.Digest.Hex()+".qcow2")
		if out, err := exec.CommandContext(t.Context(), "qemu-img", "check", "-q", path).CombinedOutput(); err != nil {
			t.Errorf("qemu-img: %v\n%s", err, out)
		}
		_, err := os.Stat(path)
		must(t, err)
	}
}
