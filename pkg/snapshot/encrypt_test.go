package snapshot

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/qcow2"
)

const marker = "a-secret-that-no-file-may-show"

// keyed opens a store that has the keys "one" and "two".
func keyed(t *testing.T) *Store {
	t.Helper()
	s, err := OpenKeyed(t.TempDir(), func(id string) ([]byte, error) {
		if id != "one" && id != "two" {
			return nil, fmt.Errorf("%w: %s", qcow2.ErrNoKey, id)
		}
		return []byte(strings.Repeat(id, 16)), nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// secret is a disk with the marker at its start and, if mark, a byte further on.
func secret(t *testing.T, mark byte) qcow2.Source {
	t.Helper()
	b := make([]byte, 4<<20)
	copy(b, marker)
	b[2<<20] = mark
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return sourceOf(t, path)
}

// lay writes src encrypted with a key as a layer on nothing.
func lay(t *testing.T, s *Store, src qcow2.Source, key string) Layer {
	t.Helper()
	src, err := s.Encrypt(src, key)
	if err != nil {
		t.Fatal(err)
	}
	return write(t, s, src, "")
}

func content(t *testing.T, src io.ReaderAt, size int64) []byte {
	t.Helper()
	b := make([]byte, size)
	if _, err := src.ReadAt(b, 0); err != nil && !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	return b
}

func TestEncryptedLayer(t *testing.T) {
	s := keyed(t)
	src := secret(t, 1)
	plain, l := write(t, s, src, ""), lay(t, s, src, "one")
	if l.Content != plain.Content {
		t.Errorf("the content digest is %s encrypted and %s not", l.Content.Short(), plain.Content.Short())
	}
	img, err := s.OpenLayer(l.Digest)
	if err != nil {
		t.Fatal(err)
	}
	defer img.Close()
	if !bytes.Equal(content(t, img, img.Size()), content(t, src, src.Size())) {
		t.Error("the layer reads otherwise than the disk")
	}
	if known, err := s.Layer(l.Digest); err != nil || known.KeyID != "one" {
		t.Errorf("the layer needs the key %q, %v, want one", known.KeyID, err)
	}
	// Neither it nor the list of its blocks shows what is in it.
	sum := func() []byte {
		blocks, err := s.Blocks(t.Context(), l.Digest)
		if err != nil {
			t.Fatal(err)
		}
		got := blocks.Get(0)
		return got[:]
	}()
	for _, path := range []string{s.layerPath(l.Digest), s.blocksPath(l.Digest)} {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(b, []byte(marker)) || bytes.Contains(b, sum) {
			t.Errorf("%s shows what it encrypts", filepath.Base(path))
		}
	}
	// Another one of the same content has a data key of its own.
	if again := lay(t, s, src, "one"); again.Digest == l.Digest {
		t.Error("two layers that know nothing of each other have one data key")
	}
	// Nothing that is not encrypted stands on it, nor is it a relative of it.
	if _, err := s.WriteLayer(t.Context(), secret(t, 2), l.Digest, ami.NoProgress.Step("", 0)); !errors.Is(err, ErrPlain) {
		t.Errorf("a plain layer over it: %v, want ErrPlain", err)
	}
	if _, err := s.CreateHead("vol-0123456789abcdef0", src.Size(), l.Digest, ""); !errors.Is(err, ErrPlain) {
		t.Errorf("a plain head on it: %v, want ErrPlain", err)
	}
	if err := s.RemoveLayer(plain.Digest); err != nil {
		t.Fatal(err)
	}
	if near, err := s.Relative(t.Context(), src); err != nil || near != "" {
		t.Errorf("the relative of a plain disk is %s, %v, want none", near, err)
	}
}

func TestEncryptedLineage(t *testing.T) {
	s := keyed(t)
	const vol = ami.VolumeID("vol-0123456789abcdef0")
	plain := write(t, s, secret(t, 1), "")
	base := lay(t, s, secret(t, 1), "one")
	tests := []struct {
		name  string
		layer Layer
		key   string
		same  bool // the data key of the layer
	}{
		{"on a layer of its key", base, "one", true},
		{"on a layer of another key", base, "two", false},
		{"on a plain layer", plain, "two", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := s.CreateHead(vol, 4<<20, tt.layer.Digest, tt.key); err != nil {
				t.Fatal(err)
			}
			defer s.RemoveHead(vol)
			enc, err := s.HeadEncryption(vol)
			if err != nil || enc == nil || enc.KeyID() != tt.key {
				t.Fatalf("the head is encrypted with %v, %v, want %s", enc, err, tt.key)
			}
			under, err := s.encryptionOfLayer(tt.layer.Digest)
			if err != nil {
				t.Fatal(err)
			}
			sealed, err := enc.Seal([]byte("it"))
			if err != nil {
				t.Fatal(err)
			}
			same := false
			if under != nil {
				_, err := under.Unseal(sealed)
				same = err == nil
			}
			if same != tt.same {
				t.Errorf("the head has the data key of its layer: %v, want %v", same, tt.same)
			}
			head, err := s.OpenHead(vol, tt.layer.Digest)
			if err != nil {
				t.Fatal(err)
			}
			defer head.Close()
			// An unchanged head is its layer, where that is encrypted with its key.
			l := write(t, s, head, tt.layer.Digest)
			if (l.Digest == tt.layer.Digest) != tt.same || l.Content != tt.layer.Content {
				t.Errorf("the layer of the unchanged head: %s of the content %s; its parent: %s of %s", l.Digest.Short(), l.Content.Short(), tt.layer.Digest.Short(), tt.layer.Content.Short())
			}
			if known, err := s.Layer(l.Digest); err != nil || known.KeyID != tt.key {
				t.Errorf("the layer needs the key %q, %v, want %s", known.KeyID, err, tt.key)
			}
		})
	}
}

func TestWithoutTheKey(t *testing.T) {
	s := keyed(t)
	const vol = ami.VolumeID("vol-0123456789abcdef0")
	l := lay(t, s, secret(t, 1), "one")
	if _, err := s.CreateHead(vol, 4<<20, l.Digest, "one"); err != nil {
		t.Fatal(err)
	}
	wrong := func(string) ([]byte, error) { return bytes.Repeat([]byte("x"), 48), nil }
	for _, tt := range []struct {
		name string
		keys qcow2.Keys
		want error
	}{{"no keys", nil, qcow2.ErrNoKey}, {"another key", wrong, qcow2.ErrWrongKey}} {
		t.Run(tt.name, func(t *testing.T) {
			other, err := OpenKeyed(s.root, tt.keys)
			if err != nil {
				t.Fatal(err)
			}
			_, open := other.OpenLayer(l.Digest)
			_, head := other.OpenHead(vol, l.Digest)
			_, blocks := other.Blocks(t.Context(), l.Digest)
			_, enc := other.HeadEncryption(vol)
			_, fresh := other.CreateHead("vol-0123456789abcdef1", 4<<20, l.Digest, "one")
			for what, err := range map[string]error{"OpenLayer": open, "OpenHead": head, "Blocks": blocks, "HeadEncryption": enc, "CreateHead": fresh} {
				if !errors.Is(err, tt.want) {
					t.Errorf("%s: %v, want %v", what, err, tt.want)
				}
			}
			// What needs no key goes on.
			if err := other.VerifyLayer(t.Context(), l.Digest, ami.NoProgress.Step("", 0)); err != nil {
				t.Errorf("VerifyLayer: %v", err)
			}
			if id, err := other.KeyOf(other.HeadPath(vol)); id != "one" || err != nil {
				t.Errorf("KeyOf the head: %q, %v, want one", id, err)
			}
		})
	}
}
