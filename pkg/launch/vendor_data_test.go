package launch

import (
	"testing"

	"github.com/kamivm/kami/pkg/ami"
)

func TestVendorData(t *testing.T) {
	tests := []struct {
		name    string
		devices []ami.MetadataDevice
		want    string
	}{
		{"no disks", nil, ""},
		{"volumes alone", []ami.MetadataDevice{{Name: "ebs1", Device: "/dev/sdf"}}, ""},
		{
			"ephemeral disks",
			[]ami.MetadataDevice{{Name: "ephemeral0", Device: "/dev/sdb"}, {Name: "ebs1", Device: "/dev/sdf"}, {Name: "ephemeral1", Device: "/dev/sdc"}},
			"#cloud-config\ndevice_aliases:\n  ephemeral0: /dev/disk/by-label/ephemeral0\n  ephemeral1: /dev/disk/by-label/ephemeral1\n",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := string(VendorData(ami.Metadata{Devices: tt.devices})); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}
