// Package snapshot keeps a region's bytes: layers, which never change and are
// named by the SHA-256 of their file, and heads, the writable overlays of
// volumes.
//
// A layer is written in a scratch folder, made durable and moved to its name;
// whoever sees the name sees the whole. Beside it lies the list of its block
// digests, which can be made again from the layer. A layer says in its header
// which parent it stands on, so that the store needs no records of its own.
package snapshot

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/kamivm/kami/pkg/digest"
	"github.com/kamivm/kami/pkg/internal/durable"
	"github.com/kamivm/kami/pkg/qcow2"
)

// Sentinels, wrapped by what the methods return.
var (
	ErrNotFound = errors.New("no such layer or head")
	ErrInUse    = errors.New("something stands on the layer")
	ErrNoSpace  = errors.New("no space left")
	ErrCorrupt  = errors.New("damaged layer")
	ErrTooSmall = errors.New("smaller than its layer")
	ErrPlain    = errors.New("not encrypted over what is")
)

// MaxDepth is how many layers a chain has in the long run, so that no read walks
// a long way. A layer that is one more costs what changed like any other, and its
// chain is then to be merged (MergeLayer); longestChain is what a chain may grow
// to meanwhile. Only a layer past that is written whole at once.
const (
	MaxDepth     = 12
	longestChain = 32
)

// minFree is what has to be free before a layer is begun, in bytes.
const minFree = 64 << 20

// Store is one region's layers and heads. It is safe for concurrent use, also
// by several processes.
type Store struct {
	root string
	keys qcow2.Keys  // nil for none
	long atomic.Bool // see LongChain
}

// Layer is what the store knows of a layer.
type Layer struct {
	Digest   digest.Digest
	Parent   digest.Digest // "" for none
	Content  digest.Digest // set by WriteLayer only
	Size     int64         // virtual, in bytes
	FileSize int64         // in bytes
	Depth    int           // 1 without a parent
	KeyID    string        // of the key that encrypts it, "" for none
	Created  time.Time     // when it got its name on this host
}

// Open opens the store under a region's root, making its folders. What is
// encrypted cannot be read; OpenKeyed gives it the keys for that.
func Open(root string) (*Store, error) { return OpenKeyed(root, nil) }

// OpenKeyed is Open of a store that can read what those keys encrypt.
func OpenKeyed(root string, keys qcow2.Keys) (*Store, error) {
	// The guest's process may run as another user that has to pass through.
	for _, dir := range []string{"layers", "volumes", "tmp"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o711); err != nil {
			return nil, err
		}
	}
	return &Store{root: root, keys: keys}, nil
}

// Sweep removes the work of processes that are gone.
func (s *Store) Sweep() error {
	_, err := durable.SweepScratch(s.tmp())
	return err
}

func (s *Store) tmp() string { return filepath.Join(s.root, "tmp") }
func (s *Store) layerPath(d digest.Digest) string {
	return filepath.Join(s.root, "layers", d.Hex()+".qcow2")
}

func (s *Store) blocksPath(d digest.Digest) string {
	return filepath.Join(s.root, "layers", d.Hex()+".blocks")
}
func parentName(d digest.Digest) string { return d.Hex() + ".qcow2" }

// inspect reads the header of the qcow2 file at path and the layer that it names
// as its backing file, which must be named as kami names it.
func inspect(path, dir string) (info qcow2.Info, parent digest.Digest, st os.FileInfo, err error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return info, "", nil, fmt.Errorf("%w: %s", ErrNotFound, filepath.Base(path))
	}
	if err != nil {
		return info, "", nil, err
	}
	defer f.Close()
	if st, err = f.Stat(); err != nil {
		return info, "", nil, err
	}
	if info, err = qcow2.Inspect(f, st.Size()); err != nil {
		return info, "", st, fmt.Errorf("%w: %s: %w", ErrCorrupt, filepath.Base(path), err)
	}
	if info.BackingName == "" {
		return info, "", st, nil
	}
	name, ok := strings.CutPrefix(info.BackingName, dir)
	hex, ok2 := strings.CutSuffix(name, ".qcow2")
	parent = digest.Digest(hex)
	if !ok || !ok2 || !parent.Valid() || info.BackingFormat != "qcow2" {
		return info, "", st, fmt.Errorf("%w: %s names %q as its backing file", ErrCorrupt, filepath.Base(path), info.BackingName)
	}
	return info, parent, st, nil
}

// Layer describes a layer. It returns ErrNotFound, also when an ancestor is
// missing, or ErrCorrupt.
func (s *Store) Layer(d digest.Digest) (Layer, error) {
	l := Layer{Digest: d}
	for at := d; ; l.Depth++ {
		info, parent, st, err := inspect(s.layerPath(at), "")
		if err != nil {
			return l, err
		}
		if at == d {
			l.Parent, l.Size, l.FileSize, l.Created, l.KeyID = parent, info.Size, st.Size(), st.ModTime(), info.KeyID
		}
		if parent == "" {
			l.Depth++
			return l, nil
		}
		// Digests make a cycle impossible unless files were tampered with.
		if l.Depth >= longestChain-1 {
			return l, fmt.Errorf("%w: the chain of %s has no end", ErrCorrupt, d.Short())
		}
		at = parent
	}
}

// Chain returns the absolute paths of a layer and its ancestors, nearest first.
func (s *Store) Chain(d digest.Digest) ([]string, error) {
	var paths []string
	for d != "" {
		if len(paths) == longestChain {
			return nil, fmt.Errorf("%w: a chain of more than %d layers", ErrCorrupt, longestChain)
		}
		_, parent, _, err := inspect(s.layerPath(d), "")
		if err != nil {
			return nil, err
		}
		paths = append(paths, s.layerPath(d))
		d = parent
	}
	return paths, nil
}

// OpenLayer opens a layer with its whole chain for reading.
func (s *Store) OpenLayer(d digest.Digest) (*qcow2.Image, error) {
	chain, err := s.Chain(d)
	if err != nil {
		return nil, err
	}
	return qcow2.OpenKeyed(s.keys, chain[0], chain[1:]...)
}

// noSpace marks an error of a full disk.
func noSpace(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%w: %w", ErrNoSpace, err)
	}
	return err
}

// checkFree refuses to begin where there is hardly any space.
func (s *Store) checkFree() error {
	var st syscall.Statfs_t
	if err := syscall.Statfs(s.root, &st); err != nil {
		return err
	}
	if free := int64(st.Bavail) * st.Bsize; free < minFree {
		return fmt.Errorf("%w: %d MiB free at %s", ErrNoSpace, free>>20, s.root)
	}
	return nil
}
