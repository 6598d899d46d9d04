package snapshot

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/digest"
)

// Of several layers those go on which nothing stands but what goes before them.
func TestRemoveLayers(t *testing.T) {
	s := open(t)
	base := write(t, s, raw(t, 0), "").Digest
	child := write(t, s, raw(t, 1), base).Digest
	other := write(t, s, raw(t, 2), base).Digest
	under := write(t, s, raw(t, 3), "").Digest
	id := ami.NewVolumeID()
	if _, err := s.CreateHead(id, 4<<20, under, ""); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name       string
		given, got []digest.Digest
	}{
		{"nothing", nil, nil},
		{"a disk stands on it", []digest.Digest{under}, nil},
		{"another layer stands on it too", []digest.Digest{child, base}, []digest.Digest{child}},
		{"in the wrong order", []digest.Digest{base, other}, []digest.Digest{other}},
		{"what is left, and what is gone", []digest.Digest{child, base}, []digest.Digest{child, base}},
	} {
		got, err := s.RemoveLayers(tt.given)
		if err != nil || !slices.Equal(got, tt.got) {
			t.Errorf("%s: got %v removed, %v; want %v", tt.name, got, err, tt.got)
		}
	}
	if err := s.RemoveHead(id); err != nil {
		t.Fatal(err)
	}
	if got, err := s.RemoveLayers([]digest.Digest{under}); err != nil || len(got) != 1 {
		t.Errorf("got %v, %v; want it removed", got, err)
	}
	if left := tree(t, s); len(left) > 0 {
		t.Errorf("got %q left, want nothing", left)
	}
}

func TestStrayBlocks(t *testing.T) {
	s := open(t)
	l := write(t, s, raw(t, 1), "")
	gone := digest.Of(nil)
	for _, name := range []string{gone.Hex() + ".blocks", "notes.blocks"} {
		if err := os.WriteFile(filepath.Join(s.root, "layers", name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := s.StrayBlocks(); err != nil || !slices.Equal(got, []digest.Digest{gone}) {
		t.Errorf("got %v, %v; want the list of what is gone alone", got, err)
	}
	if err := os.Remove(s.layerPath(l.Digest)); err != nil {
		t.Fatal(err)
	}
	for range 2 { // what is not there is no error
		if err := s.RemoveBlocks(l.Digest); err != nil {
			t.Error(err)
		}
	}
	if got, err := s.StrayBlocks(); err != nil || len(got) != 1 {
		t.Errorf("got %v, %v; want one", got, err)
	}
}

func TestHeadsThatAreThere(t *testing.T) {
	s := open(t)
	l := write(t, s, raw(t, 1), "").Digest
	want := []Head{{"vol-00000000000000001", l}, {"vol-00000000000000002", ""}, {"vol-00000000000000003", ""}}
	for _, h := range want {
		if _, err := s.CreateHead(h.VolumeID, 4<<20, h.Layer, ""); err != nil {
			t.Fatal(err)
		}
	}
	damage(t, s.HeadPath(want[2].VolumeID), 0)
	if err := os.WriteFile(filepath.Join(s.root, "volumes", "mine.qcow2"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Heads(); err != nil || !slices.Equal(got, want) {
		t.Errorf("got %v, %v; want %v", got, err, want)
	}
}
