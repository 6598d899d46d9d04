package snapshot

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/digest"
)

func TestAdoptLayer(t *testing.T) {
	from, to := open(t), open(t)
	base := write(t, from, raw(t, 1), "")
	child := write(t, from, raw(t, 2), base.Digest)
	step := ami.NoProgress.Step("", 0)
	adopt := func(path string, want Layer) error {
		_, _, err := to.AdoptLayer(t.Context(), path, want, step)
		return err
	}
	at := from.layerPath
	if err := adopt(at(child.Digest), child); !errors.Is(err, ErrNotFound) {
		t.Errorf("got %v without the parent, want ErrNotFound", err)
	}
	copyOf := filepath.Join(t.TempDir(), "copy")
	b, err := os.ReadFile(at(base.Digest))
	if err == nil {
		err = os.WriteFile(copyOf, b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	got, copied, err := to.AdoptLayer(t.Context(), copyOf, base, step)
	if err != nil || copied != base.FileSize || got.Content != base.Content || got.Depth != 1 {
		t.Errorf("got %+v and %d bytes (%v), want a copy of %+v", got, copied, err, base)
	}
	for name, want := range map[string]Layer{
		"another digest":  {Digest: digest.Of(nil), Parent: base.Digest},
		"another parent":  {Digest: child.Digest},
		"another content": {Digest: child.Digest, Parent: base.Digest, Content: base.Content},
	} {
		if err := adopt(at(child.Digest), want); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: got %v, want ErrCorrupt", name, err)
		}
	}
	if err := os.WriteFile(copyOf, []byte("no layer"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := adopt(copyOf, Layer{Digest: digest.Of([]byte("no layer"))}); !errors.Is(err, ErrCorrupt) {
		t.Errorf("got %v of what is no layer, want ErrCorrupt", err)
	}
	got, copied, err = to.AdoptLayer(t.Context(), at(child.Digest), child, step)
	if err != nil || copied != 0 || got.Content != child.Content || got.Depth != 2 {
		t.Errorf("got %+v and %d bytes (%v), want a second name of %+v", got, copied, err, child)
	}
	if err := adopt("/none", child); err != nil {
		t.Errorf("got %v for a layer that is there", err)
	}
	for _, l := range []Layer{base, child} {
		if err := to.VerifyLayer(t.Context(), l.Digest, step); err != nil {
			t.Error(err)
		}
		blocks, err := to.Blocks(t.Context(), l.Digest)
		if err != nil || blocks.Content() != l.Content {
			t.Errorf("got other blocks (%v)", err)
		}
		if err := to.VerifyBlocks(l.Digest, l.Size, l.Content); err != nil {
			t.Error(err)
		}
	}
	if all, err := to.Layers(t.Context()); err != nil || len(all) != 2 {
		t.Errorf("got the layers %v (%v), want two", all, err)
	}
}

// TestAdoptLayerOfOthers: what is not ours, or only a link to a file, is no second name
// of it, since it may become something else.
func TestAdoptLayerOfOthers(t *testing.T) {
	step := ami.NoProgress.Step("", 0)
	for name, give := range map[string]func(t *testing.T, path string) string{
		"writable": func(t *testing.T, path string) string {
			if err := os.Chmod(path, 0o600); err != nil {
				t.Fatal(err)
			}
			return path
		},
		"another's": func(t *testing.T, path string) string {
			if os.Getuid() != 0 {
				t.Skip("only root can give a file away")
			}
			if err := os.Chown(path, 65534, 65534); err != nil {
				t.Fatal(err)
			}
			return path
		},
		"a link": func(t *testing.T, path string) string {
			to := filepath.Join(t.TempDir(), "link")
			if err := os.Symlink(path, to); err != nil {
				t.Fatal(err)
			}
			return to
		},
	} {
		t.Run(name, func(t *testing.T) {
			from, to := open(t), open(t)
			l := write(t, from, raw(t, 1), "")
			path := give(t, from.layerPath(l.Digest))
			_, copied, err := to.AdoptLayer(t.Context(), path, l, step)
			if err != nil {
				t.Fatal(err)
			}
			st, err := os.Lstat(to.layerPath(l.Digest))
			if err != nil {
				t.Fatal(err)
			}
			if !st.Mode().IsRegular() {
				t.Errorf("the layer is %v", st.Mode())
			}
			if want := l.FileSize; name != "a link" && copied != want {
				t.Errorf("got %d bytes copied, want %d", copied, want)
			}
		})
	}
}
