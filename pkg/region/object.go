package region

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
	"github.com/kamivm/kami/pkg/digest"
	"github.com/kamivm/kami/pkg/internal/durable"
)

// An object is what a record names that is no layer: kernels, ramdisks, the
// variables of UEFI. It is named by its digest. The lock of the layers guards the
// objects too: what is put while it is held is not garbage to anybody before its
// record is written, by then or under a lease.

type digestName = digest.Digest

func (r *Region) objectPath(d digest.Digest) string { return r.path("objects", d.Hex()) }

// putObject keeps a small object under its digest, for a record that is written
// under a lease.
func (r *Region) putObject(ctx context.Context, b []byte) (digest.Digest, error) {
	d := digest.Of(b)
	lock, err := r.lockLayers(ctx)
	if err != nil {
		return d, storeError(err, "The objects cannot be locked.")
	}
	defer lock.Unlock()
	// Also one that is there: it is young again, and whole.
	err = durable.WriteFile(r.objectPath(d), 0o444, func(f *os.File) error {
		_, err := f.Write(b)
		return err
	})
	return d, storeError(err, "An object cannot be kept.")
}

// object returns a small object, verified.
func (r *Region) object(d digest.Digest) ([]byte, error) {
	b, err := os.ReadFile(r.objectPath(d))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, storeError(err, "The object %s is missing.", d.Short())
	}
	if err == nil && digest.Of(b) != d {
		err = errNotItsDigest
	}
	return b, storeError(err, "The object %s is damaged.", d.Short())
}

var errNotItsDigest = errors.New("its bytes do not have that digest")

// copyObject writes an object to w, and tells in the end whether it was what its
// name says.
func (r *Region) copyObject(w io.Writer, d digest.Digest) error {
	f, err := os.Open(r.objectPath(d))
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("the object %s is missing", d.Short())
	}
	if err != nil {
		return err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(io.MultiWriter(w, h), f); err != nil {
		return err
	}
	if digest.FromSum([sha256.Size]byte(h.Sum(nil))) != d {
		return fmt.Errorf("the object %s is damaged: %w", d.Short(), errNotItsDigest)
	}
	return nil
}

// objectsOf are the objects that an image names.
func objectsOf(i ami.Image) (out []digest.Digest) {
	for _, d := range []digest.Digest{i.UEFIData, i.Data} {
		if d != "" {
			out = append(out, d)
		}
	}
	return out
}

// namedObjects are the objects that records name. Where a record cannot be read,
// known is false: it may name any.
func (r *Region) namedObjects(ctx context.Context) (named map[digest.Digest]bool, known bool, err error) {
	err = r.catalog.View(ctx, func(tx *catalog.Tx) error {
		images, err := tx.Images()
		known, named = !errors.Is(err, catalog.ErrDamaged), map[digest.Digest]bool{}
		for _, i := range images {
			if i.State == ami.ImageDeregistered && i.RecycleBin == nil {
				continue
			}
			for _, d := range objectsOf(i) {
				named[d] = true
			}
		}
		return r.legible(err)
	})
	return named, known, storeError(err, "The catalog cannot be read.")
}

// objects lists what lies in the folder of objects under the name of a digest.
func (r *Region) objects() (all []digest.Digest, err error) {
	entries, err := os.ReadDir(r.path("objects"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, storeError(err, "The objects cannot be listed.")
	}
	for _, e := range entries {
		if d, err := digest.Parse(e.Name()); err == nil && e.Type().IsRegular() {
			all = append(all, d)
		}
	}
	return all, nil
}

// orphanObjects looks at the objects that no record names. With busy, commands are
// at work.
func (r *Region) orphanObjects(ctx context.Context, busy bool) (out []orphan, err error) {
	named, known, err := r.namedObjects(ctx)
	if err != nil {
		return nil, err
	}
	all, err := r.objects()
	if err != nil {
		return nil, err
	}
	for _, d := range all {
		if named[d] {
			continue
		}
		path := filepath.Join("objects", d.Hex())
		o := orphan{Garbage: Garbage{Path: path, Bytes: r.sizeOf(path), Reason: "no record needs the object", object: d}}
		switch info, err := os.Stat(r.path(path)); {
		case errors.Is(err, fs.ErrNotExist):
			continue
		case err != nil:
			return nil, storeError(err, "The object %s cannot be looked at.", d.Short())
		case !known:
			o.why = "a record that cannot be read may name it"
		case busy && time.Since(info.ModTime()) < gcGrace:
			o.why = "it is young, and a command is at work"
		}
		out = append(out, o)
	}
	return out, nil
}

// dropObjects removes those of the objects that nothing names any more.
func (r *Region) dropObjects(ctx context.Context, objects []digest.Digest) error {
	if len(objects) == 0 {
		return nil
	}
	lock, err := r.lockLayers(ctx)
	if err != nil {
		return err
	}
	defer lock.Unlock()
	leased, err := r.leased(ctx)
	if err != nil {
		return err
	}
	orphans, err := r.orphanObjects(ctx, len(leased) > 0)
	if err != nil {
		return err
	}
	for _, o := range orphans {
		for _, d := range objects {
			if o.object == d && o.why == "" {
				err = errors.Join(err, durable.Remove(r.path(o.Path)))
			}
		}
	}
	return err
}
