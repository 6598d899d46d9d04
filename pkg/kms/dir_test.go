package kms_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kamivm/kami/pkg/kms"
	"github.com/kamivm/kami/pkg/kms/kmstest"
)

func TestDir(t *testing.T) {
	kmstest.Run(t, func(t *testing.T) func() kms.Store {
		root := filepath.Join(t.TempDir(), "kms")
		return func() kms.Store { return kms.OpenDir(root) }
	})
}

func TestOnlyTheOwnerReads(t *testing.T) {
	root := filepath.Join(t.TempDir(), "kms")
	k, err := kms.OpenDir(root).Create(t.Context(), "", "")
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]os.FileMode{root: os.ModeDir | 0o700, filepath.Join(root, k.ID+".json"): 0o600} {
		st, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if st.Mode() != want {
			t.Errorf("%s has the mode %v, want %v", filepath.Base(path), st.Mode(), want)
		}
	}
}

func TestDamagedKey(t *testing.T) {
	tests := []struct{ name, old, new string }{
		{"no JSON", "{", "\xff"},
		{"another version", `"Version": 1`, `"Version": 2`},
		{"a key of another length", `"KeyMaterial": "`, `"KeyMaterial": "AAAA`},
		{"another key's", `"KeyId": "`, `"KeyId": "x`},
		{"endless", "{", "{" + strings.Repeat(" ", 1<<20)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			root := t.TempDir()
			d := kms.OpenDir(root)
			k, err := d.Create(t.Context(), "alias/it", "")
			if err != nil {
				t.Fatal(err)
			}
			good, err := d.Create(t.Context(), "alias/good", "")
			if err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(root, k.ID+".json")
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			bad := bytes.Replace(text, []byte(tt.old), []byte(tt.new), 1)
			if err := os.WriteFile(path, bad, 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := d.Passphrase(t.Context(), k.ID); !errors.Is(err, kms.ErrDamaged) {
				t.Errorf("Passphrase: %v, want ErrDamaged", err)
			}
			keys, err := d.List(t.Context())
			if !errors.Is(err, kms.ErrDamaged) || len(keys) != 1 || keys[0] != good {
				t.Errorf("List: %v, %v, want the good key and ErrDamaged", keys, err)
			}
			if _, err := d.Find(t.Context(), "alias/it"); !errors.Is(err, kms.ErrDamaged) {
				t.Errorf("Find: %v, want ErrDamaged", err)
			}
			if err := d.Delete(t.Context(), k.ID); err != nil {
				t.Errorf("Delete: %v", err)
			}
		})
	}
}
