package region

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
)

// CreateTags sets tags on objects, all or none. A key that is there already
// gets the new value.
func (r *Region) CreateTags(ctx context.Context, ids []string, tags []ami.Tag, dry bool) error {
	if len(tags) == 0 {
		return ami.Errorf(ami.CodeMissingParameter, "No tags were given.").WithHint("Give tags as key=value.")
	}
	if err := ami.ValidateTags(tags); err != nil {
		return err
	}
	err := r.editTags(ctx, ids, dry, func(have []ami.Tag) ([]ami.Tag, error) {
		for _, t := range tags {
			i := slices.IndexFunc(have, func(h ami.Tag) bool { return h.Key == t.Key })
			if i < 0 {
				have = append(have, t)
			} else {
				have[i] = t
			}
		}
		return have, ami.ValidateTags(slices.DeleteFunc(slices.Clone(have), isReserved))
	})
	if err == nil && dry {
		return dryRun("tag %s", strings.Join(ids, ", "))
	}
	return err
}

// DeleteTags removes keys from objects, all or none. A key that is not there is
// no error.
func (r *Region) DeleteTags(ctx context.Context, ids, keys []string, dry bool) error {
	if i := slices.IndexFunc(keys, func(k string) bool { return isReserved(ami.Tag{Key: k}) }); i >= 0 {
		return ami.Errorf(ami.CodeInvalidTagKeyMalformed, "The tag %q cannot be removed: keys that begin with aws: are reserved.", keys[i])
	}
	err := r.editTags(ctx, ids, dry, func(have []ami.Tag) ([]ami.Tag, error) {
		return slices.DeleteFunc(have, func(t ami.Tag) bool { return slices.Contains(keys, t.Key) }), nil
	})
	if err == nil && dry {
		return dryRun("remove tags from %s", strings.Join(ids, ", "))
	}
	return err
}

// isReserved says whether a tag is kami's to set: those that say what launched an
// instance.
func isReserved(t ami.Tag) bool { return strings.HasPrefix(t.Key, "aws:") }

var errDry = errors.New("dry run")

func (r *Region) editTags(ctx context.Context, ids []string, dry bool, edit func([]ami.Tag) ([]ami.Tag, error)) error {
	err := r.tellingGuests(ctx, ids, func() error {
		return r.catalog.Update(ctx, func(tx *catalog.Tx) error {
			for _, id := range ids {
				if err := r.editTagsOf(tx, id, edit); err != nil {
					return err
				}
			}
			if dry {
				return errDry // roll back
			}
			return nil
		})
	})
	if errors.Is(err, errDry) {
		return nil
	}
	return storeError(err, "The tags cannot be written.")
}

func (r *Region) editTagsOf(tx *catalog.Tx, id string, edit func([]ami.Tag) ([]ami.Tag, error)) (err error) {
	switch prefix, _, _ := strings.Cut(id, "-"); prefix {
	case "ami", "aki", "ari":
		image, err := tx.Image(ami.ImageID(id))
		if err != nil || image.OwnerID != r.account || image.State == ami.ImageDeregistered {
			return notFoundOr(err, notFoundImage(ami.ImageID(id)))
		}
		if image.Tags, err = edit(image.Tags); err != nil {
			return err
		}
		return tx.PutImage(image)
	case "snap":
		snap, err := tx.Snapshot(ami.SnapshotID(id))
		if err != nil || snap.OwnerID != r.account || snap.State == ami.SnapshotRecoverable {
			return notFoundOr(err, notFoundSnapshot(ami.SnapshotID(id)))
		}
		if snap.Tags, err = edit(snap.Tags); err != nil {
			return err
		}
		return tx.PutSnapshot(snap)
	case "key":
		return r.editTagsOfKey(tx, id, edit)
	case "vol":
		vol, err := tx.Volume(ami.VolumeID(id))
		if err != nil || vol.OwnerID != r.account {
			return notFoundOr(err, notFoundVolume(ami.VolumeID(id)))
		}
		if vol.Tags, err = edit(vol.Tags); err != nil {
			return err
		}
		return tx.PutVolume(vol)
	case "i":
		inst, err := tx.Instance(ami.InstanceID(id))
		if err != nil || inst.OwnerID != r.account {
			return notFoundOr(err, notFoundInstance(ami.InstanceID(id)))
		}
		if inst.Tags, err = edit(inst.Tags); err != nil {
			return err
		}
		if err := checkToldTags(inst.MetadataOptions, inst.Tags); err != nil {
			return err
		}
		return tx.PutInstance(inst)
	}
	return ami.Errorf(ami.CodeInvalidParameterValue, "The id %q is of nothing that has tags.", id).
		WithHint("Tags go on images (ami-, aki-, ari-), snapshots (snap-), volumes (vol-), instances (i-) and key pairs (key-).")
}

func (r *Region) editTagsOfKey(tx *catalog.Tx, id string, edit func([]ami.Tag) ([]ami.Tag, error)) error {
	all, err := tx.KeyPairs()
	if err = r.legible(err); err != nil {
		return err
	}
	n := slices.IndexFunc(all, func(k ami.KeyPair) bool { return string(k.KeyPairID) == id && k.OwnerID == r.account })
	if n < 0 {
		return notFoundKeyPair(id)
	}
	if all[n].Tags, err = edit(all[n].Tags); err != nil {
		return err
	}
	return tx.PutKeyPair(all[n])
}

// notFoundOr returns missing when err is nil or says that there is no record.
func notFoundOr(err, missing error) error {
	if err == nil || errors.Is(err, catalog.ErrNotFound) {
		return missing
	}
	return err
}
