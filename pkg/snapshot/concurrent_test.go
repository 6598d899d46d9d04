package snapshot

import (
	"errors"
	"slices"
	"sync"
	"testing"

	"github.com/kamivm/kami/pkg/ami"
)

// Several that write the same content at once, as several processes do, all get
// the one layer.
func TestConcurrentWritersOfTheSame(t *testing.T) {
	s := open(t)
	base := write(t, s, raw(t, 0), "")
	disk := noise(t, 4, 1)
	const writers = 8
	layers, errs := make([]Layer, writers), make([]error, writers)
	var wg sync.WaitGroup
	for i := range writers {
		own, err := Open(s.root)
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			do := task{Disk: disk}
			if i%2 == 1 { // and as many write it on another one
				do.Parent = base.Digest
			}
			layers[i], errs[i] = do.write(own)
			errs[i] = errors.Join(errs[i], own.Sweep())
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	for i, l := range layers {
		if l.Digest != layers[i%2].Digest || l.Content != layers[0].Content {
			t.Errorf("writer %d got the layer %s of %s, want %s of %s", i, l.Digest, l.Content, layers[i%2].Digest, layers[0].Content)
		}
		if err := s.VerifyLayer(t.Context(), l.Digest, ami.NoProgress.Step("", 0)); err != nil {
			t.Errorf("writer %d: %v", i, err)
		}
	}
	var want []string
	for _, l := range []Layer{base, layers[0], layers[1]} {
		want = append(want, "layers/"+l.Digest.Hex()+".qcow2", "layers/"+l.Digest.Hex()+".blocks")
	}
	got := tree(t, s)
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("got the files %q, want %q", got, want)
	}
}
