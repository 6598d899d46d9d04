package region

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
	"github.com/kamivm/kami/pkg/digest"
	"github.com/kamivm/kami/pkg/hypervisor"
	"github.com/kamivm/kami/pkg/internal/durable"
)

// makeOld makes what was just written old enough to be garbage.
func makeOld(t *testing.T, r *Region, paths ...string) {
	t.Helper()
	old := time.Now().Add(-2 * gcGrace)
	for _, path := range paths {
		must(t, filepath.WalkDir(r.path(path), func(path string, _ os.DirEntry, err error) error {
			if err == nil {
				err = os.Chtimes(path, old, old)
			}
			return err
		}))
	}
}

// paths are those of some garbage.
func paths(all []Garbage) (out []string) {
	for _, g := range all {
		out = append(out, g.Path)
	}
	return out
}

func layerName(d digest.Digest) string { return "layers/" + d.Hex() + ".qcow2" }

// wantPlan checks what is garbage and what is kept, by paths.
func wantPlan(t *testing.T, plan GCPlan, goes, stays []string) {
	t.Helper()
	if diff := cmp.Diff(goes, paths(plan.Files)); diff != "" {
		t.Errorf("garbage (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(stays, paths(plan.Kept)); diff != "" {
		t.Errorf("kept (-want +got):\n%s", diff)
	}
	var layers []string
	for _, d := range plan.Layers {
		layers = append(layers, layerName(d))
	}
	sum := int64(0)
	for _, g := range plan.Files {
		if sum += g.Bytes; g.Reason == "" {
			t.Errorf("%s goes for no reason", g.Path)
		}
	}
	for _, g := range plan.Kept {
		if g.Reason == "" {
			t.Errorf("%s stays for no reason", g.Path)
		}
	}
	if want := slices.DeleteFunc(slices.Clone(goes), func(p string) bool { return !strings.HasSuffix(p, ".qcow2") || !strings.HasPrefix(p, "layers/") }); !slices.Equal(layers, want) || sum != plan.Bytes {
		t.Errorf("got the layers %v and %d bytes, want %v and %d", layers, plan.Bytes, want, sum)
	}
}

func TestCollectGarbage(t *testing.T) {
	t.Parallel()
	r, d := open(t)
	base, child := lineage(t, r)
	keep := running(t, r)
	parent, top := layerOf(t, r, base), layerOf(t, r, child)
	collect := func(dry bool, goes, stays []string) {
		t.Helper()
		wantPlan(t, get(r.CollectGarbage(t.Context(), dry))(t), goes, stays)
	}
	collect(false, nil, nil)
	forget(t, r, base)
	collect(false, nil, nil) // the child stands on it
	forget(t, r, child)

	// While somebody is at work young layers stay, and what they stand on: a
	// record may be on its way.
	j, err := r.begin(t.Context(), nil, string(ami.NewVolumeID()))
	must(t, err)
	collect(false, nil, []string{layerName(top)})
	makeOld(t, r, layerName(parent))
	collect(false, nil, []string{layerName(top)})
	makeOld(t, r, layerName(top))
	collect(true, []string{layerName(top), layerName(parent)}, nil)

	// What a lease names stays, however old.
	held, err := r.holdLayer(t.Context(), j.ids[0], top)
	if must(t, err); !held {
		t.Fatal("the layer is not held")
	}
	collect(false, nil, nil)
	j.close(t.Context())

	// What a process has open stays, though no record knows of it.
	release := openImage(t, r.layerFile(parent))
	collect(false, []string{layerName(top)}, []string{layerName(parent)})
	release()

	before := look(t, r, d)
	collect(true, []string{layerName(parent)}, nil)
	if diff := cmp.Diff(before, look(t, r, d)); diff != "" {
		t.Errorf("the dry run changed something (-before +after):\n%s", diff)
	}
	collect(false, []string{layerName(parent)}, nil)
	collect(false, nil, nil)
	if got, want := look(t, r, d).Layers, []digest.Digest{volumeOf(t, r, keep, "/dev/sda1").Layer}; !slices.Equal(got, want) {
		t.Errorf("got the layers %v, want that of the instance, %v", got, want)
	}
	if left, _ := os.ReadDir(r.path("layers")); len(left) != 2 { // the layer and its list of blocks
		t.Errorf("got the files %v, want two", left)
	}
}

// openImage has a process open an image for reading, as QEMU does with what a disk
// stands on, until the test ends or release is called.
func openImage(t *testing.T, path string) (release func()) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "qemu-io", "-r", "-f", "qcow2", path)
	stdin, err := cmd.StdinPipe()
	must(t, err)
	stdout, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	release = func() {
		stdin.Close()
		cmd.Process.Kill()
		cmd.Wait()
	}
	t.Cleanup(release)
	if _, err := stdin.Write([]byte("read 0 512\n")); err != nil {
		t.Fatal(err)
	}
	if _, err := stdout.Read(make([]byte, 64)); err != nil { // it has answered
		t.Fatal(err)
	}
	return release
}

