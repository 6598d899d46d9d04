package ami

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const someSnapshot = "snap-0123456789abcdef0"

func ebsAt(device string, ebs EBSBlockDevice) []BlockDeviceMapping {
	return []BlockDeviceMapping{{DeviceName: device, Ebs: &ebs}}
}

func TestParseMapping(t *testing.T) {
	full := EBSBlockDevice{SnapshotID: someSnapshot, VolumeSize: new(int64(20)), DeleteOnTermination: new(false), VolumeType: "gp3"}
	fuller := full
	fuller.Iops, fuller.Throughput, fuller.Encrypted = new(int64(3000)), new(int64(125)), new(false)
	ephemeral := []BlockDeviceMapping{{DeviceName: "/dev/sdb", VirtualName: "ephemeral0"}}
	none := []BlockDeviceMapping{{DeviceName: "/dev/sdb", NoDevice: new("")}}
	tests := []struct {
		name, in string
		want     []BlockDeviceMapping
	}{
		{"short: all", "/dev/sdb=" + someSnapshot + ":20:false:gp3", ebsAt("/dev/sdb", full)},
		{"short: size", "/dev/sdb=:20", ebsAt("/dev/sdb", EBSBlockDevice{VolumeSize: new(int64(20))})},
		{"short: snapshot", "xvdf=" + someSnapshot, ebsAt("xvdf", EBSBlockDevice{SnapshotID: someSnapshot})},
		{"short: delete", "/dev/sda1=::true", ebsAt("/dev/sda1", EBSBlockDevice{DeleteOnTermination: new(true)})},
		{"short: type", "/dev/vdb=:::io2", ebsAt("/dev/vdb", EBSBlockDevice{VolumeType: "io2"})},
		{"short: encrypted", "/dev/sdb=:20::::encrypted", ebsAt("/dev/sdb", EBSBlockDevice{VolumeSize: new(int64(20)), Encrypted: new(true)})},
		{"short: iops", "/dev/sdb=:20:::3000", ebsAt("/dev/sdb", EBSBlockDevice{VolumeSize: new(int64(20)), Iops: new(int64(3000))})},
		{"shorthand: a key", "DeviceName=/dev/sdb,Ebs={VolumeSize=20,Encrypted=true,KmsKeyId=alias/web}", ebsAt("/dev/sdb", EBSBlockDevice{VolumeSize: new(int64(20)), Encrypted: new(true), KmsKeyID: "alias/web"})},
		{"short: ephemeral", "/dev/sdb=ephemeral0", ephemeral},
		{"short: none", "/dev/sdb=none", none},
		{"short: blanks around", " /dev/sdb=none\n", none},
		{
			"shorthand: all", "DeviceName=/dev/sdb,Ebs={SnapshotId=" + someSnapshot +
				",VolumeSize=20,DeleteOnTermination=false,VolumeType=gp3,Iops=3000,Throughput=125,Encrypted=false}",
			ebsAt("/dev/sdb", fuller),
		},
		{
			"shorthand: Ebs in the middle", "DeviceName=/dev/sdb,Ebs={},VirtualName=",
			ebsAt("/dev/sdb", EBSBlockDevice{}),
		},
		{"shorthand: ephemeral", "DeviceName=/dev/sdb,VirtualName=ephemeral0", ephemeral},
		{"shorthand: none", "DeviceName=/dev/sdb,NoDevice=", none},
		{"shorthand: none without =", "DeviceName=/dev/sdb,NoDevice", none},
		{
			"JSON: object", `{"DeviceName":"/dev/sdb","Ebs":{"SnapshotId":"` + someSnapshot +
				`","VolumeSize":20,"DeleteOnTermination":false,"VolumeType":"gp3"}}`,
			ebsAt("/dev/sdb", full),
		},
		{
			"JSON: list", `[{"DeviceName":"/dev/sdb","NoDevice":""},{"DeviceName":"/dev/sdc","VirtualName":"ephemeral0"}]`,
			[]BlockDeviceMapping{{DeviceName: "/dev/sdb", NoDevice: new("")}, {DeviceName: "/dev/sdc", VirtualName: "ephemeral0"}},
		},
		{"JSON: empty list", `[]`, []BlockDeviceMapping{}},
		{"JSON: blanks behind", "[]\n ", []BlockDeviceMapping{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ParseMapping(tt.in)
			if err != nil {
				t.Fatalf("got %v, want no error", err)
			}
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Errorf("mapping (-want +got):\n%s", d)
			}
		})
	}
}

