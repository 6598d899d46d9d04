package ami

import "time"

// Metadata is what a guest is told of itself and of where it runs: the facts
// behind the metadata service and behind the NoCloud seed, which are two ways to
// say the same.
type Metadata struct {
	InstanceID       InstanceID       `json:"InstanceId"`
	ImageID          ImageID          `json:"ImageId"`
	Ancestors        []ImageID        `json:"AncestorImageIds,omitempty"` // of the image, nearest first
	ReservationID    ReservationID    `json:"ReservationId"`
	LaunchIndex      int              `json:"AmiLaunchIndex"`
	ManifestPath     string           `json:"ManifestPath,omitempty"` // of an instance-store image
	OwnerID          string           `json:"OwnerId"`
	InstanceType     string           `json:"InstanceType"`
	Architecture     Architecture     `json:"Architecture"`
	Virtualization   string           `json:"VirtualizationType"`
	KernelID         KernelID         `json:"KernelId,omitempty"`
	RamdiskID        RamdiskID        `json:"RamdiskId,omitempty"`
	ProductCodes     []string         `json:"ProductCodes,omitempty"`
	Region           string           `json:"Region"`
	AvailabilityZone string           `json:"AvailabilityZone"`
	LaunchTime       time.Time        `json:"LaunchTime"`
	Hostname         string           `json:"Hostname"`
	MAC              string           `json:"MacAddress"`
	PrivateIP        string           `json:"PrivateIpAddress,omitempty"` // "" where it is not known before the guest runs
	Subnet           string           `json:"SubnetCidrBlock,omitempty"`
	RootDeviceName   string           `json:"RootDeviceName"`
	Devices          []MetadataDevice `json:"Devices"` // as of the last start
	PublicKeys       []PublicKey      `json:"PublicKeys,omitempty"`
	Tags             []Tag            `json:"Tags,omitempty"`
	UserData         []byte           `json:"UserData,omitempty"` // nil for none
	Options          MetadataOptions  `json:"MetadataOptions"`
	Identity         Identity         `json:"Identity"`
}

// MetadataDevice is a block device under the name that the metadata has for its
// kind: ebs1, ephemeral0, swap.
type MetadataDevice struct {
	Name   string `json:"Name"`
	Device string `json:"DeviceName"` // /dev/sdf
}

// PublicKey is a key that the guest lets in, in the form of authorized_keys.
type PublicKey struct {
	Name string `json:"KeyName"`
	Key  string `json:"PublicKey"`
}

// Identity is the instance identity document and what proves that the region
// wrote it. The signatures are base64 in lines.
type Identity struct {
	Document  string `json:"Document"`
	Signature string `json:"Signature"` // RSA, PKCS #1 v1.5, SHA-256, over Document
	PKCS7     string `json:"Pkcs7"`     // SHA-256 with RSA-2048; holds Document
}
