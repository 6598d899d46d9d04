package ami

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
)

// ParseMapping reads a block device mapping in any of EC2's forms: JSON (one
// object or a list), the shorthand of the AWS CLI
// (DeviceName=/dev/sdb,Ebs={VolumeSize=20}), or the short form of the EC2 tools
// (/dev/sdb=SNAPSHOT:SIZE:DELETE:TYPE, /dev/sdb=ephemeral0, /dev/sdb=none). It
// returns InvalidBlockDeviceMapping with every fault that it finds.
func ParseMapping(s string) ([]BlockDeviceMapping, error) {
	s = strings.TrimSpace(s)
	var (
		out []BlockDeviceMapping
		err error
	)
	switch {
	case strings.HasPrefix(s, "["):
		err = strictJSON(s, &out)
	case strings.HasPrefix(s, "{"):
		out = make([]BlockDeviceMapping, 1)
		err = strictJSON(s, &out[0])
	case strings.HasPrefix(s, "DeviceName="):
		out, err = parseShorthand(s)
	default:
		out, err = parseShort(s)
	}
	if err != nil {
		return nil, Errorf(CodeInvalidBlockDeviceMapping, "The block device mapping %q cannot be read: %w.", s, err).
			WithHint("Forms: /dev/sdb=:20 · /dev/sdb=snap-…:20:false · /dev/sdb=ephemeral0 · /dev/sdb=none · DeviceName=/dev/sdb,Ebs={VolumeSize=20} · JSON.")
	}
	return out, ValidateMapping(out)
}

func strictJSON(s string, v any) error {
	d := json.NewDecoder(bytes.NewReader([]byte(s)))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("there is something behind the JSON")
	}
	return nil
}

func parseShort(s string) ([]BlockDeviceMapping, error) {
	device, what, ok := strings.Cut(s, "=")
	if !ok {
		return nil, errors.New("it has no =")
	}
	m := BlockDeviceMapping{DeviceName: device}
	if what == "none" {
		m.NoDevice = new(string)
		return []BlockDeviceMapping{m}, nil
	}
	if strings.HasPrefix(what, "ephemeral") {
		m.VirtualName = what
		return []BlockDeviceMapping{m}, nil
	}
	fields := strings.Split(what, ":")
	keys := []string{"SnapshotId", "VolumeSize", "DeleteOnTermination", "VolumeType", "Iops", "Encrypted"}
	if len(fields) > len(keys) {
		return nil, fmt.Errorf("it has %d fields, at most %d are known", len(fields), len(keys))
	}
	if len(fields) == len(keys) && fields[5] == "encrypted" { // the word that ec2-api-tools used
		fields[5] = "true"
	}
	m.Ebs = &EBSBlockDevice{}
	var errs []error
	for i, f := range fields {
		if f != "" {
			errs = append(errs, m.Ebs.set(keys[i], f))
		}
	}
	return []BlockDeviceMapping{m}, errors.Join(errs...)
}

func (e *EBSBlockDevice) set(key, value string) (err error) {
	number := func() *int64 {
		var n int64
		n, err = strconv.ParseInt(value, 10, 64)
		return &n
	}
	truth := func() *bool {
		var b bool
		b, err = strconv.ParseBool(value)
		return &b
	}
	switch key {
	case "SnapshotId":
		e.SnapshotID = SnapshotID(value)
	case "VolumeSize":
		e.VolumeSize = number()
	case "DeleteOnTermination":
		e.DeleteOnTermination = truth()
	case "VolumeType":
		e.VolumeType = value
	case "Iops":
		e.Iops = number()
	case "Throughput":
		e.Throughput = number()
	case "Encrypted":
		e.Encrypted = truth()
	case "KmsKeyId":
		e.KmsKeyID = value
	default:
		return fmt.Errorf("unknown field Ebs.%s", key)
	}
	if err != nil {
		return fmt.Errorf("Ebs.%s has the value %q", key, value)
	}
	return nil
}

var ebsPart = regexp.MustCompile(`(?:^|,)Ebs=\{([^{}]*)\}`)

