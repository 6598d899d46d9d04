package build

import (
	"archive/tar"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/recipe"
)

// TestWhatIsBooted says for each kind of recipe how its disk boots, and what is
// installed for that beside what the recipe names.
func TestWhatIsBooted(t *testing.T) {
	for _, tt := range []struct {
		r        recipe.Recipe
		mode     ami.BootMode
		packages []string
	}{
		{recipe.Recipe{}, ami.BootUEFIPreferred, nil},
		{recipe.Recipe{BootMode: ami.BootLegacyBIOS, Packages: []string{"a", "b [i386]"}}, ami.BootLegacyBIOS, []string{"a"}},
		{recipe.Recipe{Architecture: ami.ArchI386, Packages: []string{"b [i386]"}}, ami.BootLegacyBIOS, []string{"b"}},
		{recipe.Recipe{Architecture: ami.ArchARM64, BootMode: ami.BootLegacyBIOS}, ami.BootUEFI, []string{"grub-efi-arm64-signed"}},
		{recipe.Recipe{SecureBoot: true, BootMode: ami.BootLegacyBIOS}, ami.BootUEFI, []string{"grub-efi-amd64-signed", "shim-signed"}},
	} {
		if got := bootMode(tt.r); got != tt.mode {
			t.Errorf("%+v: got the boot mode %s, want %s", tt.r, got, tt.mode)
		}
		if diff := cmp.Diff(tt.packages, packages(Options{Recipe: tt.r})); diff != "" {
			t.Errorf("%+v: packages (-want +got):\n%s", tt.r, diff)
		}
	}
	if got := signedFiles(Options{Recipe: recipe.Recipe{SecureBoot: true}, Paravirtual: true}); got != nil {
		t.Errorf("a disk without boot loaders takes %q", got)
	}
}

func TestUnpackSigned(t *testing.T) {
	o := Options{Recipe: recipe.Recipe{SecureBoot: true}, Tmp: t.TempDir()}
	write := func(names ...string) {
		f, err := os.Create(signedPath(o))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		w := tar.NewWriter(f)
		for _, name := range names {
			if err := w.WriteHeader(&tar.Header{Name: name, Size: int64(len(name)), Mode: 0o644}); err != nil {
				t.Fatal(err)
			}
			if _, err := w.Write([]byte(name)); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	want := signedFiles(o)
	write(want[1], want[0])
	got, err := unpackSigned(o)
	if err != nil {
		t.Fatal(err)
	}
	for i, path := range got {
		if b, err := os.ReadFile(path); err != nil || string(b) != want[i] {
			t.Errorf("%s holds %q (%v), want %q", path, b, err, want[i])
		}
	}
	write(want[0])
	if _, err := unpackSigned(o); err == nil || !strings.Contains(err.Error(), want[1]) {
		t.Errorf("without shim: %v", err)
	}
	write(want[0], "../../etc/passwd")
	if _, err := unpackSigned(o); err == nil || !strings.Contains(err.Error(), "passwd") {
		t.Errorf("with a file that nobody asked for: %v", err)
	}
}
