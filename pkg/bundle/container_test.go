package bundle

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/kamivm/kami/pkg/ami"
)

// containerImage makes one of layers.
func containerImage(t *testing.T, arch string, layers ...[]byte) v1.Image {
	t.Helper()
	img := empty.Image
	for _, l := range layers {
		layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(l)), nil })
		must(t, err)
		img, err = mutate.AppendLayers(img, layer)
		must(t, err)
	}
	conf, err := img.ConfigFile()
	must(t, err)
	conf = conf.DeepCopy()
	conf.Architecture, conf.OS = arch, "linux"
	img, err = mutate.ConfigFile(img, conf)
	must(t, err)
	return img
}

// layoutOf writes images as an OCI layout in a folder.
func layoutOf(t *testing.T, images ...v1.Image) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "layout")
	p, err := layout.Write(dir, empty.Index)
	must(t, err)
	for _, img := range images {
		conf, err := img.ConfigFile()
		must(t, err)
		must(t, p.AppendImage(img, layout.WithPlatform(v1.Platform{OS: "linux", Architecture: conf.Architecture})))
	}
	return dir
}

func layers(t *testing.T) [][]byte {
	return [][]byte{
		tarOf(t, folder("etc"), regular("etc/old", "old"), regular("etc/gone", "gone"), folder("opt/all"), regular("opt/all/x", "x"), regular("bin/sh", "#!")),
		tarOf(t, regular("etc/old", "new"), regular("etc/.wh.gone", ""), regular("opt/all/.wh..wh..opq", ""), regular("opt/all/y", "y"), link(tar.TypeSymlink, "sbin", "bin")),
	}
}

