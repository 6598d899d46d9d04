package ami

import (
	"slices"
	"strings"
)

// TPMv2 is the one version of TPMs that there is support for.
const TPMv2 = "v2.0"

// SriovSimple is the one kind of SR-IOV networking that an image can be said to know.
const SriovSimple = "simple"

// PlatformWindows is the one platform that images name.
const PlatformWindows = "windows"

// LinuxUsage is the usage operation of what is sold by nobody: Linux.
const LinuxUsage = "RunInstances"

// usages are EC2's usage operations, each with its platform details.
func usages() [][2]string {
	return [][2]string{
		{LinuxUsage, "Linux/UNIX"},
		{"RunInstances:00g0", "Red Hat BYOL Linux"},
		{"RunInstances:0010", "Red Hat Enterprise Linux"},
		{"RunInstances:1010", "Red Hat Enterprise Linux with HA"},
		{"RunInstances:1014", "Red Hat Enterprise Linux with SQL Server Standard and HA"},
		{"RunInstances:1110", "Red Hat Enterprise Linux with SQL Server Enterprise and HA"},
		{"RunInstances:0014", "Red Hat Enterprise Linux with SQL Server Standard"},
		{"RunInstances:0210", "Red Hat Enterprise Linux with SQL Server Web"},
		{"RunInstances:0110", "Red Hat Enterprise Linux with SQL Server Enterprise"},
		{"RunInstances:0100", "SQL Server Enterprise"},
		{"RunInstances:0004", "SQL Server Standard"},
		{"RunInstances:0200", "SQL Server Web"},
		{"RunInstances:000g", "SUSE Linux"},
		{"RunInstances:0g00", "Ubuntu Pro"},
		{"RunInstances:0002", "Windows"},
		{"RunInstances:0800", "Windows BYOL"},
		{"RunInstances:0102", "Windows with SQL Server Enterprise"},
		{"RunInstances:0006", "Windows with SQL Server Standard"},
		{"RunInstances:0202", "Windows with SQL Server Web"},
	}
}

// UsageOperations lists EC2's usage operations.
func UsageOperations() (out []string) {
	for _, u := range usages() {
		out = append(out, u[0])
	}
	return out
}

// CheckUsageOperation returns InvalidParameterValue for what is none of EC2's; "" is
// nothing said.
func CheckUsageOperation(usage string) error {
	if usage == "" || slices.Contains(UsageOperations(), usage) {
		return nil
	}
	return Errorf(CodeInvalidParameterValue, "The usage operation %q is not one of EC2's.", usage).
		WithHint("Linux has RunInstances, Windows RunInstances:0002, Red Hat Enterprise Linux RunInstances:0010; docs/images.md has all.")
}

// PlatformOf returns what goes with a usage operation: the platform details, and the
// platform, which is windows or "". "" is that of Linux.
func PlatformOf(usage string) (details, platform string) {
	for _, u := range usages() {
		if u[0] == usage || usage == "" && u[0] == LinuxUsage {
			details = u[1]
		}
	}
	if strings.HasPrefix(details, "Windows") {
		platform = PlatformWindows
	}
	return details, platform
}

// SetUsage gives an image a usage operation and what goes with it; "" is Linux's.
func (i *Image) SetUsage(usage string) {
	if usage == "" {
		usage = LinuxUsage
	}
	i.UsageOperation = usage
	i.PlatformDetails, i.Platform = PlatformOf(usage)
}

// RootSnapshot is the snapshot at an image's root device, "" for none.
func (i Image) RootSnapshot() SnapshotID {
	for _, m := range i.BlockDeviceMappings {
		if m.Ebs != nil && DeviceKey(m.DeviceName) == DeviceKey(i.RootDeviceName) {
			return m.Ebs.SnapshotID
		}
	}
	return ""
}

// InstanceUEFIData is what GetInstanceUefiData tells of an instance.
type InstanceUEFIData struct {
	InstanceID InstanceID `json:"InstanceId"`
	UEFIData   string     `json:"UefiData"` // base64
}
