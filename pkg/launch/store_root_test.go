package launch

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kamivm/kami/pkg/ami"
)

func TestStoreRoot(t *testing.T) {
	const gib = int64(1) << 30
	size := func(n int64) *int64 { return &n }
	root := func(e ebs) mapping {
		e.DeleteOnTermination = new(true)
		return mapping{DeviceName: "/dev/sda1", VirtualName: "root", Ebs: &e}
	}
	data := vol("/dev/sdf", ebs{VolumeSize: size(1)})
	tests := []struct {
		name  string
		over  []mapping
		bytes int64
		root  mapping
		rest  []mapping
		fault string // what the error says
	}{
		{name: "nothing said", bytes: gib, root: root(ebs{})},
		{name: "of others alone", over: []mapping{data, ephemeral("/dev/sdb", 0)}, bytes: gib, root: root(ebs{}), rest: []mapping{data, ephemeral("/dev/sdb", 0)}},
		{name: "larger", over: []mapping{data, vol("/dev/sda1", ebs{VolumeSize: size(10)})}, bytes: gib, root: root(ebs{VolumeSize: size(10)}), rest: []mapping{data}},
		{name: "by its other name", over: []mapping{vol("sda1", ebs{VolumeSize: size(2)})}, bytes: gib, root: root(ebs{VolumeSize: size(2)}), rest: []mapping{}},
		{
			name: "encrypted", over: []mapping{vol("/dev/sda1", ebs{Encrypted: new(true), KmsKeyID: "alias/mine"})}, bytes: gib,
			root: root(ebs{Encrypted: new(true), KmsKeyID: "alias/mine"}), rest: []mapping{},
		},
		{name: "as large as a large bundle", over: []mapping{vol("/dev/sda1", ebs{VolumeSize: size(21)})}, bytes: 20*gib + 512, root: root(ebs{VolumeSize: size(21)}), rest: []mapping{}},
		{name: "larger than a large bundle", over: []mapping{vol("/dev/sda1", ebs{VolumeSize: size(22)})}, bytes: 20*gib + 512, fault: "from 21 to 21 GiB, not 22"},
		{name: "too small", over: []mapping{vol("/dev/sda1", ebs{VolumeSize: size(1)})}, bytes: gib + 512, fault: "from 2 to 10 GiB, not 1"},
		{name: "too large", over: []mapping{vol("/dev/sda1", ebs{VolumeSize: size(11)})}, bytes: gib, fault: "from 1 to 10 GiB, not 11"},
		{name: "left out", over: []mapping{noDevice("/dev/sda1")}, bytes: gib, fault: "cannot be replaced or left out"},
		{name: "ephemeral", over: []mapping{ephemeral("/dev/sda1", 0)}, bytes: gib, fault: "cannot be replaced or left out"},
		{
			name: "of a snapshot, of a type, to stay", bytes: gib,
			over:  []mapping{vol("/dev/sda1", ebs{SnapshotID: rootSnap, VolumeType: "gp3", DeleteOnTermination: new(false)})},
			fault: "not of a snapshot; the root device /dev/sda1 ends with its instance; the root device /dev/sda1 has no volume type",
		},
		{name: "twice", over: []mapping{data, data}, bytes: gib, fault: "/dev/sdf"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, rest, err := StoreRoot(tt.over, "/dev/sda1", tt.bytes)
			if tt.fault != "" {
				if ami.ErrorCode(err) != ami.CodeInvalidBlockDeviceMapping || !strings.Contains(err.Error(), tt.fault) {
					t.Fatalf("got %v, want InvalidBlockDeviceMapping that says %q", err, tt.fault)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.root, got); diff != "" {
				t.Errorf("the root (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.rest, rest); diff != "" {
				t.Errorf("the rest (-want +got):\n%s", diff)
			}
		})
	}
}
