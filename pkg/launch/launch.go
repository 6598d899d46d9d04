// Package launch turns what a person asks for into a machine: an image's block
// device mapping and the launch's own become one (Merge), a size has a name
// (Type), and an instance with its disks becomes a machine.Spec (BuildSpec) that
// any driver can run. All of it is pure.
package launch

import (
	"fmt"
	"slices"
	"strings"

	"github.com/kamivm/kami/pkg/ami"
)

// EphemeralGiB is the size of an ephemeralN disk, in GiB.
const EphemeralGiB = 4

// maxEphemeral is how many ephemeral disks a host offers; more are ignored, as
// EC2 does.
const maxEphemeral = 4

// Merge lays a launch's mapping over an image's, device by device. root names
// the image's root device, of which only size, type (with its Iops and
// Throughput) and DeleteOnTermination can change. The result has the root first, every size that is known, and
// DeleteOnTermination said for all. It returns InvalidBlockDeviceMapping with
// every fault.
func Merge(image, over []ami.BlockDeviceMapping, root string) ([]ami.BlockDeviceMapping, error) {
	if err := ami.ValidateMapping(over); err != nil {
		return nil, err
	}
	out := slices.Clone(image)
	var faults []string
	for _, m := range over {
		key := ami.DeviceKey(m.DeviceName)
		isRoot := key == ami.DeviceKey(root)
		i := slices.IndexFunc(out, func(o ami.BlockDeviceMapping) bool { return ami.DeviceKey(o.DeviceName) == key })
		switch {
		case isRoot && m.Ebs == nil:
			faults = append(faults, fmt.Sprintf("the root device %s cannot be replaced or left out", root))
		case isRoot && m.Ebs.SnapshotID != "" && i >= 0 && (out[i].Ebs == nil || m.Ebs.SnapshotID != out[i].Ebs.SnapshotID):
			faults = append(faults, fmt.Sprintf("the snapshot of the root device %s cannot be changed", root))
		case m.NoDevice != nil && i >= 0:
			out = slices.Delete(out, i, i+1)
		case m.NoDevice != nil:
		case i >= 0 && m.Ebs != nil && out[i].Ebs != nil:
			out[i].Ebs = mergeEBS(*out[i].Ebs, *m.Ebs)
		case i >= 0:
			out[i] = m
		default:
			out = append(out, m)
		}
	}
	out = slices.DeleteFunc(out, func(m ami.BlockDeviceMapping) bool { return m.NoDevice != nil })
	out = dropSurplus(out)
	for i, m := range out {
		if m.Ebs == nil {
			continue
		}
		isRoot := ami.DeviceKey(m.DeviceName) == ami.DeviceKey(root)
		if m.Ebs.SnapshotID == "" && m.Ebs.VolumeSize == nil {
			faults = append(faults, fmt.Sprintf("%s needs a snapshot or a size", m.DeviceName))
		}
		ebs := *m.Ebs
		if ebs.DeleteOnTermination == nil {
			ebs.DeleteOnTermination = &isRoot
		}
		out[i].Ebs = &ebs
	}
	if len(faults) > 0 {
		return nil, ami.Errorf(ami.CodeInvalidBlockDeviceMapping, "The block device mapping cannot be used: %s.", strings.Join(faults, "; "))
	}
	slices.SortStableFunc(out, func(a, b ami.BlockDeviceMapping) int { return rank(a, root) - rank(b, root) })
	return out, nil
}

func rank(m ami.BlockDeviceMapping, root string) int {
	if ami.DeviceKey(m.DeviceName) == ami.DeviceKey(root) {
		return 0
	}
	return 1
}

// mergeEBS lays what over says over under. Another snapshot brings its own size.
func mergeEBS(under, over ami.EBSBlockDevice) *ami.EBSBlockDevice {
	if over.SnapshotID != "" && over.SnapshotID != under.SnapshotID {
		under.SnapshotID, under.VolumeSize = over.SnapshotID, nil
	}
	if over.VolumeSize != nil {
		under.VolumeSize = over.VolumeSize
	}
	if over.DeleteOnTermination != nil {
		under.DeleteOnTermination = over.DeleteOnTermination
	}
	if over.VolumeType != "" {
		under.VolumeType = over.VolumeType
	}
	if over.Iops != nil {
		under.Iops = over.Iops
	}
	if over.Throughput != nil {
		under.Throughput = over.Throughput
	}
	if over.Encrypted != nil {
		under.Encrypted = over.Encrypted
	}
	if over.KmsKeyID != "" {
		under.KmsKeyID = over.KmsKeyID
	}
	return &under
}

func dropSurplus(mapping []ami.BlockDeviceMapping) []ami.BlockDeviceMapping {
	n := 0
	return slices.DeleteFunc(mapping, func(m ami.BlockDeviceMapping) bool {
		if m.VirtualName == "" {
			return false
		}
		n++
		return n > maxEphemeral
	})
}
