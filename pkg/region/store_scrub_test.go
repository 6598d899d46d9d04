package region

import (
	"context"
	"errors"
	"os"
	"slices"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/digest"
	"github.com/kamivm/kami/pkg/snapshot"
)

// someLayers makes images of their own, and returns their layers.
func someLayers(t *testing.T, r *Region, names ...string) (layers []digest.Digest) {
	t.Helper()
	for _, name := range names {
		layers = append(layers, layerOf(t, r, image(t, r, name)))
	}
	slices.Sort(layers)
	return layers
}

// readBy are the layers that a verify read, in order.
func readBy(t *testing.T, r *Region, in VerifyInput) (read []digest.Digest) {
	t.Helper()
	for _, res := range get(r.VerifyStore(t.Context(), in))(t).Results {
		read = append(read, res.Layer)
	}
	return read
}

// atLast does something while the last of n small layers is being read, and others
// have been.
func atLast(r *Region, n int, do func()) func(string) {
	var added atomic.Int64
	return func(string) {
		if added.Add(1) != int64(n) {
			return
		}
		for {
			s := r.openScrub()
			for _, read := range s.Layers {
				if !s.Started.IsZero() && !read.Time.Before(s.Started) {
					do()
					return
				}
			}
			time.Sleep(time.Millisecond)
		}
	}
}

// verifyJob is a child that verifies a home and is killed at its last layer.
func verifyJob(home, layers string) error {
	n, err := strconv.Atoi(layers)
	if err != nil {
		return err
	}
	l := &listener{}
	r, err := Open(context.Background(), Options{Home: home, Progress: l})
	if err != nil {
		return err
	}
	l.onAdd = atLast(r, n, here)
	_, err = r.VerifyStore(context.Background(), VerifyInput{})
	return err
}

// TestInterruptedVerify: one that was interrupted is gone on with, those that were
// well are not read again, and what was not well is.
func TestInterruptedVerify(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	l := &listener{}
	r := h.open(t, tellingTo(l))
	layers := someLayers(t, r, "one", "two", "three", "four", "five")
	interrupt := func() Verification {
		t.Helper()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		l.onAdd = atLast(r, len(layers), cancel)
		v, err := r.VerifyStore(ctx, VerifyInput{Restart: true})
		l.onAdd = nil
		if !errors.Is(err, context.Canceled) {
			t.Fatalf("got %v, want it interrupted", err)
		}
		return v
	}
	first := interrupt()
	if n := len(first.Results); n == 0 || n == len(layers) {
		t.Fatalf("got the results of %d layers, want those of some", n)
	}
	var read []digest.Digest
	for _, res := range first.Results {
		read = append(read, res.Layer)
	}
	rest := slices.DeleteFunc(slices.Clone(layers), func(d digest.Digest) bool { return slices.Contains(read, d) })
	if got := readBy(t, r, VerifyInput{}); !slices.Equal(got, rest) {
		t.Errorf("got %v read, want what was not before: %v", got, rest)
	}
	if !l.noted("going on with the verify of") {
		t.Errorf("got the notes %q, want it said", l.notes)
	}
	// It has come to its end: the next one reads all.
	if got := readBy(t, r, VerifyInput{}); !slices.Equal(got, layers) {
		t.Errorf("got %v read, want all", got)
	}

	v := interrupt()
	// What was touched since, or damaged, is not passed over.
	touched := v.Results[0].Layer
	later := time.Now().Add(time.Minute)
	must(t, os.Chtimes(r.layerFile(touched), later, later))
	if got := readBy(t, r, VerifyInput{}); !slices.Contains(got, touched) {
		t.Errorf("got %v read, want %s among them, which was touched", got, touched.Short())
	}
	interrupt()
	if got := readBy(t, r, VerifyInput{Restart: true}); !slices.Equal(got, layers) {
		t.Errorf("got %v read, want all since that was asked for", got)
	}
	interrupt()
	s := r.openScrub() // long ago
	for d, read := range s.Layers {
		s.Layers[d] = reading{read.Time.Add(-2 * scrubAge), read.OK}
	}
	s.Started = s.Started.Add(-2 * scrubAge)
	must(t, s.keep(false))
	if got := readBy(t, r, VerifyInput{}); !slices.Equal(got, layers) {
		t.Errorf("got %v read, want all since the interruption is long past", got)
	}
	interrupt()
	must(t, os.WriteFile(r.path("verify.json"), []byte("{"), 0o600))
	if got := readBy(t, r, VerifyInput{}); !slices.Equal(got, layers) {
		t.Errorf("got %v read, want all where nothing is known", got)
	}
}

