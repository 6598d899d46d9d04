package launch

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/kamivm/kami/pkg/ami"
)

// VendorData renders NoCloud's vendor-data: where the ephemeral disks are, which
// cloud-init asks EC2's metadata service for and NoCloud's meta-data cannot say. The
// first one it mounts on /mnt then, as on EC2. It is nil for a guest without any.
func VendorData(md ami.Metadata) []byte {
	var b bytes.Buffer
	for _, d := range md.Devices {
		if strings.HasPrefix(d.Name, "ephemeral") {
			fmt.Fprintf(&b, "  %s: /dev/disk/by-label/%s\n", d.Name, d.Name)
		}
	}
	if b.Len() == 0 {
		return nil
	}
	return append([]byte("#cloud-config\ndevice_aliases:\n"), b.Bytes()...)
}
