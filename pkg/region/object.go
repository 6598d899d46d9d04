package region

import (
	"errors"
	"io/fs"
	"os"

	"github.com/kamivm/kami/pkg/digest"
	"github.com/kamivm/kami/pkg/internal/durable"
)

type digestName = digest.Digest

func (r *Region) objectPath(d digest.Digest) string { return r.path("objects", d.Hex()) }

// putObject keeps a small object under its digest.
func (r *Region) putObject(b []byte) (digest.Digest, error) {
	d := digest.Of(b)
	if _, err := os.Stat(r.objectPath(d)); err == nil {
		return d, nil
	}
	err := durable.WriteFile(r.objectPath(d), 0o444, func(f *os.File) error {
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
		err = errors.New("its bytes do not have that digest")
	}
	return b, storeError(err, "The object %s is damaged.", d.Short())
}