func TestContainerImages(t *testing.T) {
	img := containerImage(t, "arm64", layers(t)...)
	docker := filepath.Join(t.TempDir(), "saved.tar")
	tag, err := name.NewTag("web:1")
	must(t, err)
	must(t, tarball.WriteToFile(docker, tag, img))
	dir := layoutOf(t, img)
	archive := filepath.Join(t.TempDir(), "oci.tar")
	if out, err := exec.CommandContext(t.Context(), "tar", "-C", dir, "-cf", archive, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	gzipped := filepath.Join(t.TempDir(), "saved.tar.gz")
	if out, err := exec.CommandContext(t.Context(), "sh", "-c", "gzip <"+docker+" >"+gzipped).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for what, c := range map[string]struct {
		path string
		kind Kind
	}{"folder": {dir, KindOCI}, "archive": {archive, KindOCI}, "docker": {docker, KindDocker}, "docker, gzipped": {gzipped, KindDocker}} {
		t.Run(what, func(t *testing.T) {
			tpl, err := openTemplate(t, TemplateInput{Path: c.path})
			must(t, err)
			if tpl.Kind != c.kind || tpl.Architecture != ami.ArchARM64 {
				t.Errorf("got %s of %s", tpl.Kind, tpl.Architecture)
			}
			raw := rawOf(t, tpl.Source)
			sound(t, raw)
			for path, want := range map[string]string{
				"/etc/old": "new", "/opt/all/y": "y", "/bin/sh": "#!",
			} {
				if got := debug(t, raw, "cat "+path); !strings.HasSuffix(got, want) {
					t.Errorf("%s: got %q, want %q", path, got, want)
				}
			}
			for _, path := range []string{"/etc/gone", "/etc/.wh.gone", "/opt/all/x", "/opt/all/.wh..wh..opq"} {
				if got := debug(t, raw, "stat "+path); !strings.Contains(got, "not found") {
					t.Errorf("%s is there", path)
				}
			}
		})
	}
}

// TestContainerForTheArchitecture: of several images the one for the guest is taken.
func TestContainerForTheArchitecture(t *testing.T) {
	arm := containerImage(t, "arm64", tarOf(t, regular("arch", "arm")))
	amd := containerImage(t, "amd64", tarOf(t, regular("arch", "amd")))
	dir := layoutOf(t, arm, amd)
	for arch, want := range map[ami.Architecture]string{"": "amd", ami.ArchARM64: "arm"} {
		tpl, err := openTemplate(t, TemplateInput{Path: dir, Architecture: arch})
		must(t, err)
		if got := debug(t, rawOf(t, tpl.Source), "cat /arch"); !strings.HasSuffix(got, want) {
			t.Errorf("%q: got %q", arch, got)
		}
	}
	if _, err := openTemplate(t, TemplateInput{Path: dir, Architecture: ami.ArchI386}); !errors.Is(err, ErrTemplate) {
		t.Errorf("got %v for one that is not there", err)
	}
}

func TestHostileContainers(t *testing.T) {
	for what, write := range map[string]func(t *testing.T) string{
		"climbs": func(t *testing.T) string {
			return layoutOf(t, containerImage(t, "amd64", tarOf(t, regular("../../out", "x"))))
		},
		"another layer": func(t *testing.T) string {
			dir := layoutOf(t, containerImage(t, "amd64", tarOf(t, regular("a", strings.Repeat("x", 5000)))))
			return damage(t, dir, func(b []byte) bool { return bytes.HasPrefix(b, []byte("\x1f\x8b")) })
		},
		"another configuration": func(t *testing.T) string {
			dir := layoutOf(t, containerImage(t, "amd64", tarOf(t, regular("a", "x"))))
			return damage(t, dir, func(b []byte) bool { return bytes.Contains(b, []byte("diff_ids")) })
		},
		"a blob that is a link": func(t *testing.T) string {
			dir := layoutOf(t, containerImage(t, "amd64", tarOf(t, regular("a", "x"))))
			all, err := filepath.Glob(filepath.Join(dir, "blobs/sha256/*"))
			must(t, err)
			for _, p := range all {
				must(t, os.Rename(p, p+".moved"))
				must(t, os.Symlink(p+".moved", p))
			}
			return dir
		},
		"no index": func(t *testing.T) string {
			dir := layoutOf(t)
			must(t, os.WriteFile(filepath.Join(dir, "index.json"), []byte("{"), 0o600))
			return dir
		},
		"nothing in it": func(t *testing.T) string { return layoutOf(t) },
	} {
		t.Run(what, func(t *testing.T) {
			if _, err := openTemplate(t, TemplateInput{Path: write(t)}); !errors.Is(err, ErrTemplate) {
				t.Errorf("got %v, want ErrTemplate", err)
			}
			if _, err := os.Lstat("/tmp/out"); err == nil {
				t.Error("it wrote outside")
			}
		})
	}
}

// TestContainersFollowNoLinks: what a layer has behind a link is not in the image.
func TestContainersFollowNoLinks(t *testing.T) {
	tpl, err := openTemplate(t, TemplateInput{Path: layoutOf(t, containerImage(t, "amd64",
		tarOf(t, link(tar.TypeSymlink, "a", "/tmp"), regular("a/out", "x"), regular("b", "x"))))})
	must(t, err)
	raw := rawOf(t, tpl.Source)
	sound(t, raw)
	if got := debug(t, raw, "stat /a"); !strings.Contains(got, "symlink") {
		t.Errorf("got %s", got)
	}
	for _, path := range []string{"/tmp/out", "/tmp/kami-out"} {
		if _, err := os.Lstat(path); err == nil {
			t.Errorf("it wrote %s", path)
		}
	}
}

// damage replaces the first blob of a layout that is chosen by one that can be read
// as well.
func damage(t *testing.T, dir string, which func([]byte) bool) string {
	t.Helper()
	all, err := filepath.Glob(filepath.Join(dir, "blobs/sha256/*"))
	must(t, err)
	for _, p := range all {
		b := readAll(t, p)
		if !which(b) {
			continue
		}
		if b[0] == '{' {
			b = bytes.Replace(b, []byte("amd64"), []byte("arm64"), 1)
		} else {
			other, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
				return io.NopCloser(bytes.NewReader(tarOf(t, regular("b", "another")))), nil
			})
			must(t, err)
			r, err := other.Compressed()
			must(t, err)
			b, err = io.ReadAll(r)
			must(t, err)
		}
		must(t, os.Remove(p))
		must(t, os.WriteFile(p, b, 0o600))
		return dir
	}
	t.Fatal("there is no such blob")
	return ""
}
