package ami

import (
	"slices"
	"strconv"
	"strings"
)

// Field is something of an object under the name that filters have for it.
type Field struct{ Name, Value string }

// imageFilters are the names of DescribeImages' filters, beside tag:KEY.
func imageFilters() []string {
	return []string{
		"architecture", "block-device-mapping.delete-on-termination", "block-device-mapping.device-name",
		"block-device-mapping.encrypted", "block-device-mapping.snapshot-id", "block-device-mapping.volume-size",
		"block-device-mapping.volume-type", "boot-mode", "creation-date", "description", "ena-support", "hypervisor",
		"image-allowed", "image-id", "image-type", "is-public", "kernel-id", "manifest-location", "name", "owner-alias",
		"owner-id", "platform", "product-code", "product-code.type", "ramdisk-id", "root-device-name", "root-device-type",
		"source-image-id", "source-image-region", "source-instance-id", "sriov-net-support", "state", "state-reason-code",
		"state-reason-message", "tag-key", "virtualization-type",
	}
}

// CheckImageFilter returns InvalidFilter for a name that is none of DescribeImages'
// filters.
func CheckImageFilter(name string) error {
	if strings.HasPrefix(name, "tag:") || slices.Contains(imageFilters(), name) {
		return nil
	}
	return unknownFilter(name, "", imageFilters())
}

// ImageFields returns everything that filters find an image by; a name may have
// several values. What an image has not got is not there, so that no filter fits it:
// not "", not false, not *. The catalog keeps an index of just these.
func ImageFields(i Image) []Field {
	reason := StateReason{}
	if i.StateReason != nil {
		reason = *i.StateReason
	}
	all := []Field{
		{"architecture", string(i.Architecture)},
		{"boot-mode", string(i.BootMode)},
		{"creation-date", Date(i.CreationDate)},
		{"description", i.Description},
		{"hypervisor", i.Hypervisor},
		{"image-id", string(i.ImageID)},
		{"image-type", i.ImageType},
		{"is-public", strconv.FormatBool(i.Public)},
		{"kernel-id", string(i.KernelID)},
		{"manifest-location", i.ImageLocation},
		{"name", i.Name},
		{"ena-support", truth(i.EnaSupport)},
		{"owner-alias", i.OwnerAlias},
		{"owner-id", i.OwnerID},
		{"platform", i.Platform},
		{"sriov-net-support", i.SriovNetSupport},
		{"ramdisk-id", string(i.RamdiskID)},
		{"root-device-name", i.RootDeviceName},
		{"root-device-type", i.RootDeviceType},
		{"source-image-id", string(i.SourceImageID)},
		{"source-image-region", i.SourceImageRegion},
		{"source-instance-id", string(i.SourceInstanceID)},
		{"state", string(i.State)},
		{"state-reason-code", reason.Code},
		{"state-reason-message", reason.Message},
		{"virtualization-type", i.VirtualizationType},
	}
	for _, m := range i.BlockDeviceMappings {
		all = append(all, Field{"block-device-mapping.device-name", m.DeviceName})
		if m.Ebs == nil { // what is no volume has no field of one, not even a false
			continue
		}
		all = append(all,
			Field{"block-device-mapping.delete-on-termination", truth(m.Ebs.DeleteOnTermination)},
			Field{"block-device-mapping.encrypted", truth(m.Ebs.Encrypted)},
			Field{"block-device-mapping.snapshot-id", string(m.Ebs.SnapshotID)},
			Field{"block-device-mapping.volume-size", text(m.Ebs.VolumeSize)},
			Field{"block-device-mapping.volume-type", m.Ebs.VolumeType})
	}
	for _, c := range i.ProductCodes {
		all = append(all, Field{"product-code", c.ID}, Field{"product-code.type", c.Type})
	}
	all = slices.DeleteFunc(all, func(f Field) bool { return f.Value == "" })
	for _, t := range i.Tags { // of which one may well be empty
		all = append(all, Field{"tag-key", t.Key}, Field{"tag:" + t.Key, t.Value})
	}
	return all
}

// MatchImage says whether an image passes one of DescribeImages' filters. It
// returns InvalidFilter for a name that is none.
func MatchImage(i Image, name string, values []string) (bool, error) {
	if err := CheckImageFilter(name); err != nil {
		return false, err
	}
	return slices.ContainsFunc(ImageFields(i), func(f Field) bool {
		return f.Name == name && slices.ContainsFunc(values, func(v string) bool { return Match(v, f.Value) })
	}), nil
}

// Audience returns whom VisibleTo allows, in the words of launch permissions: the
// owner, and each account, organisation or unit that i was shared with, or GroupAll.
func (i Image) Audience() []string {
	out := []string{i.OwnerID}
	if i.Public {
		out = append(out, GroupAll)
	}
	for _, p := range i.LaunchPermissions {
		if p.Group == "" {
			out = append(out, p.String())
		}
	}
	return out
}

// ParsePattern takes EC2's pattern apart: the text that every match begins with, and
// whether that is all of it. ok is false for a pattern that nothing matches.
func ParsePattern(pattern string) (prefix string, whole, ok bool) {
	var b strings.Builder
	whole, ok = true, true
	for rest := pattern; rest != ""; rest = rest[1:] {
		switch rest[0] {
		case '*', '?':
			whole = false
		case '\\':
			if len(rest) == 1 {
				return "", false, false
			}
			rest = rest[1:]
		}
		if whole {
			b.WriteByte(rest[0])
		}
	}
	return b.String(), whole, ok
}

// EscapePattern returns the pattern that only s itself fits.
func EscapePattern(s string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`).Replace(s)
}
