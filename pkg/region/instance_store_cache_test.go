package region

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
	"github.com/kamivm/kami/pkg/digest"
)

// cachedLayers are the layers of the cache, by their keys.
func cachedLayers(t *testing.T, r *Region) map[string]digest.Digest {
	t.Helper()
	out := map[string]digest.Digest{}
	for _, c := range get(r.readRecords(t.Context()))(t).cached {
		out[c.Key] = c.Layer
	}
	return out
}

// lastUsed makes all that is cached last used at some time ago.
func lastUsed(t *testing.T, r *Region, ago time.Duration) {
	t.Helper()
	must(t, r.catalog.Update(t.Context(), func(tx *catalog.Tx) error {
		all, err := tx.CachedLayers()
		for _, c := range all {
			c.Used = time.Now().Add(-ago)
			err = tx.PutCachedLayer(c)
		}
		return err
	}))
}

// collect collects garbage, and returns the files that it removed.
func collect(t *testing.T, r *Region, in GCInput) (out []string) {
	t.Helper()
	for _, g := range get(r.RemoveGarbage(t.Context(), get(r.PlanGarbage(t.Context(), in))(t)))(t).Files {
		if strings.HasPrefix(g.Path, "layers/") {
			out = append(out, g.Path)
		}
	}
	return out
}

func TestCacheIsCollected(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		do   func(t *testing.T, r *Region, inst ami.Instance)
		in   GCInput
		goes bool
	}{
		{"unused", func(t *testing.T, r *Region, i ami.Instance) { terminate(t, r, i.InstanceID) }, GCInput{}, false},
		{"asked for", func(t *testing.T, r *Region, i ami.Instance) { terminate(t, r, i.InstanceID) }, GCInput{Cache: true}, true},
		{"asked for, in use", func(*testing.T, *Region, ami.Instance) {}, GCInput{Cache: true}, false},
		{"unused for long", func(t *testing.T, r *Region, i ami.Instance) {
			terminate(t, r, i.InstanceID)
			lastUsed(t, r, cacheAge+time.Hour)
		}, GCInput{}, true},
		{"in use for long", func(t *testing.T, r *Region, _ ami.Instance) { lastUsed(t, r, cacheAge+time.Hour) }, GCInput{}, false},
		{"unused for long, then used", func(t *testing.T, r *Region, i ami.Instance) {
			lastUsed(t, r, cacheAge+time.Hour)
			terminate(t, r, launched(t, r, RunInstancesInput{Image: "web"}).InstanceID, i.InstanceID)
		}, GCInput{}, false},
		{"without an image, in use", func(t *testing.T, r *Region, i ami.Instance) {
			get(r.DeregisterImage(t.Context(), i.ImageID, false, false))(t)
		}, GCInput{}, false},
		{"without an image", func(t *testing.T, r *Region, i ami.Instance) {
			terminate(t, r, i.InstanceID)
			must(t, r.catalog.Update(t.Context(), func(tx *catalog.Tx) error { return tx.DeleteImage(i.ImageID) }))
		}, GCInput{}, true},
		{"with another image", func(t *testing.T, r *Region, i ami.Instance) {
			in := ofBundle("web")
			in.Name = "again"
			get(r.RegisterImage(t.Context(), in))(t)
			terminate(t, r, i.InstanceID)
			get(r.DeregisterImage(t.Context(), i.ImageID, false, false))(t)
		}, GCInput{}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r, _ := open(t)
			inst := storeGuest(t, r)
			layer := volumeOf(t, r, inst, "/dev/sda1").Layer
			tt.do(t, r, inst)
			plan := get(r.PlanGarbage(t.Context(), tt.in))(t)
			if got := slices.Contains(plan.Layers, layer); got != tt.goes {
				t.Errorf("got the plan %+v, want the layer in it: %v", plan.Files, tt.goes)
			}
			collect(t, r, tt.in)
			_, err := os.Lstat(r.path("layers", layer.Hex()+".qcow2"))
			if gone := os.IsNotExist(err); gone != tt.goes || len(cachedLayers(t, r)) > 0 && tt.goes {
				t.Errorf("the layer is gone: %v, want %v; the records are %v", gone, tt.goes, cachedLayers(t, r))
			}
			found := get(r.VerifyStore(t.Context(), VerifyInput{}))(t).Results
			if i := slices.IndexFunc(found, func(v VerifyResult) bool { return !v.OK }); i >= 0 {
				t.Errorf("not well: %+v", found[i])
			}
			if _, err := r.ResolveImage(t.Context(), "web", false); err == nil { // it is made again
				launched(t, r, RunInstancesInput{Image: "web"})
			}
		})
	}
}

