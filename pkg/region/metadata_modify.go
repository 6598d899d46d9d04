package region

import (
	"context"
	"errors"
	"io/fs"
	"os"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
	"github.com/kamivm/kami/pkg/disk"
	"github.com/kamivm/kami/pkg/hypervisor"
	"github.com/kamivm/kami/pkg/internal/durable"
	"github.com/kamivm/kami/pkg/launch"
)

// identity makes all that tells the guest of inst who it is, as of this start.
func (r *Region) identity(ctx context.Context, driver hypervisor.Driver, inst ami.Instance) error {
	md, err := r.startMetadata(ctx, driver, inst, nil)
	if err != nil || inst.NoSeed {
		return err
	}
	seed := r.seedPath(inst.InstanceID)
	if _, err := os.Lstat(seed); !errors.Is(err, fs.ErrNotExist) {
		return storeError(err, "The guest's seed cannot be looked at.")
	}
	err = disk.WriteSeed(seed, disk.Seed{MetaData: launch.MetaData(md), UserData: md.UserData, VendorData: launch.VendorData(md)})
	return storeError(err, "The guest's seed cannot be written.")
}

// checkToldTags finds tags that the metadata cannot have, where they have tags.
func checkToldTags(o ami.MetadataOptions, tags []ami.Tag) error {
	if o.InstanceTags != ami.Enabled {
		return nil
	}
	return ami.CheckMetadataTags(tags)
}

// ModifyMetadataOptionsInput asks for other options of an instance's metadata
// service. What is not said stays.
type ModifyMetadataOptionsInput struct {
	InstanceID ami.InstanceID
	Options    ami.MetadataOptions
	DryRun     bool
}

// ModifyInstanceMetadataOptions changes how an instance's metadata service
// answers, from its guest's next request on, and returns the options that hold
// then.
func (r *Region) ModifyInstanceMetadataOptions(ctx context.Context, in ModifyMetadataOptionsInput) (ami.MetadataOptions, error) {
	none := ami.MetadataOptions{}
	if in.Options == none {
		return none, ami.Errorf(ami.CodeMissingParameter, "No metadata option was given.")
	}
	if err := in.Options.Validate(); err != nil {
		return none, err
	}
	if _, err := r.ownRecord(ctx, in.InstanceID); err != nil {
		return none, err
	}
	var now ami.MetadataOptions
	err := r.tellingGuests(ctx, []string{string(in.InstanceID)}, func() error {
		return r.catalog.Update(ctx, func(tx *catalog.Tx) error {
			inst, err := tx.Instance(in.InstanceID)
			if err != nil {
				return err
			}
			now = in.Options.Over(inst.MetadataOptions.Over(ami.DefaultMetadataOptions("")))
			if err := checkToldTags(now, inst.Tags); err != nil {
				return err
			}
			if in.DryRun {
				return dryRun("change the metadata options of %s", in.InstanceID)
			}
			inst.MetadataOptions = now
			return tx.PutInstance(inst)
		})
	})
	return now, storeError(err, "The metadata options of %s cannot be changed.", in.InstanceID)
}

// UserData returns the user data of an instance, nil for none.
func (r *Region) UserData(ctx context.Context, id ami.InstanceID) ([]byte, error) {
	if _, err := r.ownRecord(ctx, id); err != nil {
		return nil, err
	}
	md, err := readMetadata(r.metadataPath(id))
	if errors.Is(err, errNoMetadata) {
		return nil, nil
	}
	return md.UserData, storeError(err, "The user data of %s cannot be read.", id)
}

// ModifyUserData gives a stopped instance other user data; none for no bytes. The
// guest finds them when it starts, and what cloud-init did at its first boot it
// does not do again.
func (r *Region) ModifyUserData(ctx context.Context, id ami.InstanceID, data []byte, dry bool) error {
	if err := checkUserData(data); err != nil {
		return err
	}
	if _, err := r.ownRecord(ctx, id); err != nil {
		return err
	}
	return r.whileLocked(ctx, id, func(now ami.Instance) error {
		if now.State.Name != ami.InstanceStopped {
			return incorrectState(now, "given other user data", "stopped")
		}
		if dry {
			return dryRun("change the user data of %s", id)
		}
		// The seed is made anew from the metadata when the guest starts: whenever
		// this ends, the two agree.
		if err := durable.Remove(r.seedPath(id)); err != nil {
			return storeError(err, "The seed of %s cannot be removed.", id)
		}
		driver, err := r.driver(ctx, now.Connect)
		if err != nil {
			return err
		}
		_, err = r.startMetadata(ctx, driver, now, func(md *ami.Metadata) { md.UserData = data })
		return err
	})
}

func checkUserData(data []byte) error {
	if len(data) <= MaxUserData {
		return nil
	}
	return ami.Errorf(ami.CodeInvalidParameterValue, "The user data has %d bytes; at most %d are allowed.", len(data), MaxUserData).
		WithHint("Let a short script fetch the rest.")
}