// A layer whose header is damaged is collected as well, when nothing needs it.
func TestCollectDamagedGarbage(t *testing.T) {
	t.Parallel()
	r, d := open(t)
	i := image(t, r, "base")
	damage(t, r, layerOf(t, r, i), 0)
	forget(t, r, i)
	_, err := r.CollectGarbage(t.Context(), false)
	must(t, err)
	if got := look(t, r, d).Layers; len(got) > 0 {
		t.Errorf("got the layers %v, want none", got)
	}
}

// While a layer that is needed cannot be read, or is missing, nothing is garbage
// that it may stand on.
func TestNothingIsGarbageUnderDamage(t *testing.T) {
	t.Parallel()
	for name, harm := range map[string]func(t *testing.T, r *Region, d digest.Digest){
		"unreadable": func(t *testing.T, r *Region, d digest.Digest) { damage(t, r, d, 0) },
		"missing":    func(t *testing.T, r *Region, d digest.Digest) { must(t, os.Rename(r.layerFile(d), r.path("lost"))) },
	} {
		t.Run(name, func(t *testing.T) {
			r, _ := open(t)
			base, child := lineage(t, r)
			parent, top := layerOf(t, r, base), layerOf(t, r, child)
			harm(t, r, top)
			_, err := r.DeregisterImage(t.Context(), base.ImageID, true, false)
			must(t, err)
			plan := get(r.CollectGarbage(t.Context(), false))(t)
			wantPlan(t, plan, nil, []string{layerName(parent)})
			if !strings.Contains(plan.Kept[0].Reason, top.Short()) {
				t.Errorf("got the reason %q, want %s named", plan.Kept[0].Reason, top.Short())
			}
			_, err = r.DeregisterImage(t.Context(), child.ImageID, true, false) // then it is
			must(t, err)
			_, err = r.CollectGarbage(t.Context(), false)
			must(t, err)
			if left := get(r.layers.Layers(t.Context()))(t); len(left) > 0 {
				t.Errorf("got the layers %v, want none", left)
			}
		})
	}
}

