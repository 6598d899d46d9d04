package snapshot

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/digest"
)

// What was lost is told, and nothing is made of it.
func TestMergeOfWhatIsDamaged(t *testing.T) {
	s := open(t)
	layers := lineageOf(t, s, 16, MaxDepth+1)
	last := layers[MaxDepth]
	plan, err := s.PlanMerge(last.Digest, none)
	if err != nil {
		t.Fatal(err)
	}
	before := tree(t, s)
	step := ami.NoProgress.Step("", 0)

	// The layer has not what its list of blocks says.
	list, err := os.ReadFile(s.blocksPath(layers[3].Digest))
	if err != nil {
		t.Fatal(err)
	}
	own, err := os.ReadFile(s.blocksPath(last.Digest))
	if err != nil {
		t.Fatal(err)
	}
	replace := func(path string, b []byte) {
		os.Remove(path)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	replace(s.blocksPath(last.Digest), list)
	if _, err := s.MergeLayer(t.Context(), plan, step); !errors.Is(err, ErrCorrupt) {
		t.Errorf("got %v for another content, want ErrCorrupt", err)
	}
	replace(s.blocksPath(last.Digest), own)

	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.MergeLayer(ended, plan, step); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
	if got := tree(t, s); !slices.Equal(got, before) {
		t.Errorf("got the files %q, want %q as before", got, before)
	}
	if err := os.Remove(s.layerPath(layers[4].Digest)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.MergeLayer(t.Context(), plan, step); !errors.Is(err, ErrNotFound) {
		t.Errorf("got %v with a layer of the chain gone, want ErrNotFound", err)
	}
	if _, err := s.PlanMerge(last.Digest, none); !errors.Is(err, ErrNotFound) {
		t.Errorf("planned again: got %v, want ErrNotFound", err)
	}
}

// mergeCase is the crash test of merging a chain.
func mergeCase(t *testing.T, layerFiles func(*Store, digest.Digest) []string) crashCase {
	t.Helper()
	s := open(t)
	merged := merge(t, s, lineageOf(t, s, 4, MaxDepth+1)[MaxDepth].Digest, none).Digest
	chain := slices.DeleteFunc(tree(t, s), func(f string) bool { return strings.Contains(f, merged.Hex()) })
	return crashCase{
		"merge a chain",
		task{Job: "merge"},
		func(t *testing.T, s *Store, do *task) {
			do.Parent = lineageOf(t, s, 4, MaxDepth+1)[MaxDepth].Digest
		},
		func(t *testing.T, s *Store, do task) string {
			layerState(t, s, do.Parent)
			return layerState(t, s, merged)
		},
		[2]string{"absent", "there"},
		func(s *Store, _ task, state string) []string {
			if state == "absent" {
				return chain
			}
			return append(layerFiles(s, merged), chain...)
		},
		[]string{"layer.written#1", "layer.blocks#1", "rename.renamed#1", "rename.renamed#2"},
	}
}

// The chain of an encrypted disk is merged to a layer that is encrypted with the
// same key, and never over one that is not.
func TestMergeOfWhatIsEncrypted(t *testing.T) {
	const key = "01234567-89ab-cdef-0123-456789abcdef"
	s, err := OpenKeyed(t.TempDir(), func(string) ([]byte, error) { return []byte(strings.Repeat("k", 64)), nil })
	if err != nil {
		t.Fatal(err)
	}
	var layers []Layer
	for i := range MaxDepth + 2 {
		src := raw(t, byte(i))
		if i == 0 {
			if src, err = s.Encrypt(src, key); err != nil {
				t.Fatal(err)
			}
			layers = append(layers, write(t, s, src, ""))
			continue
		}
		enc, err := s.encryptionOfLayer(layers[i-1].Digest)
		if err != nil {
			t.Fatal(err)
		}
		layers = append(layers, write(t, s, encrypted{src, enc}, layers[i-1].Digest))
	}
	plain := write(t, s, raw(t, MaxDepth), "")
	if plain.Content != layers[MaxDepth].Content {
		t.Fatal("the same disk in the clear is said to have another content")
	}
	last := layers[MaxDepth+1]
	l := merge(t, s, last.Digest, func(Layer) (digest.Digest, error) { return plain.Digest, nil })
	wantMerged(t, s, last, l)
	for _, d := range []digest.Digest{l.Digest, l.Parent} {
		if d == "" {
			continue
		}
		if got := get(t, s, d); got.KeyID != key {
			t.Errorf("%s is encrypted with the key %q, want %s", d.Short(), got.KeyID, key)
		}
	}
}
