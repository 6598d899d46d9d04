package ami

// BlockDeviceMapping says what stands behind one device name of a guest:
// exactly one of an EBS volume, an ephemeral disk, or nothing (NoDevice, which
// suppresses the device of a mapping underneath).
type BlockDeviceMapping struct {
	DeviceName  string          `json:"DeviceName"`
	Ebs         *EBSBlockDevice `json:"Ebs,omitempty"`
	VirtualName string          `json:"VirtualName,omitempty"` // ephemeralN
	NoDevice    *string         `json:"NoDevice,omitempty"`
}

// EBSBlockDevice describes a volume to make. Nil pointers mean "not said".
type EBSBlockDevice struct {
	SnapshotID          SnapshotID `json:"SnapshotId,omitempty"`
	VolumeSize          *int64     `json:"VolumeSize,omitempty"` // GiB
	DeleteOnTermination *bool      `json:"DeleteOnTermination,omitempty"`
	VolumeType          string     `json:"VolumeType,omitempty"`
	Iops                *int64     `json:"Iops,omitempty"`
	Throughput          *int64     `json:"Throughput,omitempty"`
	Encrypted           *bool      `json:"Encrypted,omitempty"`
	KmsKeyID            string     `json:"KmsKeyId,omitempty"` // an id or an alias
}
