package kms

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/kamivm/kami/pkg/internal/durable"
)

// Dir is a store of one file a key, named by the key's id, that only its owner
// can read.
type Dir struct{ root string }

var _ Store = (*Dir)(nil)

// OpenDir opens the store in a folder, which is made with the first key.
func OpenDir(root string) *Dir { return &Dir{root} }

// record is a key's file: JSON, with the version of its format.
type record struct {
	Version     int       `json:"Version"`
	ID          string    `json:"KeyId"`
	Alias       string    `json:"AliasName,omitempty"`
	Description string    `json:"Description,omitempty"`
	Created     time.Time `json:"CreationDate"`
	Material    []byte    `json:"KeyMaterial"`
}

const (
	version       = 1
	materialBytes = 32
	maxRecord     = 64 << 10 // bytes
	suffix        = ".json"
)

func (d *Dir) path(id string) string { return filepath.Join(d.root, id+suffix) }

// Create makes a key.
func (d *Dir) Create(ctx context.Context, alias, description string) (Key, error) {
	if alias != "" && !ValidAlias(alias) {
		return Key{}, fmt.Errorf("%q is not an alias", alias)
	}
	if err := os.MkdirAll(d.root, 0o700); err != nil {
		return Key{}, err
	}
	if err := durable.SyncDir(filepath.Dir(d.root)); err != nil { // the folder may be new
		return Key{}, err
	}
	lock, err := durable.AcquireLock(ctx, filepath.Join(d.root, ".lock")) // so that two do not take one alias
	if err != nil {
		return Key{}, err
	}
	defer lock.Unlock()
	if alias != "" {
		if _, err := d.Find(ctx, alias); !errors.Is(err, ErrNotFound) {
			if err == nil {
				err = fmt.Errorf("%w: %s", ErrExists, alias)
			}
			return Key{}, err
		}
	}
	r := record{
		Version: version, ID: uuid.NewString(), Alias: alias, Description: description,
		Created: time.Now().UTC().Truncate(time.Millisecond), Material: make([]byte, materialBytes),
	}
	if _, err := rand.Read(r.Material); err != nil {
		return Key{}, err
	}
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return Key{}, err
	}
	durable.Step("key.made")
	err = durable.WriteFile(d.path(r.ID), 0o600, func(f *os.File) error {
		_, err := f.Write(append(text, '\n'))
		return err
	})
	return r.key(), err
}

func (r record) key() Key {
	return Key{ID: r.ID, Alias: r.Alias, Description: r.Description, Created: r.Created}
}

// Find returns the key with that id or alias.
func (d *Dir) Find(ctx context.Context, name string) (Key, error) {
	if !strings.HasPrefix(name, "alias/") {
		r, err := d.read(name)
		return r.key(), err
	}
	all, err := d.List(ctx)
	if i := slices.IndexFunc(all, func(k Key) bool { return k.Alias == name }); i >= 0 {
		return all[i], nil
	}
	if err != nil { // it may be the one that cannot be read
		return Key{}, err
	}
	return Key{}, fmt.Errorf("%w: %s", ErrNotFound, name)
}

// List returns all keys.
func (d *Dir) List(ctx context.Context) ([]Key, error) {
	entries, err := os.ReadDir(d.root)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	keys := []Key{}
	var errs []error
	for _, e := range entries {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		id, ok := strings.CutSuffix(e.Name(), suffix)
		if !ok || !isID(id) { // not ours
			continue
		}
		r, err := d.read(id)
		if errors.Is(err, ErrNotFound) { // deleted meanwhile
			continue
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		keys = append(keys, r.key())
	}
	slices.SortFunc(keys, func(a, b Key) int {
		if c := a.Created.Compare(b.Created); c != 0 {
			return c
		}
		return strings.Compare(a.ID, b.ID)
	})
	return keys, errors.Join(errs...)
}

// Passphrase is the key's material in base64: text, for disks are opened by
// programs that take a passphrase to be text.
func (d *Dir) Passphrase(_ context.Context, id string) ([]byte, error) {
	r, err := d.read(id)
	if err != nil {
		return nil, err
	}
	return base64.StdEncoding.AppendEncode(nil, r.Material), nil
}

// Delete destroys a key.
func (d *Dir) Delete(_ context.Context, id string) error {
	if _, err := d.read(id); err != nil && !errors.Is(err, ErrDamaged) {
		return err
	}
	return durable.Remove(d.path(id))
}

func (d *Dir) read(id string) (record, error) {
	if !isID(id) {
		return record{}, fmt.Errorf("%w: %s", ErrNotFound, id)
	}
	st, err := os.Stat(d.path(id))
	if errors.Is(err, fs.ErrNotExist) {
		return record{}, fmt.Errorf("%w: %s", ErrNotFound, id)
	}
	if err != nil {
		return record{}, err
	}
	damaged := func(format string, args ...any) (record, error) {
		return record{}, fmt.Errorf("%w: %s: %s", ErrDamaged, id, fmt.Sprintf(format, args...))
	}
	if st.Size() > maxRecord {
		return damaged("a file of %d bytes", st.Size())
	}
	text, err := os.ReadFile(d.path(id))
	if err != nil {
		return record{}, err
	}
	var r record
	// What a decoder says of a wrong file may show parts of it.
	if err := json.Unmarshal(text, &r); err != nil {
		return damaged("the file is not a key's")
	}
	switch {
	case r.Version != version:
		return damaged("version %d of the format is not known here", r.Version)
	case r.ID != id:
		return damaged("the file is that of the key %s", r.ID)
	case len(r.Material) != materialBytes:
		return damaged("the key has %d bytes", len(r.Material))
	}
	return r, nil
}

// isID says whether a name is a key's id in the one way in which it is written,
// so that it is safe as a file's name too.
func isID(name string) bool {
	id, err := uuid.Parse(name)
	return err == nil && id.String() == name
}
