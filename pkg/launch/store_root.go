package launch

import (
	"fmt"
	"slices"
	"strings"

	"github.com/kamivm/kami/pkg/ami"
)

// MaxStoreRootGiB is how large a launch can make the root of an instance-store
// image, EC2's limit, in GiB. A bundle that is larger has its own size.
const MaxStoreRootGiB = 10

// StoreRoot takes out of a launch's mapping what it says of the root of an
// instance-store image, whose bundle has size bytes: no more than how large it is
// and that it is encrypted, since it is no volume and ends with its instance. It
// returns the root, with a size if one was asked for, and the rest, and
// InvalidBlockDeviceMapping with every fault.
func StoreRoot(over []ami.BlockDeviceMapping, root string, size int64) (ami.BlockDeviceMapping, []ami.BlockDeviceMapping, error) {
	del := true
	out := ami.BlockDeviceMapping{DeviceName: root, VirtualName: ami.VirtualRoot, Ebs: &ami.EBSBlockDevice{DeleteOnTermination: &del}}
	if err := ami.ValidateMapping(over); err != nil {
		return out, nil, err
	}
	isRoot := func(m ami.BlockDeviceMapping) bool { return ami.DeviceKey(m.DeviceName) == ami.DeviceKey(root) }
	i := slices.IndexFunc(over, isRoot)
	if i < 0 {
		return out, over, nil
	}
	var faults []string
	fault := func(bad bool, format string, args ...any) {
		if bad {
			faults = append(faults, fmt.Sprintf(format, args...))
		}
	}
	said := over[i].Ebs
	if said == nil {
		said = &ami.EBSBlockDevice{}
		fault(true, "the root device %s cannot be replaced or left out", root)
	}
	fault(said.SnapshotID != "", "the root device %s is made of the image's bundle, not of a snapshot", root)
	fault(said.DeleteOnTermination != nil && !*said.DeleteOnTermination, "the root device %s ends with its instance", root)
	fault(said.VolumeType != "" || said.Iops != nil || said.Throughput != nil, "the root device %s has no volume type: it is a disk of the host's", root)
	if s := said.VolumeSize; s != nil {
		least := (size + 1<<30 - 1) >> 30
		most := max(MaxStoreRootGiB, least)
		fault(*s < least || *s > most, "the root device %s can have from %d to %d GiB, not %d", root, least, most, *s)
	}
	if len(faults) > 0 {
		return out, nil, ami.Errorf(ami.CodeInvalidBlockDeviceMapping, "The block device mapping cannot be used: %s.", strings.Join(faults, "; "))
	}
	out.Ebs.VolumeSize, out.Ebs.Encrypted, out.Ebs.KmsKeyID = said.VolumeSize, said.Encrypted, said.KmsKeyID
	return out, slices.DeleteFunc(slices.Clone(over), isRoot), nil
}
