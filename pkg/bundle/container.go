package bundle

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/kamivm/kami/pkg/ami"
)

// maxConfig bounds what a container image says of itself, in bytes.
const maxConfig = 8 << 20

// openContainer opens a container image: an OCI layout in a folder, or what docker
// save has written.
func openContainer(path string, kind Kind, arch ami.Architecture) (v1.Image, error) {
	var img v1.Image
	var err error
	if kind == KindDocker {
		img, err = tarball.ImageFromPath(path, nil)
	} else {
		img, err = layoutImage(path, arch)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: the container image: %w", ErrTemplate, err)
	}
	return img, nil
}

// layoutImage finds the one image of an OCI layout that is for an architecture.
func layoutImage(dir string, arch ami.Architecture) (v1.Image, error) {
	if err := small(filepath.Join(dir, "index.json")); err != nil {
		return nil, err
	}
	idx, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		return nil, err
	}
	return imageOf(dir, idx, arch, 0)
}

func imageOf(dir string, idx v1.ImageIndex, arch ami.Architecture, depth int) (v1.Image, error) {
	if depth > 3 {
		return nil, errors.New("its indexes are nested too deep")
	}
	m, err := idx.IndexManifest()
	if err != nil {
		return nil, err
	}
	var found []v1.Image
	for _, d := range m.Manifests {
		if p := d.Platform; p != nil && p.Architecture != "" && archOf(p.Architecture) != arch && len(m.Manifests) > 1 {
			continue
		}
		if err := blob(dir, d.Digest, d.Size); err != nil {
			return nil, err
		}
		var img v1.Image
		switch d.MediaType {
		case types.OCIImageIndex, types.DockerManifestList:
			sub, err := idx.ImageIndex(d.Digest)
			if err != nil {
				return nil, err
			}
			if img, err = imageOf(dir, sub, arch, depth+1); err != nil {
				return nil, err
			}
		case types.OCIManifestSchema1, types.DockerManifestSchema2:
			if img, err = idx.Image(d.Digest); err != nil {
				return nil, err
			}
			m, err := img.Manifest()
			if err != nil {
				return nil, err
			}
			if err := blob(dir, m.Config.Digest, m.Config.Size); err != nil {
				return nil, err
			}
		default:
			continue
		}
		found = append(found, img)
	}
	if len(found) != 1 {
		return nil, fmt.Errorf("it has %d images for %s, and one is packed", len(found), arch)
	}
	return found[0], nil
}

// small checks that a file is a small one before it is read as a whole.
func small(path string) error {
	st, err := os.Lstat(path)
	if err == nil && (!st.Mode().IsRegular() || st.Size() > maxConfig) {
		err = fmt.Errorf("%s has %d bytes", filepath.Base(path), st.Size())
	}
	return err
}

var hexDigest = regexp.MustCompile(`^[0-9a-f]{64}$`)