// Disks and folders without a record go only when that is asked for, and not while
// anybody has them.
func TestOrphans(t *testing.T) {
	t.Parallel()
	r, d := open(t)
	inst, stays := running(t, r), running(t, r)
	v := volumeOf(t, r, inst, "/dev/sda1")
	head, dir, layer := "volumes/"+string(v.VolumeID)+".qcow2", "instances/"+string(inst.InstanceID), layerName(v.Layer)
	i := get(r.ResolveImage(t.Context(), string(inst.ImageID), false))(t)
	release := hold(t, r, v.VolumeID)
	// The catalog is one of yesterday.
	must(t, r.catalog.Update(t.Context(), func(tx *catalog.Tx) error {
		for _, err := range []error{tx.DeleteVolume(v.VolumeID), tx.DeleteInstance(inst.InstanceID)} {
			if err != nil {
				return err
			}
		}
		for _, id := range []string{string(v.VolumeID), string(inst.InstanceID)} {
			if err := tx.DeleteLease(catalog.GonePrefix + id); err != nil {
				return err
			}
		}
		return nil
	}))
	forget(t, r, i)
	plan := func(orphans bool, goes, kept []string) GCPlan {
		t.Helper()
		p := get(r.PlanGarbage(t.Context(), GCInput{Orphans: orphans}))(t)
		wantPlan(t, p, goes, kept)
		return p
	}
	remove := func(p GCPlan, goes []string) {
		t.Helper()
		wantPlan(t, get(r.RemoveGarbage(t.Context(), p))(t), goes, paths(p.Kept))
	}
	// The guest runs: whatever is asked for.
	makeOld(t, r, head, dir)
	plan(true, nil, []string{head, dir})
	release()
	must(t, os.Chtimes(r.path(head), time.Now(), time.Now()))
	plan(true, nil, []string{head, dir}) // it was written to a moment ago
	makeOld(t, r, head)
	plan(true, []string{layer, head}, []string{dir}) // the hypervisor knows the guest
	must(t, d.Destroy(t.Context(), inst.InstanceID))
	must(t, os.Chtimes(r.path(dir), time.Now(), time.Now()))
	plan(true, []string{layer, head}, []string{dir}) // it was used a moment ago
	makeOld(t, r, dir)

	// Not asked for, nothing goes; nor by a plan that was made before.
	p := plan(false, nil, []string{head, dir})
	remove(p, nil)
	p = plan(true, []string{layer, head, dir}, nil)
	lock, free, err := durable.TryLock(r.lockPath(string(v.VolumeID)))
	if must(t, err); !free {
		t.Fatal("the volume is locked")
	}
	plan(true, []string{dir}, []string{head})
	must(t, lock.Unlock())
	must(t, r.catalog.Update(t.Context(), func(tx *catalog.Tx) error {
		return tx.PutLease(catalog.Lease{ID: string(v.VolumeID), Created: time.Now()})
	}))
	plan(true, []string{dir}, []string{head})
	remove(p, []string{dir}) // of the plan, what is garbage still
	must(t, r.catalog.Update(t.Context(), func(tx *catalog.Tx) error { return tx.DeleteLease(string(v.VolumeID)) }))
	p = plan(true, []string{layer, head}, nil)
	remove(p, []string{head, layer})
	want := []string{"volumes/" + string(volumeOf(t, r, stays, "/dev/sda1").VolumeID) + ".qcow2", "instances/" + string(stays.InstanceID)}
	if diff := cmp.Diff(want, files(t, r)); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
}

// A draft without a record is no other: it stays until that is asked for.
func TestOrphanDraft(t *testing.T) {
	t.Parallel()
	r, _ := open(t)
	id := ami.NewSnapshotID()
	must(t, r.layers.CreateDraft(id, 1<<20, time.Hour))
	path := "drafts/" + string(id)
	plan := func(orphans bool, goes, kept []string) {
		t.Helper()
		wantPlan(t, get(r.PlanGarbage(t.Context(), GCInput{Orphans: orphans}))(t), goes, kept)
	}
	plan(true, nil, []string{path}) // young
	makeOld(t, r, path)
	plan(false, nil, []string{path})
	d := get(r.layers.OpenDraft(id))(t)
	must(t, d.Share())
	plan(true, nil, []string{path})
	must(t, d.Close())
	p := get(r.PlanGarbage(t.Context(), GCInput{Orphans: true}))(t)
	wantPlan(t, get(r.RemoveGarbage(t.Context(), p))(t), []string{path}, nil)
	plan(true, nil, nil)
}

// A hypervisor that cannot be asked may run the guest.
func TestOrphanWithoutHypervisor(t *testing.T) {
	t.Parallel()
	r, _ := open(t, func(o *Options) {
		o.NewDriver = func(context.Context, string) (hypervisor.Driver, error) { return nil, hypervisor.ErrUnreachable }
	})
	dir := "instances/" + string(ami.NewInstanceID())
	must(t, os.Mkdir(r.path(dir), 0o711))
	makeOld(t, r, dir)
	plan := get(r.PlanGarbage(t.Context(), GCInput{Orphans: true}))(t)
	wantPlan(t, plan, nil, []string{dir})
	if !strings.Contains(plan.Kept[0].Reason, "cannot be asked") {
		t.Errorf("got the reason %q, want that it cannot be asked", plan.Kept[0].Reason)
	}
}

