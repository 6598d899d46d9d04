package ami

import (
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Match says whether s fits EC2's pattern: * is any text, ? any one character,
// and a backslash takes the next character as it is.
func Match(pattern, s string) bool {
	p, t := []rune(pattern), []rune(s)
	star, mark := -1, 0
	i, j := 0, 0
	for j < len(t) {
		switch {
		case i < len(p) && p[i] == '*':
			star, mark = i, j
			i++
			continue
		case i < len(p) && p[i] == '?':
			i, j = i+1, j+1
			continue
		case i+1 < len(p) && p[i] == '\\' && p[i+1] == t[j]:
			i, j = i+2, j+1
			continue
		case i < len(p) && p[i] != '\\' && p[i] == t[j]:
			i, j = i+1, j+1
			continue
		}
		if star < 0 {
			return false
		}
		mark++
		i, j = star+1, mark
	}
	for i < len(p) && p[i] == '*' {
		i++
	}
	return i == len(p)
}

// match says whether any field fits any value.
func match(values []string, fields ...string) (bool, error) {
	return slices.ContainsFunc(fields, func(f string) bool {
		return slices.ContainsFunc(values, func(v string) bool { return Match(v, f) })
	}), nil
}

// matchTags deals with the filters that every noun has; ok says whether name is one.
func matchTags(tags []Tag, name string, values []string) (m, ok bool) {
	if name == "tag-key" {
		for _, t := range tags {
			if m, _ := match(values, t.Key); m {
				return true, true
			}
		}
		return false, true
	}
	key, ok := strings.CutPrefix(name, "tag:")
	if !ok {
		return false, false
	}
	for _, t := range tags {
		if m, _ := match(values, t.Value); m && t.Key == key {
			return true, true
		}
	}
	return false, true
}

// unknownFilter says which ones there are instead: all, or those that begin as it does.
func unknownFilter(name, prefix string, known []string) error {
	all := slices.Clone(known)
	if prefix == "" {
		all = append(all, "tag-key", "tag:KEY")
	}
	slices.Sort(all)
	return Errorf(CodeInvalidFilter, "The filter '%s' is invalid", name).
		WithHint("There are %s.", prefix+strings.Join(slices.Compact(all), ", "+prefix))
}

// Date is a time as filters have it: UTC, in milliseconds.
func Date(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000Z") }

func text(n *int64) string {
	if n == nil {
		return ""
	}
	return strconv.FormatInt(*n, 10)
}

func truth(b *bool) string { return strconv.FormatBool(b != nil && *b) }

func lookUp(fields map[string]string, name string, values []string) (bool, error) {
	f, ok := fields[name]
	if !ok {
		return false, unknownFilter(name, "", slices.Collect(maps.Keys(fields)))
	}
	if f == "" { // what is not there nothing fits, not even *
		return false, nil
	}
	return match(values, f)
}

// MatchSnapshot is MatchImage for snapshots.
func MatchSnapshot(s Snapshot, name string, values []string) (bool, error) {
	if m, ok := matchTags(s.Tags, name, values); ok {
		return m, nil
	}
	return lookUp(map[string]string{
		"description": s.Description, "encrypted": strconv.FormatBool(s.Encrypted), "owner-id": s.OwnerID,
		"progress": s.Progress, "snapshot-id": string(s.SnapshotID), "start-time": Date(s.StartTime),
		"status": string(s.State), "volume-id": string(s.VolumeID), "volume-size": strconv.FormatInt(s.VolumeSize, 10),
		"storage-tier": "standard", "owner-alias": "",
	}, name, values)
}

// MatchVolume is MatchImage for volumes.
func MatchVolume(v Volume, name string, values []string) (bool, error) {
	if m, ok := matchTags(v.Tags, name, values); ok {
		return m, nil
	}
	if field, ok := strings.CutPrefix(name, "attachment."); ok {
		a := VolumeAttachment{}
		if len(v.Attachments) > 0 {
			a = v.Attachments[0]
		}
		fields := map[string]string{
			"device": a.Device, "instance-id": string(a.InstanceID), "status": a.State,
			"delete-on-termination": strconv.FormatBool(a.DeleteOnTermination), "attach-time": Date(a.AttachTime),
		}
		m, err := lookUp(fields, field, values)
		if err != nil {
			return false, unknownFilter(name, "attachment.", slices.Collect(maps.Keys(fields)))
		}
		// One that is not attached has none of these, not false or "".
		return m && len(v.Attachments) > 0, nil
	}
	return lookUp(map[string]string{
		"create-time": Date(v.CreateTime), "encrypted": strconv.FormatBool(v.Encrypted),
		"size": strconv.FormatInt(v.Size, 10), "snapshot-id": string(v.SnapshotID), "status": string(v.State),
		"volume-id": string(v.VolumeID), "volume-type": v.VolumeType, "multi-attach-enabled": "false", "fast-restored": "false",
		"attachment.*": "", // dealt with above
	}, name, values)
}

// MatchInstance is MatchImage for instances.
func MatchInstance(i Instance, name string, values []string) (bool, error) {
	if m, ok := matchTags(i.Tags, name, values); ok {
		return m, nil
	}
	if field, ok := strings.CutPrefix(name, "block-device-mapping."); ok {
		return matchDevices(i, field, values)
	}
	switch name {
	case "product-code":
		return match(values, ProductCodeIDs(i.ProductCodes)...)
	case "product-code.type":
		var types []string
		for _, c := range i.ProductCodes {
			types = append(types, c.Type)
		}
		return match(values, types...)
	}
	reason := StateReason{}
	if i.StateReason != nil {
		reason = *i.StateReason
	}
	return lookUp(map[string]string{
		"architecture": string(i.Architecture), "image-id": string(i.ImageID), "instance-id": string(i.InstanceID),
		"instance-state-name": string(i.State.Name), "instance-state-code": strconv.Itoa(i.State.Code),
		"instance-type": i.InstanceType, "key-name": i.KeyName, "launch-time": Date(i.LaunchTime),
		"launch-index": strconv.Itoa(i.AmiLaunchIndex), "owner-id": i.OwnerID, "private-ip-address": i.PrivateIPAddress,
		"reservation-id": string(i.ReservationID), "root-device-name": i.RootDeviceName,
		"root-device-type": i.RootDeviceType, "virtualization-type": i.VirtualizationType, "boot-mode": string(i.BootMode),
		"platform": i.Platform, "platform-details": i.PlatformDetails, "usage-operation": i.UsageOperation,
		"kernel-id": string(i.KernelID), "ramdisk-id": string(i.RamdiskID), "hypervisor": "kvm",
		"current-instance-boot-mode": string(i.CurrentBootMode), "private-dns-name": i.Hostname,
		"state-reason-code": reason.Code, "state-reason-message": reason.Message, "tenancy": "default",
		"metadata-options.http-tokens": i.MetadataOptions.HTTPTokens, "metadata-options.http-endpoint": i.MetadataOptions.HTTPEndpoint,
		"metadata-options.instance-metadata-tags": i.MetadataOptions.InstanceTags,
		// What no instance has here.
		"instance-lifecycle": "", "dns-name": "", "ip-address": "", "client-token": "",
		// Dealt with above.
		"block-device-mapping.*": "", "product-code": "", "product-code.type": "",
	}, name, values)
}

// matchDevices is MatchInstance for the fields of the devices.
func matchDevices(i Instance, field string, values []string) (bool, error) {
	fields := map[string]func(InstanceBlockDevice) string{
		"device-name":           func(d InstanceBlockDevice) string { return d.DeviceName },
		"volume-id":             func(d InstanceBlockDevice) string { return string(d.Ebs.VolumeID) },
		"status":                func(d InstanceBlockDevice) string { return d.Ebs.Status },
		"attach-time":           func(d InstanceBlockDevice) string { return Date(d.Ebs.AttachTime) },
		"delete-on-termination": func(d InstanceBlockDevice) string { return strconv.FormatBool(d.Ebs.DeleteOnTermination) },
	}
	get := fields[field]
	if get == nil {
		const prefix = "block-device-mapping."
		return false, unknownFilter(prefix+field, prefix, slices.Collect(maps.Keys(fields)))
	}
	var has []string
	for _, d := range i.BlockDeviceMappings {
		has = append(has, get(d))
	}
	return match(values, has...)
}

// MatchKeyPair is MatchImage for key pairs.
func MatchKeyPair(k KeyPair, name string, values []string) (bool, error) {
	if m, ok := matchTags(k.Tags, name, values); ok {
		return m, nil
	}
	return lookUp(map[string]string{
		"fingerprint": k.KeyFingerprint, "key-name": k.KeyName, "key-pair-id": string(k.KeyPairID),
	}, name, values)
}