// blob checks that a small blob of a layout is what its digest says.
func blob(dir string, h v1.Hash, size int64) error {
	if h.Algorithm != "sha256" || !hexDigest.MatchString(h.Hex) {
		return fmt.Errorf("the digest %.80s", h)
	}
	path := filepath.Join(dir, "blobs", h.Algorithm, h.Hex)
	if err := small(path); err != nil {
		return err
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if sum := sha256.Sum256(b); int64(len(b)) != size || hex.EncodeToString(sum[:]) != h.Hex {
		return fmt.Errorf("the blob %s is damaged", h)
	}
	return nil
}

func archOf(goarch string) ami.Architecture {
	return map[string]ami.Architecture{"amd64": ami.ArchX8664, "arm64": ami.ArchARM64, "386": ami.ArchI386}[goarch]
}

// stageContainer unpacks a container image's root into the stage: its layers, each
// verified, without what upper ones have deleted.
func (s *stage) stageContainer(ctx context.Context, img v1.Image) (ami.Architecture, error) {
	bad := func(err error) error { return fmt.Errorf("%w: the container image: %w", ErrTemplate, err) }
	conf, err := img.ConfigFile()
	if err != nil {
		return "", bad(err)
	}
	layers, err := img.Layers()
	if err != nil {
		return "", bad(err)
	}
	if len(layers) != len(conf.RootFS.DiffIDs) {
		return "", bad(fmt.Errorf("it has %d layers and the digests of %d", len(layers), len(conf.RootFS.DiffIDs)))
	}
	for i, l := range layers {
		if err := s.verifyLayer(ctx, l, conf.RootFS.DiffIDs[i]); err != nil {
			return "", bad(fmt.Errorf("layer %d: %w", i+1, err))
		}
	}
	root := mutate.Extract(img)
	defer root.Close()
	return archOf(conf.Architecture), s.stageTar(ctx, root)
}

// verifyLayer holds a layer against the digest that the image's configuration has
// of it.
func (s *stage) verifyLayer(ctx context.Context, l v1.Layer, want v1.Hash) error {
	r, err := l.Uncompressed()
	if err != nil {
		return err
	}
	defer r.Close()
	h := sha256.New()
	limit := 2*s.limit + 4<<30
	n, err := io.Copy(h, io.LimitReader(patient{ctx, r}, limit+1))
	switch {
	case err != nil:
		return err
	case n > limit:
		return fmt.Errorf("unpacked it is longer than %d bytes", limit)
	case want.Algorithm != "sha256" || hex.EncodeToString(h.Sum(nil)) != want.Hex:
		return errors.New("it is not the one that the image names")
	}
	return nil
}

// patient is a reader that ends when ctx does.
type patient struct {
	ctx context.Context //nolint:containedctx // that of the one call which reads
	io.Reader
}

func (p patient) Read(b []byte) (int, error) {
	if err := p.ctx.Err(); err != nil {
		return 0, err
	}
	return p.Reader.Read(b)
}

// archiveKind tells a container image's archive from a tar of a tree, by the names
// at its top.
func archiveKind(ctx context.Context, r io.Reader) (Kind, error) {
	t := tar.NewReader(patient{ctx, r})
	kind := KindTar
	for i := 0; ; i++ {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return kind, nil
		}
		if err != nil {
			return "", fmt.Errorf("%w: the tar cannot be read: %w", ErrTemplate, err)
		}
		switch name := filepath.Clean(h.Name); {
		case name == "manifest.json":
			if h.Size > maxConfig {
				return "", fmt.Errorf("%w: its manifest.json has %d bytes", ErrTemplate, h.Size)
			}
			var m []struct{ Config string }
			if json.NewDecoder(io.LimitReader(t, maxConfig)).Decode(&m) == nil && len(m) > 0 && m[0].Config != "" {
				return KindDocker, nil
			}
		case name == "oci-layout":
			kind = KindOCI // unless docker has written it, for readers of both kinds
		case i == 0 && !containerTop.MatchString(name):
			return KindTar, nil // not all of it need be looked through
		}
	}
}

// containerTop is what the archive of a container image begins with.
var containerTop = regexp.MustCompile(`^(?:blobs(?:/.*)?|oci-layout|index\.json|manifest\.json|repositories|[0-9a-f]{64}(?:/.*|\.json)?|sha256:[0-9a-f]{64}|\.)$`)

// unpackLayout unpacks the archive of an OCI layout into a folder: its blobs, and
// nothing else.
func unpackLayout(ctx context.Context, r io.Reader, dir string, limit int64) error {
	t := tar.NewReader(patient{ctx, r})
	for _, d := range []string{dir, filepath.Join(dir, "blobs"), filepath.Join(dir, "blobs", "sha256")} {
		if err := os.Mkdir(d, 0o700); err != nil {
			return err
		}
	}
	for {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%w: the tar cannot be read: %w", ErrTemplate, err)
		}
		name := filepath.Clean(h.Name)
		base := filepath.Base(name)
		known := name == "oci-layout" || name == "index.json" || filepath.Dir(name) == "blobs/sha256" && hexDigest.MatchString(base)
		if kindOf(h.Typeflag) != tar.TypeReg || !known {
			continue
		}
		if h.Size < 0 || h.Size > limit {
			return fmt.Errorf("%w: the container image is larger than %d bytes", ErrTemplate, limit)
		}
		limit -= h.Size
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
		if err != nil {
			return err
		}
		_, err = io.Copy(f, t)
		if err = errors.Join(err, f.Close()); err != nil {
			return fmt.Errorf("%w: the tar cannot be read: %w", ErrTemplate, err)
		}
	}
}
