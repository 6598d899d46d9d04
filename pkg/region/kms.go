package region

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/google/uuid"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
	"github.com/kamivm/kami/pkg/digest"
	"github.com/kamivm/kami/pkg/kms"
	"github.com/kamivm/kami/pkg/machine"
	"github.com/kamivm/kami/pkg/qcow2"
)

// KMSKey is a key that encrypts volumes and snapshots, in the words of AWS's key
// management.
type KMSKey struct {
	KeyID       string    `json:"KeyId"`
	Alias       string    `json:"AliasName,omitempty"`
	Description string    `json:"Description,omitempty"`
	Created     time.Time `json:"CreationDate"`
	// UsedBy are the volumes and snapshots that cannot be read without it.
	UsedBy []string `json:"UsedBy"`
}

// CreateKMSKey makes a key. alias is "" or begins with "alias/".
func (r *Region) CreateKMSKey(ctx context.Context, alias, description string, dry bool) (KMSKey, error) {
	if alias != "" && !kms.ValidAlias(alias) {
		return KMSKey{}, ami.Errorf(ami.CodeInvalidParameterValue, "The alias %q is not valid.", alias).
			WithHint("Use alias/ and up to 240 letters, digits, slashes, underscores and hyphens.")
	}
	if alias != "" {
		if _, err := r.keys.Find(ctx, alias); err == nil {
			return KMSKey{}, aliasTaken(alias)
		}
	}
	if dry {
		return KMSKey{}, dryRun("create a key")
	}
	k, err := r.keys.Create(ctx, alias, description)
	if errors.Is(err, kms.ErrExists) {
		return KMSKey{}, aliasTaken(alias)
	}
	return describeKey(k, nil), storeError(err, "The key cannot be made.")
}

func aliasTaken(alias string) error {
	return ami.Errorf(ami.CodeKMSAlreadyExists, "A key with the alias %s exists already.", alias).
		WithHint("kami kms list shows the keys there are.")
}

func describeKey(k kms.Key, users []string) KMSKey {
	if users == nil {
		users = []string{}
	}
	return KMSKey{KeyID: k.ID, Alias: k.Alias, Description: k.Description, Created: k.Created, UsedBy: users}
}

// DescribeKMSKeys returns the keys of those ids or aliases, all for none.
func (r *Region) DescribeKMSKeys(ctx context.Context, names ...string) ([]KMSKey, error) {
	var users map[string][]string
	err := r.catalog.View(ctx, func(tx *catalog.Tx) (err error) {
		users, _, err = r.keyUsers(ctx, tx)
		return err
	})
	if err != nil {
		return nil, storeError(err, "It cannot be told what the keys are needed for.")
	}
	keys := []kms.Key{}
	if len(names) == 0 {
		keys, err = r.keys.List(ctx)
		if errors.Is(err, kms.ErrDamaged) { // does not hide the others
			r.progress.Note("%v", err)
			err = nil
		}
		if err != nil {
			return nil, storeError(err, "The keys cannot be listed.")
		}
	}
	for _, name := range names {
		k, err := r.findKey(ctx, name)
		if err != nil {
			return nil, err
		}
		keys = append(keys, k)
	}
	out := []KMSKey{}
	for _, k := range keys {
		out = append(out, describeKey(k, users[k.ID]))
	}
	return out, nil
}

// DeleteKMSKey destroys a key that nothing needs.
func (r *Region) DeleteKMSKey(ctx context.Context, name string, dry bool) error {
	k, err := r.findKey(ctx, name)
	if err != nil {
		return err
	}
	// While nothing can be recorded: what is begun later finds no key.
	err = r.catalog.Update(ctx, func(tx *catalog.Tx) error {
		users, broken, err := r.keyUsers(ctx, tx)
		if err != nil {
			return err
		}
		if of := users[k.ID]; len(of) > 0 {
			return ami.Errorf(ami.CodeOperationNotPermitted, "The key %s is needed by %s; without it they could never be read again.", k.ID, some(of, 3)).
				WithHint("Delete those first, or copy them to another key: kami snapshot copy --encrypted --kms-key-id. Of a volume make a snapshot first, and a volume of the copy.")
		}
		if len(broken) > 0 {
			return ami.Errorf(ami.CodeOperationNotPermitted, "It cannot be told whether the key %s is needed: the layer %s, or what it stands on, is missing or damaged.", k.ID, broken[0].Short()).
				WithHint("kami store verify says what that harms.")
		}
		if dry {
			return dryRun("delete the key %s", k.ID)
		}
		return r.keys.Delete(ctx, k.ID)
	})
	return storeError(err, "The key %s cannot be deleted.", k.ID)
}

// some names the first n of a list, and how many more there are.
func some(list []string, n int) string {
	out := ""
	for i, s := range list[:min(n, len(list))] {
		if i > 0 {
			out += ", "
		}
		out += s
	}
	if more := len(list) - n; more > 0 {
		out += fmt.Sprintf(" and %d more", more)
	}
	return out
}

func (r *Region) findKey(ctx context.Context, name string) (kms.Key, error) {
	k, err := r.keys.Find(ctx, name)
	if errors.Is(err, kms.ErrNotFound) {
		return k, ami.Errorf(ami.CodeKMSNotFound, "The key '%s' does not exist.", name).
			WithHint("kami kms list shows the keys there are; kami kms create makes one.")
	}
	return k, storeError(err, "The key %s cannot be read.", name)
}

