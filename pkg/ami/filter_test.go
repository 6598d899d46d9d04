package ami

import (
	"path"
	"strings"
	"testing"
	"time"
)

func TestMatch(t *testing.T) {
	tests := []struct {
		pattern, s string
		want       bool
	}{
		{"", "", true},
		{"", "a", false},
		{"abc", "abc", true},
		{"abc", "ABC", false}, // case counts
		{"abc", "abcd", false},
		{"*", "", true},
		{"*", "anything", true},
		{"a*", "a", true},
		{"a*c", "abbbc", true},
		{"a*c", "abbb", false},
		{"*a*b", "xxaxxbxxb", true},
		{"*a*b*", "b-a", false},
		{"**", "x", true},
		{"?", "", false},
		{"?", "a", true},
		{"?", "é", true}, // a character, not a byte
		{"??", "é", false},
		{"a?c", "abc", true},
		{"*?", "", false},
		{`\*`, "*", true},
		{`\*`, "x", false},
		{`\?`, "?", true},
		{`\?`, "x", false},
		{`a\*c*`, "a*cd", true},
		{`*\**`, "x*y", true},
		{`*\**`, "xyz", false},
		{`\\`, `\`, true},
		{`\a`, "a", true},
		{`\`, `\`, false}, // it takes a next character that is not there
		{"a.c", "abc", false},
		{"[a]", "a", false},
	}
	for _, tt := range tests {
		t.Run(tt.pattern+" "+tt.s, func(t *testing.T) {
			if got := Match(tt.pattern, tt.s); got != tt.want {
				t.Errorf("Match(%q, %q): got %v, want %v", tt.pattern, tt.s, got, tt.want)
			}
		})
	}
}

// FuzzMatch compares Match with the standard library's, on what means the same
// in both: no classes, no slashes, no text that is not UTF-8.
func FuzzMatch(f *testing.F) {
	for _, s := range [][2]string{{"", ""}, {"*", "x"}, {"a*b?c", "axxbyc"}, {`\*\?`, "*?"}, {"*a*b*", "xxaxxbxx"}, {"**?", "é"}} {
		f.Add(s[0], s[1])
	}
	f.Fuzz(func(t *testing.T, pattern, s string) {
		if len(pattern) > 64 || len(s) > 256 {
			return // path.Match takes its time with many stars
		}
		clean := strings.NewReplacer("/", "", "[", "", "]", "")
		pattern, s = clean.Replace(strings.ToValidUTF8(pattern, "")), clean.Replace(strings.ToValidUTF8(s, ""))
		want, err := path.Match(pattern, s)
		if err != nil {
			want = false // a backslash with nothing behind it fits nothing
		}
		if got := Match(pattern, s); got != want {
			t.Errorf("Match(%q, %q): got %v, want %v", pattern, s, got, want)
		}
		escaped := strings.NewReplacer(`\`, `\\`, "*", `\*`, "?", `\?`).Replace(s)
		if !Match(escaped, s) {
			t.Errorf("Match(%q, %q): got false, want a text to fit itself", escaped, s)
		}
	})
}

var someTime = time.Date(2026, 3, 4, 5, 6, 7, 89_000_000, time.FixedZone("", 3600))

const someStamp = "2026-03-04T04:06:07.089Z"

// matcher is one of the MatchXxx functions with its object.
type matcher func(name string, values []string) (bool, error)

var someTags = []Tag{{"env", "prod"}, {"team", "a*b"}}

func someImage() Image {
	return Image{
		ImageID: "ami-0123abcd", Name: "debian-12", Description: "A system", OwnerID: "123456789012", State: ImageFailed,
		StateReason: &StateReason{Code: "Client.Bad", Message: "why not"}, CreationDate: someTime, Architecture: ArchX8664,
		VirtualizationType: "hvm", Hypervisor: "kvm", ImageType: "machine", RootDeviceType: "ebs", RootDeviceName: "/dev/sda1",
		BootMode: BootUEFI, KernelID: "aki-0123abcd", RamdiskID: "ari-0123abcd", OwnerAlias: "kami", Public: true, SourceImageID: "ami-0000abcd", SourceInstanceID: "i-0123abcd", ImageLocation: "here/x", Tags: someTags,
		BlockDeviceMappings: []BlockDeviceMapping{
			{DeviceName: "/dev/sda1", Ebs: &EBSBlockDevice{SnapshotID: "snap-0123abcd", VolumeSize: new(int64(8)), DeleteOnTermination: new(true), VolumeType: "gp3"}},
			{DeviceName: "/dev/sdb", VirtualName: "ephemeral0"},
		},
	}
}

func TestFilters(t *testing.T) {
	image := func(name string, v []string) (bool, error) { return MatchImage(someImage(), name, v) }
	snapshot := func(name string, v []string) (bool, error) {
		return MatchSnapshot(Snapshot{
			SnapshotID: "snap-0123abcd", VolumeID: "vol-0123abcd", OwnerID: "123456789012", Description: "nightly",
			State: SnapshotCompleted, StartTime: someTime, Progress: "100%", VolumeSize: 8, Tags: someTags,
		}, name, v)
	}
	volume := func(name string, v []string) (bool, error) {
		return MatchVolume(Volume{
			VolumeID: "vol-0123abcd", Size: 8, SnapshotID: "snap-0123abcd", VolumeType: "gp3", State: VolumeInUse, CreateTime: someTime, Tags: someTags,
			Attachments: []VolumeAttachment{{InstanceID: "i-0123abcd", Device: "/dev/sdf", State: "attached", DeleteOnTermination: true}},
		}, name, v)
	}
	instance := func(name string, v []string) (bool, error) {
		return MatchInstance(Instance{
			InstanceID: "i-0123abcd", ReservationID: "r-0123abcd", OwnerID: "123456789012", ImageID: "ami-0123abcd", InstanceType: "t3.micro",
			State: StateRecord(InstanceRunning), LaunchTime: someTime, AmiLaunchIndex: 2, KeyName: "mine", Architecture: ArchX8664,
			VirtualizationType: "hvm", KernelID: "aki-0123abcd", RamdiskID: "ari-0123abcd", BootMode: BootUEFI, RootDeviceName: "/dev/sda1", RootDeviceType: "ebs", PrivateIPAddress: "10.0.2.15", Tags: someTags,
			BlockDeviceMappings: []InstanceBlockDevice{{DeviceName: "/dev/sda1", Ebs: InstanceBlockEBS{VolumeID: "vol-0123abcd"}}, {DeviceName: "/dev/sdf", Ebs: InstanceBlockEBS{VolumeID: "vol-0000abcd"}}},
		}, name, v)
	}
	key := func(name string, v []string) (bool, error) {
		return MatchKeyPair(KeyPair{KeyPairID: "key-0123abcd", KeyName: "mine", KeyFingerprint: "aa:bb", Tags: someTags}, name, v)
	}
	nouns := []struct {
		name   string
		match  matcher
		fields map[string]string // each filter with the value that the object has
	}{
		{"image", image, map[string]string{
			"architecture": "x86_64", "creation-date": someStamp, "description": "A system", "hypervisor": "kvm",
			"image-id": "ami-0123abcd", "image-type": "machine", "is-public": "true", "manifest-location": "here/x",
			"name": "debian-12", "owner-id": "123456789012", "root-device-name": "/dev/sda1", "root-device-type": "ebs",
			"source-image-id": "ami-0000abcd", "source-instance-id": "i-0123abcd", "state": "failed",
			"state-reason-code": "Client.Bad", "state-reason-message": "why not", "virtualization-type": "hvm", "boot-mode": "uefi",
			"kernel-id": "aki-0123abcd", "ramdisk-id": "ari-0123abcd", "owner-alias": "kami",
			"block-device-mapping.device-name": "/dev/sdb", "block-device-mapping.snapshot-id": "snap-0123abcd",
			"block-device-mapping.volume-size": "8", "block-device-mapping.volume-type": "gp3",
			"block-device-mapping.delete-on-termination": "true", "block-device-mapping.encrypted": "false",
		}},
		{"snapshot", snapshot, map[string]string{
			"description": "nightly", "encrypted": "false", "owner-id": "123456789012", "progress": "100%",
			"snapshot-id": "snap-0123abcd", "start-time": someStamp, "status": "completed", "volume-id": "vol-0123abcd", "volume-size": "8",
		}},
		{"volume", volume, map[string]string{
			"attachment.device": "/dev/sdf", "attachment.instance-id": "i-0123abcd", "attachment.status": "attached",
			"attachment.delete-on-termination": "true", "create-time": someStamp, "encrypted": "false", "size": "8",
			"snapshot-id": "snap-0123abcd", "status": "in-use", "volume-id": "vol-0123abcd", "volume-type": "gp3",
		}},
		{"instance", instance, map[string]string{
			"architecture": "x86_64", "image-id": "ami-0123abcd", "instance-id": "i-0123abcd", "instance-state-name": "running",
			"instance-state-code": "16", "instance-type": "t3.micro", "key-name": "mine", "launch-time": someStamp, "launch-index": "2",
			"owner-id": "123456789012", "private-ip-address": "10.0.2.15", "reservation-id": "r-0123abcd",
			"root-device-name": "/dev/sda1", "root-device-type": "ebs", "virtualization-type": "hvm", "boot-mode": "uefi",
			"kernel-id": "aki-0123abcd", "ramdisk-id": "ari-0123abcd",
			"block-device-mapping.volume-id": "vol-0000abcd", "block-device-mapping.device-name": "/dev/sdf",
		}},
		{"key pair", key, map[string]string{"fingerprint": "aa:bb", "key-name": "mine", "key-pair-id": "key-0123abcd"}},
	}
	for _, noun := range nouns {
		t.Run(noun.name, func(t *testing.T) {
			ask := func(want bool, name string, values ...string) {
				t.Helper()
				got, err := noun.match(name, values)
				if err != nil || got != want {
					t.Errorf("%s=%q: got %v, %v, want %v", name, values, got, err, want)
				}
			}
			for name, value := range noun.fields {
				ask(true, name, value)
				ask(true, name, "other", value) // any of the values
				ask(true, name, value[:1]+"*")
				ask(false, name, "other")
				ask(false, name)
			}
			ask(true, "tag:env", "prod")
			ask(true, "tag:env", "p*")
			ask(false, "tag:env", "test")
			ask(false, "tag:Env", "prod")
			ask(false, "tag:team", "prod") // another tag's value
			ask(true, "tag:team", `a\*b`)
			ask(true, "tag-key", "env")
			ask(true, "tag-key", "none", "te*")
			ask(false, "tag-key", "prod")
			for _, name := range []string{"", "no-such", "Name", "attachment.no-such", "block-device-mapping.no-such"} {
				if got, err := noun.match(name, []string{"*"}); got || ErrorCode(err) != CodeInvalidFilter {
					t.Errorf("%q: got %v, %v, want %s", name, got, err, CodeInvalidFilter)
				} else if !strings.Contains(err.Error(), "'"+name+"'") {
					t.Errorf("got %q, want it to name the filter %q", err, name)
				}
			}
		})
	}
}

// What an object does not have, no value fits: not a false, not *.
func TestFiltersOfWhatIsNotThere(t *testing.T) {
	for _, name := range []string{"attachment.device", "attachment.instance-id", "attachment.status", "attachment.delete-on-termination"} {
		if got, err := MatchVolume(Volume{State: VolumeAvailable}, name, []string{"*", "false"}); err != nil || got {
			t.Errorf("a volume that is not attached: %s: got %v, %v, want false", name, got, err)
		}
	}
	image := Image{BlockDeviceMappings: []BlockDeviceMapping{{DeviceName: "/dev/sdb", VirtualName: "ephemeral0"}}}
	for _, field := range []string{"snapshot-id", "volume-size", "volume-type", "delete-on-termination", "encrypted"} {
		if got, err := MatchImage(image, "block-device-mapping."+field, []string{"*", "false"}); err != nil || got {
			t.Errorf("an image without a volume: %s: got %v, %v, want false", field, got, err)
		}
	}
	if got, err := MatchImage(image, "state-reason-code", []string{"Client.Bad"}); err != nil || got {
		t.Errorf("an image without a reason: got %v, %v, want false", got, err)
	}
}
