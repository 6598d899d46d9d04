package ec2ami

import (
	"bytes"
	"context"
	"crypto/rsa"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/kamivm/kami/pkg/object"
)

// The tools of that age cannot be had any more. What they did was openssl, gzip and
// tar in a row, so these do it again, and nothing of this package has a hand in it.

func run(t *testing.T, script string, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "sh", append([]string{filepath.Join("testdata", script)}, args...)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
}

// files writes the pairs to a folder and returns their paths.
func files(t *testing.T, p pair) (key, cert string) {
	t.Helper()
	dir := t.TempDir()
	key, cert = filepath.Join(dir, "pk.pem"), filepath.Join(dir, "cert.pem")
	must(t, os.WriteFile(key, p.pem, 0o600))
	must(t, os.WriteFile(cert, p.pemC, 0o600))
	return key, cert
}

func TestOpensslReadsOurs(t *testing.T) {
	const size = 30<<20 + 777
	userKey, userCert := files(t, user())
	cloudKey, _ := files(t, cloud())
	for name, extents := range map[string][]Extent{
		"plain": nil, "sparse": {{0, 4096}, {5 << 20, 12 << 20}, {29 << 20, 10}}, "a hole": {},
	} {
		t.Run(name, func(t *testing.T) {
			image := picture(size, extents)
			dir := t.TempDir()
			store, err := object.OpenDir(dir)
			must(t, err)
			defer store.Close()
			in := input(nil, image)
			in.Store, in.Extents = store, extents
			must(t, second(Write(context.Background(), in)))
			for whose, key := range map[string]string{"user": userKey, "ec2": cloudKey} {
				out := filepath.Join(t.TempDir(), "image")
				run(t, "unbundle.sh", filepath.Join(dir, "web.manifest.xml"), key, userCert, whose, out)
				got, err := os.ReadFile(out)
				if must(t, err); !bytes.Equal(got, image) {
					t.Errorf("%s: the image is another", whose)
				}
			}
		})
	}
}

func TestWeReadOpenssls(t *testing.T) {
	const size = 30<<20 + 777
	image := picture(size, []Extent{{0, 4096}, {5 << 20, 12 << 20}, {29 << 20, 10}})
	path := filepath.Join(t.TempDir(), "disk.img")
	f, err := os.Create(path)
	must(t, err)
	must(t, copyImage(t.Context(), f, bytes.NewReader(image), size, func(int64) {})) // with holes
	must(t, f.Truncate(size))
	must(t, f.Close())
	userKey, userCert := files(t, user())
	_, cloudCert := files(t, cloud())
	for _, spelling := range []string{"old", "new"} {
		dir := filepath.Join(t.TempDir(), "bundle")
		run(t, "bundle.sh", path, "image", dir, userKey, userCert, cloudCert, spelling)
		store, err := object.OpenDir(dir)
		must(t, err)
		defer store.Close()
		for _, key := range []*rsa.PrivateKey{user().key, cloud().key} {
			in := OpenInput{Store: store, Manifest: "image.manifest.xml", Keys: []*rsa.PrivateKey{key}, Signers: []*rsa.PublicKey{user().cert}}
			got, b, err := unpack(t, in)
			must(t, err)
			if !bytes.Equal(got, image) {
				t.Errorf("%s: the image is another", spelling)
			}
			want := Machine{
				Architecture: "i386", Mapping: []Mapping{{"ami", "sda1"}}, KernelID: "aki-a71cf9ce",
				RamdiskID: "ari-a51cf9cc", ProductCodes: []string{"774F4FF8"},
			}
			if !reflect.DeepEqual(b.Machine, want) || !reflect.DeepEqual(b.Ancestry, []string{"ami-61a54008"}) || !b.Signed {
				t.Errorf("%s: got %+v", spelling, b.Manifest)
			}
		}
	}
}