// Small things that killed commands left are garbage.
func TestLeftFiles(t *testing.T) {
	t.Parallel()
	r, _ := open(t)
	i := image(t, r, "base")
	blocks := "layers/" + digest.Of([]byte("gone")).Hex() + ".blocks"
	lock := func(id string) string { return "tmp/" + id + ".lock" }
	gone, young, held := lock(string(ami.NewSnapshotID())), lock(string(ami.NewImageID())), lock(string(ami.NewInstanceID()))
	there, strange := lock(string(i.ImageID)), lock("something")
	for _, path := range []string{blocks, gone, young, held, there, strange} {
		must(t, os.WriteFile(r.path(path), []byte("x"), 0o600))
	}
	makeOld(t, r, gone, held, there, strange)
	l, free, err := durable.TryLock(r.path(held))
	if must(t, err); !free {
		t.Fatal("the lock is held")
	}
	defer l.Unlock()
	wantPlan(t, get(r.CollectGarbage(t.Context(), false))(t), []string{blocks, gone}, nil)
	for path, want := range map[string]bool{blocks: false, gone: false, young: true, held: true, there: true, strange: true} {
		if _, err := os.Stat(r.path(path)); (err == nil) != want {
			t.Errorf("%s is there: %v, want %v", path, err == nil, want)
		}
	}
}

// So are the locks of work whose process was killed before it had a lease, and not
// those of work under way, nor the places where merges wait.
func TestLeftLocksOfWork(t *testing.T) {
	t.Parallel()
	r, _ := open(t)
	lock := func(id string) string { return "tmp/" + id + ".lock" }
	d, id := digest.Of(nil), ami.NewSnapshotID()
	left := []string{
		lock(builderPrefix + string(ami.NewInstanceID())), lock(draftPrefix + string(id)), lock("merge-" + d.Short()), lock("token-" + d.Hex()),
	}
	stays := []string{lock("merge"), lock("merge-next"), lock("draft-of-mine"), lock("power-" + string(ami.NewInstanceID()))}
	leased, young := draftPrefix+string(ami.NewSnapshotID()), lock("merge-"+digest.Of([]byte("young")).Short())
	held := lock("token-" + digest.Of([]byte("held")).Hex())
	j, err := r.begin(t.Context(), nil, leased)
	must(t, err)
	for _, path := range slices.Concat(left, stays, []string{young, held}) {
		must(t, os.WriteFile(r.path(path), []byte("x"), 0o600))
	}
	makeOld(t, r, slices.Concat(left, stays, []string{held, lock(leased)})...)
	l, free, err := durable.TryLock(r.path(held))
	if must(t, err); !free {
		t.Fatal("the lock is held")
	}
	defer l.Unlock()
	wantPlan(t, get(r.CollectGarbage(t.Context(), false))(t), left, nil)
	for _, path := range append(stays, young, held, lock(leased)) {
		_, err := os.Stat(r.path(path))
		must(t, err)
	}
	j.close(t.Context())
}

// A plan can be kept as text and carried out: what is not in it stays.
func TestPlanAsText(t *testing.T) {
	t.Parallel()
	r, _ := open(t)
	one, two := image(t, r, "one"), image(t, r, "two")
	a, b := layerOf(t, r, one), layerOf(t, r, two)
	forget(t, r, one)
	text, err := json.Marshal(get(r.PlanGarbage(t.Context(), GCInput{}))(t))
	must(t, err)
	forget(t, r, two)
	var plan GCPlan
	must(t, json.Unmarshal(text, &plan))
	wantPlan(t, get(r.RemoveGarbage(t.Context(), plan))(t), []string{layerName(a)}, nil)
	wantPlan(t, get(r.PlanGarbage(t.Context(), GCInput{}))(t), []string{layerName(b)}, nil)
}