// keyUsers says which volumes and snapshots could not be read without each key,
// for one may stand on layers that others encrypt. A record that cannot be read is
// left out, and a layer of which cannot be told what it stands on is returned.
func (r *Region) keyUsers(ctx context.Context, tx *catalog.Tx) (users map[string][]string, broken []digest.Digest, err error) {
	vols, err := tx.Volumes()
	if err = r.legible(err); err != nil {
		return nil, nil, err
	}
	snaps, err := tx.Snapshots()
	if err = r.legible(err); err != nil {
		return nil, nil, err
	}
	set, err := r.layerSet(ctx)
	if err != nil {
		return nil, nil, err
	}
	users = map[string][]string{}
	note := func(id, key string, layer digest.Digest) {
		keys := map[string]bool{key: true}
		if layer != "" {
			chain, end := set.chain(layer)
			for _, d := range chain {
				keys[set[d].KeyID] = true
			}
			if end != "" {
				broken = append(broken, end)
			}
		}
		for key := range keys {
			users[key] = append(users[key], id)
		}
	}
	for _, v := range vols {
		note(string(v.VolumeID), v.KmsKeyID, v.Layer)
	}
	for _, s := range snaps {
		note(string(s.SnapshotID), s.KmsKeyID, s.Layer)
	}
	return users, broken, nil
}

// keyFor is the id of the key that something new is encrypted with, "" for none,
// as EC2 decides it: what comes from an encrypted snapshot is encrypted, by that
// one's key unless another is named; what is to be encrypted without a key being
// named is so by the region's own, which is made for the first.
func (r *Region) keyFor(ctx context.Context, encrypted *bool, name string, from ami.Snapshot, dry bool) (string, error) {
	switch {
	case name != "" && (encrypted == nil || !*encrypted):
		return "", ami.Errorf(ami.CodeInvalidParameterDependency, "The parameter KmsKeyId requires the parameter Encrypted to be set.").
			WithHint("Add --encrypted, or Encrypted=true in the mapping.")
	case from.Encrypted && encrypted != nil && !*encrypted:
		return "", ami.Errorf(ami.CodeInvalidParameterCombination, "What is made from the encrypted snapshot %s is encrypted too.", from.SnapshotID).
			WithHint("Leave Encrypted away, or make it true to choose another key.")
	case name != "":
		k, err := r.findKey(ctx, name)
		return k.ID, err
	case from.Encrypted:
		return from.KmsKeyID, nil
	case encrypted == nil || !*encrypted:
		return "", nil
	}
	k, err := r.keys.Find(ctx, kms.DefaultAlias)
	if errors.Is(err, kms.ErrNotFound) && !dry {
		k, err = r.keys.Create(ctx, kms.DefaultAlias, "Made for the first thing that was to be encrypted without a key being named")
		if errors.Is(err, kms.ErrExists) { // another command was first
			k, err = r.keys.Find(ctx, kms.DefaultAlias)
		}
	}
	if dry && errors.Is(err, kms.ErrNotFound) {
		return "", nil
	}
	return k.ID, storeError(err, "The region's own key cannot be read.")
}

// passphrase is what opens the disks that a key encrypts, for the layers' store.
func (r *Region) passphrase(id string) ([]byte, error) {
	secret, err := r.keys.Passphrase(context.Background(), id)
	switch {
	case errors.Is(err, kms.ErrNotFound):
		err = fmt.Errorf("%w: the region has none with the id %s", qcow2.ErrNoKey, id)
	case errors.Is(err, kms.ErrDamaged):
		err = fmt.Errorf("%w: %w", qcow2.ErrNoKey, err)
	}
	return secret, err
}

// diskKeys are the keys that a guest needs for the files of a disk, by path, each
// under a name of its own for this one time.
func (r *Region) diskKeys(paths []string) (map[string]machine.Key, error) {
	var keys map[string]machine.Key
	byID := map[string]machine.Key{}
	for _, path := range paths {
		id, err := r.layers.KeyOf(path)
		if err != nil {
			return nil, storeError(err, "The disk %s cannot be read.", filepath.Base(path))
		}
		if id == "" {
			continue
		}
		if _, ok := byID[id]; !ok {
			secret, err := r.passphrase(id)
			if err != nil {
				return nil, storeError(err, "The disk %s cannot be opened.", filepath.Base(path))
			}
			byID[id] = machine.Key{ID: uuid.NewString(), Passphrase: secret}
		}
		if keys == nil {
			keys = map[string]machine.Key{}
		}
		keys[path] = byID[id]
	}
	return keys, nil
}

// copiesKey is the key for the copies of what the guest overwrites on a disk of
// that encryption while it is read, nil for none.
func (r *Region) copiesKey(enc *qcow2.Encryption) (*machine.Key, error) {
	if enc == nil {
		return nil, nil
	}
	secret, err := r.passphrase(enc.KeyID())
	return &machine.Key{ID: uuid.NewString(), Passphrase: secret}, storeError(err, "The key of a disk cannot be read.")
}

// keyHint says what to do where a key is missing, damaged or another one than
// that which something was encrypted with.
const keyHint = "kami kms list shows the keys there are; put the key's file back into the region's folder kms from your copy of it."
