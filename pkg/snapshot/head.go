package snapshot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/digest"
	"github.com/kamivm/kami/pkg/internal/durable"
	"github.com/kamivm/kami/pkg/qcow2"
)

// BitmapName is the dirty bitmap that a fresh head on layer is made with.
func BitmapName(layer digest.Digest) string {
	if layer == "" {
		return "kami-blank"
	}
	return "kami-" + layer.Hex()[:24]
}

// HeadPath is the absolute path of a volume's head.
func (s *Store) HeadPath(id ami.VolumeID) string {
	return filepath.Join(s.root, "volumes", string(id)+".qcow2")
}

// CreateHead makes the head of a volume: a disk of size bytes that reads as
// layer ("" for zeros). key is the id of the key that encrypts what is written to
// it, "" for none, which an encrypted layer does not allow. It returns
// ErrNotFound when the layer is not there, ErrTooSmall for a size that would cut
// it off, ErrPlain, and qcow2's ErrNoKey and ErrWrongKey.
func (s *Store) CreateHead(id ami.VolumeID, size int64, layer digest.Digest, key string) (path string, err error) {
	path = s.HeadPath(id)
	if _, err := os.Lstat(path); err == nil {
		return "", fmt.Errorf("head %s: %w", id, os.ErrExist)
	}
	return path, s.ReplaceHead(id, size, layer, key)
}

// ReplaceHead puts an empty head on layer in the place of a volume's head. No
// guest may have the old one open.
func (s *Store) ReplaceHead(id ami.VolumeID, size int64, layer digest.Digest, key string) error {
	backing := ""
	if layer != "" {
		info, _, _, err := inspect(s.layerPath(layer), "")
		if err != nil {
			return err
		}
		if size < info.Size {
			return fmt.Errorf("%w: a disk of %d bytes on the layer %s of %d", ErrTooSmall, size, layer.Short(), info.Size)
		}
		backing = "../layers/" + parentName(layer)
	}
	enc, err := s.encryptionOn(layer, key)
	if err != nil {
		return err
	}
	scratch, err := durable.NewScratch(s.tmp(), "head")
	if err != nil {
		return noSpace(err)
	}
	defer scratch.Close()
	work := scratch.Path("head.qcow2")
	if err := qcow2.CreateHead(work, size, backing, BitmapName(layer), enc); err != nil {
		return noSpace(err)
	}
	durable.Step("head.written")
	return noSpace(durable.Rename(work, s.HeadPath(id)))
}

// OpenHead opens a volume's head over its layer for reading. No guest may have
// it open for writing.
func (s *Store) OpenHead(id ami.VolumeID, layer digest.Digest) (*qcow2.Image, error) {
	_, parent, _, err := inspect(s.HeadPath(id), "../layers/")
	if err != nil {
		return nil, err
	}
	if parent != layer {
		return nil, fmt.Errorf("%w: the head of %s stands on another layer than its record says", ErrCorrupt, id)
	}
	var chain []string
	if layer != "" {
		if chain, err = s.Chain(layer); err != nil {
			return nil, err
		}
	}
	img, err := qcow2.OpenKeyed(s.keys, s.HeadPath(id), chain...)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%w: %s", ErrNotFound, id)
	}
	return img, err
}

// RemoveHead removes a volume's head. One that is not there is no error.
func (s *Store) RemoveHead(id ami.VolumeID) error { return durable.Remove(s.HeadPath(id)) }

// LockVolume takes the sole right to work on a volume, waiting until ctx ends.
func (s *Store) LockVolume(ctx context.Context, id ami.VolumeID) (*durable.Lock, error) {
	return durable.AcquireLock(ctx, filepath.Join(s.tmp(), string(id)+".lock"))
}
