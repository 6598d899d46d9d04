package ami

import "github.com/kamivm/kami/pkg/digest"

// The kinds of root devices, EC2's: a volume of a snapshot, which outlives the
// guest's power, or a disk of the host's that is made of a bundle and ends with the
// instance.
const (
	RootDeviceEBS           = "ebs"
	RootDeviceInstanceStore = "instance-store"
)

// RootDeviceTypes lists them.
func RootDeviceTypes() []string { return []string{RootDeviceEBS, RootDeviceInstanceStore} }

// VirtualRoot is the virtual name of an instance store's root, as of ephemeralN.
const VirtualRoot = "root"

// BundleSource is the bundle behind an instance-store image. It is pinned by its
// digests as it was registered: one that was changed since is another one.
type BundleSource struct {
	Store          string        `json:"Store,omitempty"` // address of the object store; "" is the region's own
	ManifestDigest digest.Digest `json:"ManifestDigest"`
	IndexDigest    digest.Digest `json:"IndexDigest"` // of the list of chunks, and so of all bytes
	ContentDigest  digest.Digest `json:"ContentDigest"`
	SizeBytes      int64         `json:"SizeInBytes"`      // of the root
	Signer         string        `json:"Signer,omitempty"` // fingerprint of the key
}

// IsInstanceStore says whether the image's root is made of a bundle.
func (i Image) IsInstanceStore() bool { return i.RootDeviceType == RootDeviceInstanceStore }

// IsInstanceStore says whether the instance's root ends with it.
func (i Instance) IsInstanceStore() bool { return i.RootDeviceType == RootDeviceInstanceStore }