// The cached root goes with the last image of its bundle.
func TestDeregisteringFreesTheCache(t *testing.T) {
	t.Parallel()
	r, _ := open(t)
	inst := storeGuest(t, r)
	layer := volumeOf(t, r, inst, "/dev/sda1").Layer
	u := get(r.StoreUsage(t.Context()))(t)
	if c := u.Images[0]; c.Virtual != 2<<20 || c.Chain == 0 || c.Chain != c.Unique || c.Freed != 0 || u.Cache != 0 || u.Garbage != 0 {
		t.Errorf("got %+v, want a root that is in use", u)
	}
	terminate(t, r, inst.InstanceID)
	u = get(r.StoreUsage(t.Context()))(t)
	if c := u.Images[0]; c.Freed != c.Chain || u.Cache != c.Chain || u.Layers != c.Chain {
		t.Errorf("got %+v, want a root that is cached", u)
	}
	in := ofBundle("web")
	in.Name = "again"
	again := get(r.RegisterImage(t.Context(), in))(t)
	if u = get(r.StoreUsage(t.Context()))(t); u.Images[0].Freed != 0 || u.Images[1].Shared == 0 {
		t.Errorf("got %+v, want a root of two images", u.Images)
	}
	get(r.DeregisterImage(t.Context(), inst.ImageID, false, false))(t)
	get(r.layers.Layer(layer))(t)
	get(r.DeregisterImage(t.Context(), again.ImageID, false, false))(t)
	if _, err := os.Lstat(r.path("layers", layer.Hex()+".qcow2")); !os.IsNotExist(err) || len(cachedLayers(t, r)) > 0 {
		t.Errorf("the layer is left: %v, with the records %v", err, cachedLayers(t, r))
	}
}

// A cached layer that is gone, or damaged and taken away, is made again.
func TestCachedLayerIsMadeAgain(t *testing.T) {
	t.Parallel()
	r, _ := open(t)
	inst := storeGuest(t, r)
	layer := volumeOf(t, r, inst, "/dev/sda1").Layer
	terminate(t, r, inst.InstanceID)
	path := r.path("layers", layer.Hex()+".qcow2")
	spoil(t, path)
	found := get(r.VerifyStore(t.Context(), VerifyInput{}))(t).Results
	i := slices.IndexFunc(found, func(v VerifyResult) bool { return v.Layer == layer })
	if i < 0 || found[i].OK || !strings.HasPrefix(found[i].Advice, "Remove "+path) || !slices.Contains(found[i].Images, inst.ImageID) {
		t.Errorf("got %+v, want to be told to remove the layer", found)
	}
	must(t, os.Remove(path))
	got := launched(t, r, RunInstancesInput{Image: "web"})
	if v := volumeOf(t, r, got, "/dev/sda1"); v.Layer != layer {
		t.Errorf("got the layer %s, want %s", v.Layer, layer)
	}
	if found := get(r.VerifyStore(t.Context(), VerifyInput{}))(t).Results; slices.ContainsFunc(found, func(v VerifyResult) bool { return !v.OK }) {
		t.Errorf("not well: %+v", found)
	}
}

// What the cache forgets between a look at it and the launch's record is made again.
func TestCacheThatGoesMeanwhile(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	other := h.open(t)
	storeImage(t, other, "web")
	times := 0
	l := &listener{onDone: func(name string) {
		if strings.HasPrefix(name, "formatting ") { // the root has been fetched before
			times++
			got := other.catalog.Update(t.Context(), func(tx *catalog.Tx) error {
				all, err := tx.CachedLayers()
				for _, c := range all {
					err = tx.DeleteCachedLayer(c.Key)
				}
				return err
			})
			must(t, got)
		}
	}}
	r := h.open(t, tellingTo(l))
	inst := launched(t, r, RunInstancesInput{Image: "web", BlockDeviceMappings: mapping(t, "/dev/sdb=ephemeral0")})
	if times != 1 || volumeOf(t, r, inst, "/dev/sda1").Layer == "" || len(cachedLayers(t, r)) != 2 {
		t.Errorf("after %d times it has no layer, or is not in the cache: %v", times, cachedLayers(t, r))
	}
	if left := get(filepath.Glob(r.path("tmp", "cached-*")))(t); len(left) > 0 {
		t.Errorf("locks are left: %v", left)
	}
}