func TestParseMappingRefuses(t *testing.T) {
	tests := []struct {
		name, in string
		want     []string // all of these are in the message
	}{
		{"nothing", "", []string{"no ="}},
		{"a device only", "/dev/sdb", []string{"no ="}},
		{"short: seven fields", "/dev/sdb=:20:true:gp3:100:encrypted:x", []string{"7 fields"}},
		{"short: not encrypted", "/dev/sdb=:20::::plain", []string{"Ebs.Encrypted", "plain"}},
		{"short: every fault", "/dev/sdb=:big:maybe", []string{"Ebs.VolumeSize", `"big"`, "Ebs.DeleteOnTermination", `"maybe"`}},
		{"short: a size that overflows", "/dev/sdb=:9223372036854775808", []string{"Ebs.VolumeSize"}},
		{"short: a snapshot that is none", "/dev/sdb=vol-0123abcd", []string{"Ebs.SnapshotId", "vol-0123abcd"}},
		{"short: ephemeral24", "/dev/sdb=ephemeral24", []string{"ephemeral24", "ephemeral0 to ephemeral23"}},
		{"shorthand: unknown field", "DeviceName=/dev/sdb,Size=3,NoDevice=", []string{"Size"}},
		{"shorthand: unknown field of Ebs", "DeviceName=/dev/sdb,Ebs={Size=3}", []string{"Ebs.Size"}},
		{"shorthand: no value", "DeviceName=/dev/sdb,Ebs={VolumeSize}", []string{"VolumeSize", "without a value"}},
		{"shorthand: every fault", "DeviceName=/dev/sdb,Ebs={VolumeSize=x,Iops=y},Colour=red", []string{"Ebs.VolumeSize", "Ebs.Iops", "Colour"}},
		{"shorthand: Ebs twice", "DeviceName=/dev/sdb,Ebs={VolumeSize=1},Ebs={VolumeSize=2}", []string{"Ebs"}},
		{"shorthand: two kinds", "DeviceName=/dev/sdb,Ebs={VolumeSize=1},NoDevice=", []string{"exactly one of"}},
		{"JSON: not whole", `[{"DeviceName":`, []string{"cannot be read"}},
		{"JSON: unknown field", `{"DeviceName":"/dev/sdb","Size":3}`, []string{"Size"}},
		{"JSON: more behind", `{"DeviceName":"/dev/sdb","NoDevice":""} {}`, []string{"behind the JSON"}},
		{"JSON: a bracket behind", `{"DeviceName":"/dev/sdb","NoDevice":""}]`, []string{"behind the JSON"}},
		{"JSON: a brace behind", `[]}`, []string{"behind the JSON"}},
		{"JSON: a fraction", `{"DeviceName":"/dev/sdb","Ebs":{"VolumeSize":1.5}}`, []string{"1.5"}},
		{"JSON: null in a list", `[null]`, []string{"device name", "exactly one of"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ParseMapping(tt.in)
			if ErrorCode(err) != CodeInvalidBlockDeviceMapping {
				t.Fatalf("got %v, %v, want %s", got, err, CodeInvalidBlockDeviceMapping)
			}
			for _, want := range tt.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("got %q, want it to have %q", err, want)
				}
			}
		})
	}
}

func TestCheckDeviceName(t *testing.T) {
	good := []string{"/dev/sda", "/dev/sda1", "/dev/sdf", "sdf", "/dev/sdf15", "/dev/sdaa", "/dev/xvda", "xvdba", "/dev/vda", "vdz9"}
	bad := []string{
		"", "/dev/", "/dev/sd", "/dev/sd1", "/dev/sdA", "/dev/sdabc", "/dev/sda100", "/dev/hda", "/dev/nvme0n1",
		"//dev/sda", "/dev/../sda", "/dev/sda ", "/dev/sda\n", "/dev/sda;rm", "dev/sda",
	}
	for _, name := range good {
		if err := CheckDeviceName(name); err != nil {
			t.Errorf("%q: got %v, want no error", name, err)
		}
	}
	for _, name := range bad {
		if err := CheckDeviceName(name); ErrorCode(err) != CodeInvalidBlockDeviceMapping {
			t.Errorf("%q: got %v, want %s", name, err, CodeInvalidBlockDeviceMapping)
		}
	}
}

func TestDeviceKey(t *testing.T) {
	for name, want := range map[string]string{"/dev/sda1": "sda1", "sda1": "sda1", "/dev/xvdf": "xvdf", "": ""} {
		if got := DeviceKey(name); got != want {
			t.Errorf("%q: got %q, want %q", name, got, want)
		}
	}
}

