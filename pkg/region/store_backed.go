package region

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
	"github.com/kamivm/kami/pkg/snapshot"
)

// verifyRecords finds the records that cannot be read, and those that are not
// backed by what they name. Layers are not looked at.
func (r *Region) verifyRecords(ctx context.Context, all records) ([]VerifyResult, error) {
	out := []VerifyResult{}
	for _, err := range all.damage {
		out = append(out, VerifyResult{
			Resource: "catalog.db", Detail: err.Error(),
			Advice: "Put a backup in the place of " + r.path("catalog.db") + "; everything else goes on without the record.",
		})
	}
	first := r.unbacked(ctx, all, false)
	if len(first) == 0 {
		return out, nil
	}
	// A command may just be at it: what is wrong is so a second time too.
	again, err := r.readRecords(ctx)
	if err != nil {
		return out, err
	}
	for _, res := range r.unbacked(ctx, again, true) {
		if slices.ContainsFunc(first, func(f VerifyResult) bool { return f.Resource == res.Resource }) {
			out = append(out, res)
		}
	}
	return out, nil
}

// unbacked finds the records that are not backed. With alone volumes are looked at
// while no other command is at work on them.
func (r *Region) unbacked(ctx context.Context, all records, alone bool) (out []VerifyResult) {
	for _, s := range all.snapshots {
		if s.State == ami.SnapshotCompleted && s.Layer == "" {
			out = append(out, VerifyResult{
				Resource: string(s.SnapshotID), Detail: "The snapshot is completed and has no layer.",
				Advice: "Delete it: kami snapshot delete " + string(s.SnapshotID), Snapshots: []ami.SnapshotID{s.SnapshotID},
			})
		}
	}
	for _, i := range all.images {
		if detail := r.unbackedImage(ctx, i, all); detail != "" {
			out = append(out, VerifyResult{
				Resource: string(i.ImageID), Detail: detail,
				Advice: r.imageAdvice(i), Images: []ami.ImageID{i.ImageID},
			})
		}
	}
	for _, i := range all.instances {
		for _, id := range volumesOf(i) {
			if _, there := all.volume[id]; there || i.State.Name == ami.InstancePending {
				continue
			}
			if !r.lacks(ctx, func(tx *catalog.Tx) error { _, err := tx.Volume(id); return err }) {
				continue
			}
			out = append(out, VerifyResult{
				Resource: string(i.InstanceID), Detail: fmt.Sprintf("Its volume %s does not exist.", id),
				Advice: "Terminate it: kami instance terminate " + string(i.InstanceID), Instances: []ami.InstanceID{i.InstanceID},
			})
			break
		}
	}
	for _, v := range all.volumes {
		if v.State == ami.VolumeCreating {
			continue
		}
		if err := r.verifyHead(ctx, v, alone); err != nil {
			out = append(out, r.headResult(v, err))
		}
	}
	return out
}

// lacks says whether a record that is asked for is not there. One that is there
// and cannot be read is told of as such.
func (r *Region) lacks(ctx context.Context, ask func(*catalog.Tx) error) bool {
	return errors.Is(r.catalog.View(ctx, ask), catalog.ErrNotFound)
}

// imageAdvice says what to do about an image that is not backed.
func (r *Region) imageAdvice(i ami.Image) string {
	if i.Data != "" {
		return fmt.Sprintf("Put a good copy of the %s in the place of %s, or deregister it: kami kernel deregister %s", i.ImageType, r.objectPath(i.Data), i.ImageID)
	}
	return "Deregister it: kami image deregister " + string(i.ImageID)
}

// unbackedImage says what an image lacks of what it names, "" for nothing.
func (r *Region) unbackedImage(ctx context.Context, i ami.Image, all records) string {
	if i.State != ami.ImageAvailable {
		return ""
	}
	for _, id := range snapshotsOf(i) {
		if _, there := all.snapshot[id]; !there && r.lacks(ctx, func(tx *catalog.Tx) error { _, err := tx.Snapshot(id); return err }) {
			return fmt.Sprintf("Its snapshot %s does not exist.", id)
		}
	}
	if detail := r.unbackedBundle(ctx, i); detail != "" {
		return detail
	}
	for _, d := range objectsOf(i) {
		if err := r.copyObject(io.Discard, d); err != nil {
			what := "Its UEFI variables cannot be read"
			if d == i.Data {
				what = "Its content cannot be read"
			}
			return fmt.Sprintf("%s: %v", what, err)
		}
	}
	return ""
}

// verifyHead looks at a volume's head; with alone, at the volume as it is while no
// other command is at work on it. One that is at work for long is not waited for.
func (r *Region) verifyHead(ctx context.Context, v ami.Volume, alone bool) error {
	if alone {
		waiting, cancel := context.WithTimeout(ctx, soon)
		defer cancel()
		unlock, err := r.lockVolumes(waiting, []ami.Volume{v})
		if err != nil {
			return nil // another command has it, and may be what was seen
		}
		defer unlock()
		if v, err = r.volumeRecord(ctx, v.VolumeID); err != nil {
			return nil // it was deleted meanwhile
		}
	}
	return r.layers.VerifyHead(ctx, v.VolumeID, v.Layer, v.SizeBytes)
}

// headResult is what is told of a volume whose head is not well.
func (r *Region) headResult(v ami.Volume, err error) VerifyResult {
	said := strings.TrimPrefix(err.Error(), snapshot.ErrCorrupt.Error()+": ")
	res := VerifyResult{Resource: string(v.VolumeID), Detail: "Its disk is damaged: " + said, Volumes: []ami.VolumeID{v.VolumeID}}
	if errors.Is(err, snapshot.ErrNotFound) {
		res.Detail = "Its disk is missing."
	}
	undo := "delete the volume: kami volume delete " + string(v.VolumeID)
	if len(v.Attachments) > 0 {
		id := v.Attachments[0].InstanceID
		res.Instances = []ami.InstanceID{id}
		undo = "detach the volume, or terminate the instance: kami instance terminate " + string(id)
	}
	res.Advice = fmt.Sprintf("Put a backup in the place of %s while no guest uses it, or %s", r.layers.HeadPath(v.VolumeID), undo)
	return res
}
