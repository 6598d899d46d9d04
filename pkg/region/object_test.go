package region

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
)

// What no record names of the objects is garbage, and nothing else of them.
func TestGarbageObjects(t *testing.T) {
	t.Parallel()
	r, _ := open(t)
	k := kernel(t, r, "linux")
	kept := get(r.ResolveKernel(t.Context(), string(k), ""))(t)
	uefi := image(t, r, "uefi")
	uefi.UEFIData = get(r.putObject(t.Context(), []byte("variables")))(t)
	must(t, r.catalog.Update(t.Context(), func(tx *catalog.Tx) error { return tx.PutImage(uefi) }))
	stray := get(r.putObject(t.Context(), []byte("stray")))(t)
	must(t, os.WriteFile(r.path("objects", "a-name"), []byte("of another kind"), 0o600))

	u := get(r.StoreUsage(t.Context()))(t)
	if u.Objects == 0 || u.Garbage == 0 || u.Garbage >= u.Objects {
		t.Errorf("got %+v, want objects, of which some are garbage", u)
	}
	plan := get(r.CollectGarbage(t.Context(), false))(t)
	if len(plan.Files) != 1 || plan.Files[0].Path != filepath.Join("objects", stray.Hex()) {
		t.Errorf("got %+v, want the stray object alone", plan.Files)
	}
	for _, path := range []string{r.objectPath(kept.Data), r.objectPath(uefi.UEFIData), r.path("objects", "a-name")} {
		if _, err := os.Stat(path); err != nil {
			t.Errorf("%v", err)
		}
	}
	get(r.DeregisterImage(t.Context(), uefi.ImageID, false, false))(t)
	if _, err := os.Stat(r.objectPath(uefi.UEFIData)); !os.IsNotExist(err) {
		t.Errorf("the variables of an image that is gone are there still: %v", err)
	}
	// While a command is at work, what is young may be about to be named.
	stray = get(r.putObject(t.Context(), []byte("stray")))(t)
	j, err := r.begin(t.Context(), nil, builderPrefix+string(ami.NewInstanceID()))
	must(t, err)
	plan = get(r.CollectGarbage(t.Context(), false))(t)
	if len(plan.Files) != 0 || len(plan.Kept) != 1 {
		t.Errorf("got %+v, want it kept", plan)
	}
	j.abandon(t.Context())
	if _, err := os.Stat(r.objectPath(stray)); err != nil {
		t.Error(err)
	}
}
