package region

import (
	"fmt"
	"slices"
	"strings"

	"github.com/kamivm/kami/pkg/digest"
)

// harm says what stands on each layer, and so is harmed where that is not well.
func (r *Region) harm(set layerSet, all records) map[digest.Digest]VerifyResult {
	out := map[digest.Digest]VerifyResult{}
	on := func(layer digest.Digest, add func(*VerifyResult)) {
		if layer == "" {
			return
		}
		chain, _ := set.chain(layer)
		for _, d := range chain {
			res := out[d]
			add(&res)
			out[d] = res
		}
	}
	for _, image := range all.images {
		for _, id := range snapshotsOf(image) {
			on(all.snapshot[id].Layer, func(res *VerifyResult) { res.Images = with(res.Images, image.ImageID) })
		}
		on(all.cachedRoot(image), func(res *VerifyResult) { res.Images = with(res.Images, image.ImageID) })
	}
	for _, s := range all.snapshots {
		on(s.Layer, func(res *VerifyResult) { res.Snapshots = with(res.Snapshots, s.SnapshotID) })
	}
	for _, v := range all.volumes {
		on(v.Layer, func(res *VerifyResult) { res.Volumes = with(res.Volumes, v.VolumeID) })
	}
	for _, inst := range all.instances {
		held, err := r.guestHolds(inst)
		for _, id := range volumesOf(inst) {
			on(all.volume[id].Layer, func(res *VerifyResult) {
				res.Instances = with(res.Instances, inst.InstanceID)
				if held && err == nil {
					res.Running = with(res.Running, inst.InstanceID)
				}
			})
		}
	}
	return out
}

// with adds an id to a list that does not have it.
func with[T comparable](ids []T, id T) []T {
	if slices.Contains(ids, id) {
		return ids
	}
	return append(ids, id)
}

// layerAdvice says what to do about a layer that is not well.
func (r *Region) layerAdvice(d digest.Digest, set layerSet, all records, res VerifyResult) string {
	if len(res.Snapshots)+len(res.Volumes) == 0 && all.isCached(d) {
		return fmt.Sprintf("Remove %s: it was cached, and the next launch that needs it makes it again.", r.path("layers", d.Hex()+".qcow2"))
	}
	if len(res.Images)+len(res.Snapshots)+len(res.Volumes) == 0 {
		return "Nothing needs it: kami store gc removes it."
	}
	missing := d
	if l, there := set[d]; there && l.Parent != "" {
		if _, there := set[l.Parent]; !there {
			missing = l.Parent
		}
	}
	var b strings.Builder
	fmt.Fprintf(&b, "Put a good copy in the place of %s: from a backup, or from another home that has a layer of this name, which is as good.", r.path("layers", missing.Hex()+".qcow2"))
	var without []string
	if len(res.Images) > 0 {
		without = append(without, "deregister the images (kami image deregister --delete-snapshots)")
	} else if len(res.Snapshots) > 0 {
		without = append(without, "delete the snapshots (kami snapshot delete)")
	}
	if len(res.Instances) > 0 {
		without = append(without, "terminate the instances (kami instance terminate) when what can still be read is copied out of them")
	} else if len(res.Volumes) > 0 {
		without = append(without, "delete the volumes (kami volume delete)")
	}
	fmt.Fprintf(&b, " Without one, %s.", strings.Join(without, ", and "))
	return b.String()
}