func parseShorthand(s string) ([]BlockDeviceMapping, error) {
	var m BlockDeviceMapping
	var errs []error
	if loc := ebsPart.FindStringSubmatchIndex(s); loc != nil {
		m.Ebs = &EBSBlockDevice{}
		for _, kv := range strings.Split(s[loc[2]:loc[3]], ",") {
			if k, v, ok := strings.Cut(kv, "="); ok {
				errs = append(errs, m.Ebs.set(k, v))
			} else if kv != "" {
				errs = append(errs, fmt.Errorf("Ebs has %q without a value", kv))
			}
		}
		s = s[:loc[0]] + s[loc[1]:]
	}
	for _, kv := range strings.Split(s, ",") {
		k, v, _ := strings.Cut(kv, "=")
		switch k {
		case "DeviceName":
			m.DeviceName = v
		case "VirtualName":
			m.VirtualName = v
		case "NoDevice":
			m.NoDevice = new(string)
		case "":
		default:
			errs = append(errs, fmt.Errorf("unknown field %s", k))
		}
	}
	return []BlockDeviceMapping{m}, errors.Join(errs...)
}

var (
	deviceName    = regexp.MustCompile(`^(?:/dev/)?(?:sd[a-z]{1,2}[0-9]{0,2}|xvd[a-z]{1,2}[0-9]{0,2}|vd[a-z]{1,2}[0-9]{0,2})$`)
	ephemeralName = regexp.MustCompile(`^ephemeral(?:[0-9]|1[0-9]|2[0-3])$`)
)

// CheckDeviceName checks the form of a device name (/dev/sdf, xvdf, /dev/sda1).
// It returns InvalidBlockDeviceMapping.
func CheckDeviceName(name string) error {
	if !deviceName.MatchString(name) {
		return Errorf(CodeInvalidBlockDeviceMapping, "The device name %q is not valid.", name).
			WithHint("Use a name such as /dev/sdf.")
	}
	return nil
}

// ValidateMapping checks each entry by itself and that no device is named
// twice. It returns InvalidBlockDeviceMapping with every fault.
func ValidateMapping(mapping []BlockDeviceMapping) error {
	var faults []string
	seen := map[string]bool{}
	for _, m := range mapping {
		faults = append(faults, m.faults()...)
		if seen[DeviceKey(m.DeviceName)] {
			faults = append(faults, fmt.Sprintf("the device %s is mapped twice", m.DeviceName))
		}
		seen[DeviceKey(m.DeviceName)] = true
	}
	if len(faults) > 0 {
		return Errorf(CodeInvalidBlockDeviceMapping, "The block device mapping is not valid: %s.", strings.Join(faults, "; "))
	}
	return nil
}

// DeviceKey is what two spellings of one device have in common.
func DeviceKey(name string) string { return strings.TrimPrefix(name, "/dev/") }

func (m BlockDeviceMapping) faults() (out []string) {
	bad := func(format string, args ...any) { out = append(out, m.DeviceName+": "+fmt.Sprintf(format, args...)) }
	kinds := 0
	for _, is := range []bool{m.Ebs != nil, m.VirtualName != "", m.NoDevice != nil} {
		if is {
			kinds++
		}
	}
	if !deviceName.MatchString(m.DeviceName) {
		bad("the device name %q is not valid", m.DeviceName)
	}
	if kinds != 1 {
		bad("it needs exactly one of Ebs, VirtualName and NoDevice")
	}
	if m.VirtualName != "" && !ephemeralName.MatchString(m.VirtualName) {
		bad("VirtualName %q is not ephemeral0 to ephemeral23", m.VirtualName)
	}
	if m.Ebs == nil {
		return out
	}
	if id := m.Ebs.SnapshotID; id != "" {
		if _, err := ParseSnapshotID(string(id)); err != nil {
			bad("Ebs.SnapshotId %q is not a snapshot's id", id)
		}
	}
	if s := m.Ebs.VolumeSize; s != nil && (*s < 1 || *s > 64<<10) {
		bad("Ebs.VolumeSize %d is not from 1 to 65536 GiB", *s)
	}
	switch m.Ebs.VolumeType {
	case "", "standard", "gp2", "gp3", "io1", "io2", "st1", "sc1":
	default:
		bad("Ebs.VolumeType %q is not one of standard, gp2, gp3, io1, io2, st1, sc1", m.Ebs.VolumeType)
	}
	if m.Ebs.KmsKeyID != "" && (m.Ebs.Encrypted == nil || !*m.Ebs.Encrypted) {
		bad("Ebs.KmsKeyId %q is of use only with Ebs.Encrypted", m.Ebs.KmsKeyID)
	}
	return out
}
