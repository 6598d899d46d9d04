package snapshot

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/digest"
	"github.com/kamivm/kami/pkg/internal/durable"
)

// RemoveLayer removes a layer. It returns ErrInUse when a layer or head stands
// on it. One that is not there is no error.
func (s *Store) RemoveLayer(d digest.Digest) error {
	on, err := s.standing()
	if err != nil {
		return err
	}
	if len(on[d]) > 0 {
		return fmt.Errorf("%w: %s stands on %s", ErrInUse, on[d][0], d.Short())
	}
	return s.remove(d)
}

// RemoveLayers removes those layers on which nothing stands, or only others of
// them that come before, and returns which it removed. Nobody may make a layer or
// a head meanwhile that stands on one of them.
func (s *Store) RemoveLayers(layers []digest.Digest) (removed []digest.Digest, err error) {
	on, err := s.standing()
	if err != nil {
		return nil, err
	}
	gone := map[string]bool{}
	for _, d := range layers {
		inUse := false
		for _, name := range on[d] {
			inUse = inUse || !gone[name]
		}
		if inUse {
			continue
		}
		if err := s.remove(d); err != nil {
			return removed, err
		}
		gone[filepath.Base(s.layerPath(d))] = true
		removed = append(removed, d)
	}
	return removed, nil
}

// standing says which layers and heads stand on each layer, by the names of their
// files. What cannot be read stands on nothing that could be known.
func (s *Store) standing() (map[digest.Digest][]string, error) {
	on := map[digest.Digest][]string{}
	for _, kind := range []struct{ glob, dir string }{{"layers/*.qcow2", ""}, {"volumes/*.qcow2", "../layers/"}} {
		names, err := filepath.Glob(filepath.Join(s.root, kind.glob))
		if err != nil {
			return nil, err
		}
		for _, name := range names {
			_, parent, _, err := inspect(name, kind.dir)
			if err != nil && !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrNotFound) {
				return nil, err
			}
			if parent != "" {
				on[parent] = append(on[parent], filepath.Base(name))
			}
		}
	}
	return on, nil
}

func (s *Store) remove(d digest.Digest) error {
	// The layer last: without its block list it is whole, and can be removed
	// again, while a list without a layer would stay.
	if err := s.RemoveBlocks(d); err != nil {
		return err
	}
	return durable.Remove(s.layerPath(d))
}

// RemoveBlocks removes the list of a layer's block digests. One that is not there
// is no error.
func (s *Store) RemoveBlocks(d digest.Digest) error { return durable.Remove(s.blocksPath(d)) }

// StrayBlocks lists the layers that are not there while the lists of their block
// digests are.
func (s *Store) StrayBlocks() (stray []digest.Digest, err error) {
	names, err := filepath.Glob(s.blocksPath("*"))
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		d, err := digest.Parse(strings.TrimSuffix(filepath.Base(name), ".blocks"))
		if err != nil {
			continue // not ours
		}
		if _, err := os.Lstat(s.layerPath(d)); errors.Is(err, os.ErrNotExist) {
			stray = append(stray, d)
		}
	}
	return stray, nil
}

// Head is what the store knows of a volume's head.
type Head struct {
	VolumeID ami.VolumeID
	Layer    digest.Digest // that it stands on; "" for none, or where it cannot be read
}

// Heads lists the heads that are there, whatever is known of their volumes.
func (s *Store) Heads() (heads []Head, err error) {
	names, err := filepath.Glob(s.HeadPath("*"))
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		id, err := ami.ParseVolumeID(strings.TrimSuffix(filepath.Base(name), ".qcow2"))
		if err != nil {
			continue // not ours
		}
		_, layer, _, err := inspect(name, "../layers/")
		if err != nil && !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrNotFound) {
			return nil, err
		}
		heads = append(heads, Head{id, layer})
	}
	return heads, nil
}

// FileBusy says whether a process on this host has the image file at path open as
// QEMU does, as a disk or as what a disk stands on. One that is not there nobody
// has.
func FileBusy(path string) (bool, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	lock := unix.Flock_t{Type: unix.F_WRLCK, Start: lockBase, Len: lockLength}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &lock); err != nil {
		return false, fmt.Errorf("asking who has %s open: %w", filepath.Base(path), err)
	}
	return lock.Type != unix.F_UNLCK, nil
}
