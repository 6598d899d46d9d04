package region

import (
	"context"
	"errors"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
)

// records are a region's records at one instant, oldest first, of all accounts:
// its bytes are everybody's.
type records struct {
	images    []ami.Image // without those that are only remembered
	snapshots []ami.Snapshot
	volumes   []ami.Volume
	instances []ami.Instance // without those that are terminated
	cached    []catalog.CachedLayer
	damage    []error // an ErrDamaged for each that cannot be read

	snapshot map[ami.SnapshotID]ami.Snapshot
	volume   map[ami.VolumeID]ami.Volume
}

func (r *Region) readRecords(ctx context.Context) (records, error) {
	var all records
	err := r.catalog.View(ctx, func(tx *catalog.Tx) (err error) {
		var errs [5]error
		all = records{snapshot: map[ami.SnapshotID]ami.Snapshot{}, volume: map[ami.VolumeID]ami.Volume{}}
		images, err := tx.Images()
		errs[0] = err
		all.snapshots, errs[1] = tx.Snapshots()
		all.volumes, errs[2] = tx.Volumes()
		instances, err := tx.Instances()
		errs[3] = err
		all.cached, errs[4] = tx.CachedLayers()
		for _, err := range errs {
			if err != nil && !errors.Is(err, catalog.ErrDamaged) {
				return err
			}
		}
		for _, i := range images {
			if i.State != ami.ImageDeregistered {
				all.images = append(all.images, i)
			}
		}
		for _, i := range instances {
			if i.State.Name != ami.InstanceTerminated {
				all.instances = append(all.instances, i)
			}
		}
		all.damage, err = tx.Verify()
		return err
	})
	for _, s := range all.snapshots {
		all.snapshot[s.SnapshotID] = s
	}
	for _, v := range all.volumes {
		all.volume[v.VolumeID] = v
	}
	return all, storeError(err, "The catalog cannot be read.")
}

// snapshotsOf returns the snapshots that an image maps, each once.
func snapshotsOf(i ami.Image) (ids []ami.SnapshotID) {
	seen := map[ami.SnapshotID]bool{}
	for _, m := range i.BlockDeviceMappings {
		if m.Ebs != nil && m.Ebs.SnapshotID != "" && !seen[m.Ebs.SnapshotID] {
			seen[m.Ebs.SnapshotID] = true
			ids = append(ids, m.Ebs.SnapshotID)
		}
	}
	return ids
}