func TestValidateMapping(t *testing.T) {
	size := func(n int64) []BlockDeviceMapping { return ebsAt("/dev/sdb", EBSBlockDevice{VolumeSize: &n}) }
	kind := func(name string) []BlockDeviceMapping { return ebsAt("/dev/sdb", EBSBlockDevice{VolumeType: name}) }
	virtual := func(name string) []BlockDeviceMapping {
		return []BlockDeviceMapping{{DeviceName: "/dev/sdb", VirtualName: name}}
	}
	two := func(a, b string) []BlockDeviceMapping {
		return []BlockDeviceMapping{{DeviceName: a, NoDevice: new("")}, {DeviceName: b, NoDevice: new("")}}
	}
	tests := []struct {
		name    string
		mapping []BlockDeviceMapping
		want    []string // nil is no fault
	}{
		{"nothing", nil, nil},
		{"two devices", two("/dev/sdb", "/dev/sdc"), nil},
		{"one device twice", two("/dev/sdb", "/dev/sdb"), []string{"/dev/sdb is mapped twice"}},
		{"one device in two spellings", two("/dev/sdb", "sdb"), []string{"sdb is mapped twice"}},
		{"no kind", []BlockDeviceMapping{{DeviceName: "/dev/sdb"}}, []string{"exactly one of"}},
		{"smallest", size(1), nil},
		{"largest", size(65536), nil},
		{"too small", size(0), []string{"Ebs.VolumeSize 0"}},
		{"negative", size(-1), []string{"Ebs.VolumeSize -1"}},
		{"too large", size(65537), []string{"Ebs.VolumeSize 65537"}},
		{"gp2", kind("gp2"), nil},
		{"standard", kind("standard"), nil},
		{"no such type", kind("floppy"), []string{`Ebs.VolumeType "floppy"`}},
		{"ephemeral23", virtual("ephemeral23"), nil},
		{"ephemeral00", virtual("ephemeral00"), []string{`"ephemeral00"`}},
		{"swap", virtual("swap"), []string{`"swap"`}},
		{"not encrypted", ebsAt("/dev/sdb", EBSBlockDevice{Encrypted: new(false)}), nil},
		{"encrypted", ebsAt("/dev/sdb", EBSBlockDevice{Encrypted: new(true), KmsKeyID: "alias/web"}), nil},
		{"a key alone", ebsAt("/dev/sdb", EBSBlockDevice{KmsKeyID: "alias/web"}), []string{"Ebs.KmsKeyId", "alias/web"}},
		{"a key and no", ebsAt("/dev/sdb", EBSBlockDevice{Encrypted: new(false), KmsKeyID: "alias/web"}), []string{"Ebs.KmsKeyId"}},
		{
			"every fault of every entry",
			[]BlockDeviceMapping{
				{DeviceName: "/dev/hda", VirtualName: "swap"},
				{DeviceName: "/dev/sdb", Ebs: &EBSBlockDevice{SnapshotID: "snap-x", VolumeSize: new(int64(0))}},
			},
			[]string{"/dev/hda", "swap", "snap-x", "Ebs.VolumeSize 0"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := ValidateMapping(tt.mapping)
			if tt.want == nil {
				if err != nil {
					t.Fatalf("got %v, want no error", err)
				}
				return
			}
			if ErrorCode(err) != CodeInvalidBlockDeviceMapping {
				t.Fatalf("got %v, want %s", err, CodeInvalidBlockDeviceMapping)
			}
			for _, want := range tt.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("got %q, want it to have %q", err, want)
				}
			}
		})
	}
}

// FuzzParseMapping: what is read is valid, and is the same after it has been
// through the catalog's JSON; what is not read has EC2's code.
func FuzzParseMapping(f *testing.F) {
	for _, s := range []string{
		"", "=", "/dev/sdb=:20", "/dev/sdb=" + someSnapshot + ":20:false:gp3", "/dev/sdb=ephemeral0", "sdb=none",
		"DeviceName=/dev/sdb,Ebs={VolumeSize=20,Encrypted=false}", "DeviceName=,Ebs={},Ebs={}", "DeviceName=/dev/sdb,NoDevice",
		`{"DeviceName":"/dev/sdb","NoDevice":"x"}`, `[{"DeviceName":"/dev/sdb","Ebs":{"Iops":-1}}]`, `[]`, `[]]`, `[null]`, `{}`,
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		mapping, err := ParseMapping(s)
		if err != nil {
			if got := ErrorCode(err); got != CodeInvalidBlockDeviceMapping {
				t.Errorf("got the code %s, want %s", got, CodeInvalidBlockDeviceMapping)
			}
			return
		}
		if err := ValidateMapping(mapping); err != nil {
			t.Errorf("what was read is not valid: %v", err)
		}
		text, err := json.Marshal(mapping)
		if err != nil {
			t.Fatal(err)
		}
		again, err := ParseMapping(string(text))
		if err != nil {
			t.Fatalf("%s cannot be read again: %v", text, err)
		}
		if d := cmp.Diff(mapping, again); d != "" {
			t.Errorf("after a round trip (-want +got):\n%s", d)
		}
	})
}