// What was found damaged before an interruption is told of, and found again.
func TestInterruptedVerifyTellsOfDamage(t *testing.T) {
	t.Parallel()
	l := &listener{}
	r, _ := open(t, tellingTo(l))
	layers := someLayers(t, r, "one", "two", "three", "four", "five")
	for _, d := range layers {
		damage(t, r, d, 4096)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	l.onAdd = atLast(r, len(layers), cancel)
	v, err := r.VerifyStore(ctx, VerifyInput{})
	if !errors.Is(err, context.Canceled) || len(v.Results) == 0 || v.Results[0].OK || len(v.Results[0].Images) != 1 {
		t.Errorf("got %+v and %v, want what was found and that it was interrupted", v, err)
	}
	l.onAdd = nil
	if got := readBy(t, r, VerifyInput{}); !slices.Equal(got, layers) {
		t.Errorf("got %v read, want all: none was well", got)
	}
}

// TestKilledVerify: what a killed process had read is not read again.
func TestKilledVerify(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	l := &listener{}
	r := h.open(t, tellingTo(l))
	layers := someLayers(t, r, "one", "two", "three", "four", "five", "six")
	kill := begun(t, "verify", h.home, strconv.Itoa(len(layers)))
	_, err := r.VerifyStore(t.Context(), VerifyInput{})
	wantCode(t, err, ami.CodeIncorrectState) // while the other one is at it
	kill()
	v := get(r.VerifyStore(t.Context(), VerifyInput{}))(t)
	if v.Passed == 0 || v.Passed+len(v.Results) != len(layers) || v.Layers != len(layers) {
		t.Errorf("got %d of %d layers passed over and %d read, want some, and all together", v.Passed, v.Layers, len(v.Results))
	}
	if !l.noted("going on with the verify of") {
		t.Errorf("got the notes %q, want it said", l.notes)
	}
}

// TestSample: samples come by all layers before they come by one again, and by
// those that are not well each time.
func TestSample(t *testing.T) {
	t.Parallel()
	r, _ := open(t)
	layers := someLayers(t, r, "one", "two", "three", "four", "five")
	for _, percent := range []int{-1, 101} {
		_, err := r.VerifyStore(t.Context(), VerifyInput{Sample: percent})
		wantCode(t, err, ami.CodeInvalidParameterValue)
	}
	for round := range 2 {
		var read []digest.Digest
		for range 5 { // a fifth of what is all of one size
			got := readBy(t, r, VerifyInput{Sample: 20})
			if len(got) != 1 {
				t.Fatalf("got %d layers in a sample of 20 %% of five, want one", len(got))
			}
			read = append(read, got...)
		}
		slices.Sort(read)
		if !slices.Equal(read, layers) {
			t.Errorf("round %d: got %v read, want all", round, read)
		}
	}
	if got := readBy(t, r, VerifyInput{Sample: 21}); len(got) != 2 {
		t.Errorf("got %d layers in a sample of 21 %% of five, want two", len(got))
	}
	if got := readBy(t, r, VerifyInput{Sample: 100}); !slices.Equal(got, layers) {
		t.Errorf("got %v in a sample of all, want all", got)
	}
	damage(t, r, layers[2], 100)
	verified(t, r, VerifyInput{})
	for range 3 {
		if got := readBy(t, r, VerifyInput{Sample: 1}); len(got) != 2 || !slices.Contains(got, layers[2]) {
			t.Errorf("got %v read, want another one and %s, which is not well", got, layers[2].Short())
		}
	}
	damage(t, r, layers[2], 100) // which mends it
	readBy(t, r, VerifyInput{Sample: 1})
	if got := readBy(t, r, VerifyInput{Sample: 1}); len(got) != 1 {
		t.Errorf("got %v read, want one since all are well", got)
	}
}

// A sample picks by bytes, and what was read longest ago first.
func TestSampleBySize(t *testing.T) {
	t.Parallel()
	now := time.Now()
	s := &scrub{Layers: map[digest.Digest]reading{
		"a": {now.Add(-1 * time.Hour), true}, "b": {now.Add(-3 * time.Hour), true}, "c": {now.Add(-2 * time.Hour), true}, "e": {now, false},
	}}
	layers := []snapshot.Layer{{Digest: "a", FileSize: 10}, {Digest: "b", FileSize: 70}, {Digest: "c", FileSize: 10}, {Digest: "d", FileSize: 5}, {Digest: "e", FileSize: 5}}
	for _, tt := range []struct {
		percent int
		want    string
	}{{1, "ed"}, {5, "ed"}, {6, "edb"}, {75, "edb"}, {76, "edbc"}, {100, "edbca"}} {
		got := ""
		for _, l := range s.sample(layers, tt.percent) {
			got += string(l.Digest)
		}
		if got != tt.want {
			t.Errorf("%d %%: got %q, want %q", tt.percent, got, tt.want)
		}
	}
	if got := s.sample(nil, 10); len(got) != 0 {
		t.Errorf("got %v of nothing", got)
	}
}
