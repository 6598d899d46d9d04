// Package ami holds the words of kami: Amazon EC2's nouns with their ids,
// states and defaults, the block device mapping, filters, tags and errors.
// Everything else is written in these words, so this package imports nothing of
// kami but digests. Its structs carry EC2's field names in their JSON tags and
// are at once what the catalog stores and what programs read; the few fields of
// kami's own are marked so.
package ami

import (
	"slices"
	"time"

	"github.com/kamivm/kami/pkg/digest"
)

// DefaultAccount owns what is made when nobody says who asks.
const DefaultAccount = "000000000000"

// Architecture is a processor architecture.
type Architecture string

// The architectures.
const (
	ArchX8664 Architecture = "x86_64"
	ArchARM64 Architecture = "arm64"
	ArchI386  Architecture = "i386"
)

// BootMode is how firmware finds the boot loader.
type BootMode string

// The boot modes. An image with none boots as its architecture does: legacy
// BIOS on x86, UEFI on arm64. UEFIPreferred falls back to legacy BIOS where the
// host has no UEFI firmware.
const (
	BootLegacyBIOS    BootMode = "legacy-bios"
	BootUEFI          BootMode = "uefi"
	BootUEFIPreferred BootMode = "uefi-preferred"
)

// ImageState is where an image is in its life.
type ImageState string

// The image states that kami sets.
const (
	ImagePending      ImageState = "pending"
	ImageAvailable    ImageState = "available"
	ImageFailed       ImageState = "failed"
	ImageDeregistered ImageState = "deregistered" // a tombstone: kept while instances refer to it
)

// SnapshotState is where a snapshot is in its life.
type SnapshotState string

// The snapshot states.
const (
	SnapshotPending   SnapshotState = "pending"
	SnapshotCompleted SnapshotState = "completed"
	SnapshotError     SnapshotState = "error"
)

// VolumeState is computed from a volume's record and its attachment.
type VolumeState string

// The volume states.
const (
	VolumeCreating  VolumeState = "creating"
	VolumeAvailable VolumeState = "available"
	VolumeInUse     VolumeState = "in-use"
	VolumeError     VolumeState = "error"
)

// InstanceState is computed from what was asked for and what the hypervisor says.
type InstanceState string

// The instance states.
const (
	InstancePending      InstanceState = "pending"
	InstanceRunning      InstanceState = "running"
	InstanceStopping     InstanceState = "stopping"
	InstanceStopped      InstanceState = "stopped"
	InstanceShuttingDown InstanceState = "shutting-down"
	InstanceTerminated   InstanceState = "terminated"
)

// Consistency says how much of the guest's memory had reached the disk when a
// snapshot was taken. It is kami's own field.
type Consistency string

// The consistencies, strongest first.
const (
	ConsistencyStopped  Consistency = "stopped"
	ConsistencyRebooted Consistency = "rebooted"
	ConsistencyFrozen   Consistency = "frozen"
	ConsistencyCrash    Consistency = "crash-consistent"
)

// Consistencies lists the consistencies, strongest first.
func Consistencies() []Consistency {
	return []Consistency{ConsistencyStopped, ConsistencyRebooted, ConsistencyFrozen, ConsistencyCrash}
}

// AtLeast says whether c promises as much as want; everything is at least "".
func (c Consistency) AtLeast(want Consistency) bool {
	all := Consistencies()
	return want == "" || slices.Contains(all, c) && slices.Index(all, c) <= slices.Index(all, want)
}

// ShutdownBehavior is what a shutdown from inside the guest does.
type ShutdownBehavior string

// The shutdown behaviours. Stop is the default.
const (
	ShutdownStop      ShutdownBehavior = "stop"
	ShutdownTerminate ShutdownBehavior = "terminate"
)

// Tag is a key and a value on any object.
type Tag struct {
	Key   string `json:"Key"`
	Value string `json:"Value"`
}

// StateReason says why an object is in a state that nobody asked for.
type StateReason struct {
	Code    string `json:"Code"`
	Message string `json:"Message"`
}

// Image is an AMI: a description of a guest and the mapping to its snapshots.
type Image struct {
	ImageID                  ImageID              `json:"ImageId"`
	Name                     string               `json:"Name"`
	Description              string               `json:"Description,omitempty"`
	OwnerID                  string               `json:"OwnerId"`
	State                    ImageState           `json:"State"`
	StateReason              *StateReason         `json:"StateReason,omitempty"`
	CreationDate             time.Time            `json:"CreationDate"`
	Architecture             Architecture         `json:"Architecture"`
	VirtualizationType       string               `json:"VirtualizationType"` // hvm or paravirtual
	Hypervisor               string               `json:"Hypervisor"`         // kvm
	ImageType                string               `json:"ImageType"`          // machine, kernel or ramdisk
	RootDeviceType           string               `json:"RootDeviceType"`     // ebs or instance-store
	RootDeviceName           string               `json:"RootDeviceName"`
	BootMode                 BootMode             `json:"BootMode,omitempty"`
	KernelID                 KernelID             `json:"KernelId,omitempty"`  // of a paravirtual image
	RamdiskID                RamdiskID            `json:"RamdiskId,omitempty"` // of a paravirtual image
	OwnerAlias               string               `json:"ImageOwnerAlias,omitempty"`
	BlockDeviceMappings      []BlockDeviceMapping `json:"BlockDeviceMappings"`
	Public                   bool                 `json:"Public"` // derived of LaunchPermissions
	LaunchPermissions        []LaunchPermission   `json:"LaunchPermissions,omitempty"`
	DeprecationTime          time.Time            `json:"DeprecationTime,omitzero"`
	DeregistrationProtection string               `json:"DeregistrationProtection,omitempty"` // Protected or ProtectedWithCooldown
	CooldownExpiresOn        time.Time            `json:"CooldownExpiresOn,omitzero"`         // protected until then, though it was turned off
	LastLaunchedTime         time.Time            `json:"LastLaunchedTime,omitzero"`          // by whomever
	RecycleBin               *Recycled            `json:"RecycleBin,omitempty"`               // of a deregistered one
	ProductCodes             []ProductCode        `json:"ProductCodes,omitempty"`
	ImageAllowed             *bool                `json:"ImageAllowed,omitempty"` // by the account's policy: computed
	SourceImageID            ImageID              `json:"SourceImageId,omitempty"`
	SourceImageRegion        string               `json:"SourceImageRegion,omitempty"` // of a copy
	SourceInstanceID         InstanceID           `json:"SourceInstanceId,omitempty"`
	ImageLocation            string               `json:"ImageLocation"`
	ImdsSupport              string               `json:"ImdsSupport,omitempty"` // v2.0: its guests use tokens of the metadata service
	TpmSupport               string               `json:"TpmSupport,omitempty"`  // v2.0: its guests have a TPM
	Platform                 string               `json:"Platform,omitempty"`    // windows, or nothing
	PlatformDetails          string               `json:"PlatformDetails,omitempty"`
	UsageOperation           string               `json:"UsageOperation,omitempty"`
	EnaSupport               *bool                `json:"EnaSupport,omitempty"`
	SriovNetSupport          string               `json:"SriovNetSupport,omitempty"`
	Tags                     []Tag                `json:"Tags,omitempty"`

	// kami's own.
	Consistency Consistency   `json:"Consistency,omitempty"`
	Bundle      *BundleSource `json:"Bundle,omitempty"`         // of an instance-store image
	UEFIData    digest.Digest `json:"UefiDataDigest,omitempty"` // the variable store, an object of the region
	// KernelCmdline is the whole command line of a paravirtual guest's kernel;
	// with pv-grub it comes behind the one that the guest's own root has.
	KernelCmdline string           `json:"KernelCmdline,omitempty"`
	Data          digest.Digest    `json:"DataDigest,omitempty"`      // what a kernel or ramdisk is: an object of the region
	DataBytes     int64            `json:"DataSizeInBytes,omitempty"` // its size
	Signatures    []ImageSignature `json:"Signatures,omitempty"`      // of its ImageManifest
}

// Snapshot is the content of a volume at one instant. It points at one layer.
type Snapshot struct {
	SnapshotID   SnapshotID    `json:"SnapshotId"`
	VolumeID     VolumeID      `json:"VolumeId,omitempty"`
	OwnerID      string        `json:"OwnerId"`
	Description  string        `json:"Description,omitempty"`
	State        SnapshotState `json:"State"`
	StateReason  string        `json:"StateMessage,omitempty"`
	StartTime    time.Time     `json:"StartTime"`
	Progress     string        `json:"Progress"`
	VolumeSize   int64         `json:"VolumeSize"` // GiB, rounded up
	Encrypted    bool          `json:"Encrypted"`
	KmsKeyID     string        `json:"KmsKeyId,omitempty"`
	Tags         []Tag         `json:"Tags,omitempty"`
	Lock         *SnapshotLock `json:"Lock,omitempty"`
	ProductCodes []ProductCode `json:"ProductCodes,omitempty"`
	RecycleBin   *Recycled     `json:"RecycleBin,omitempty"` // of a recoverable one

	// kami's own.
	SizeBytes     int64         `json:"VolumeSizeInBytes"` // virtual size
	Layer         digest.Digest `json:"LayerDigest,omitempty"`
	ContentDigest digest.Digest `json:"ContentDigest,omitempty"`
	LayerBytes    int64         `json:"LayerSizeInBytes"` // of this layer's file alone
	Consistency   Consistency   `json:"Consistency,omitempty"`
	// UsageOperation is what an image that is registered of it has. EC2 keeps it out
	// of sight.
	UsageOperation string `json:"UsageOperation,omitempty"`
}

// Volume is a writable disk: a head on a layer, or blank.
type Volume struct {
	VolumeID     VolumeID           `json:"VolumeId"`
	OwnerID      string             `json:"OwnerId"`
	Size         int64              `json:"Size"` // GiB, rounded up
	SnapshotID   SnapshotID         `json:"SnapshotId,omitempty"`
	VolumeType   string             `json:"VolumeType"`
	State        VolumeState        `json:"State"` // computed
	CreateTime   time.Time          `json:"CreateTime"`
	Encrypted    bool               `json:"Encrypted"`
	KmsKeyID     string             `json:"KmsKeyId,omitempty"`
	Attachments  []VolumeAttachment `json:"Attachments"`
	ProductCodes []ProductCode      `json:"ProductCodes,omitempty"`
	Tags         []Tag              `json:"Tags,omitempty"`

	// kami's own.
	SizeBytes int64         `json:"SizeInBytes"`
	Layer     digest.Digest `json:"LayerDigest,omitempty"` // what the head stands on
	Ephemeral bool          `json:"Ephemeral,omitempty"`   // an instance's ephemeralN disk
	// UsageOperation is its snapshot's.
	UsageOperation string `json:"UsageOperation,omitempty"`
	// TrackedBy is the dirty bitmap in the head that has recorded every write
	// since TrackedLayer was made of this volume.
	TrackedBy    string        `json:"TrackedBy,omitempty"`
	TrackedLayer digest.Digest `json:"TrackedLayer,omitempty"`
}

// VolumeAttachment says where a volume is attached.
type VolumeAttachment struct {
	VolumeID            VolumeID   `json:"VolumeId"`
	InstanceID          InstanceID `json:"InstanceId"`
	Device              string     `json:"Device"`
	State               string     `json:"State"` // attached
	DeleteOnTermination bool       `json:"DeleteOnTermination"`
	AttachTime          time.Time  `json:"AttachTime"`
}

// InstanceStateRecord is EC2's pair of a number and a name.
type InstanceStateRecord struct {
	Code int           `json:"Code"`
	Name InstanceState `json:"Name"`
}

// StateRecord returns EC2's number and name of s.
func StateRecord(s InstanceState) InstanceStateRecord {
	codes := map[InstanceState]int{
		InstancePending: 0, InstanceRunning: 16, InstanceShuttingDown: 32,
		InstanceTerminated: 48, InstanceStopping: 64, InstanceStopped: 80,
	}
	return InstanceStateRecord{Code: codes[s], Name: s}
}

// InstanceBlockDevice is one attached volume of an instance.
type InstanceBlockDevice struct {
	DeviceName string           `json:"DeviceName"`
	Ebs        InstanceBlockEBS `json:"Ebs"`
	Virtual    string           `json:"VirtualName,omitempty"` // ephemeralN: kami's own
}

// InstanceBlockEBS names the volume behind a device of an instance.
type InstanceBlockEBS struct {
	VolumeID            VolumeID  `json:"VolumeId"`
	DeleteOnTermination bool      `json:"DeleteOnTermination"`
	AttachTime          time.Time `json:"AttachTime"`
	Status              string    `json:"Status"`
}

// Instance is a guest: what was asked for, and (computed) what it does now.
type Instance struct {
	InstanceID            InstanceID            `json:"InstanceId"`
	ReservationID         ReservationID         `json:"ReservationId"`
	OwnerID               string                `json:"OwnerId"`
	ImageID               ImageID               `json:"ImageId"`
	InstanceType          string                `json:"InstanceType"`
	State                 InstanceStateRecord   `json:"State"` // computed on read; last known when stored
	StateReason           *StateReason          `json:"StateReason,omitempty"`
	LaunchTime            time.Time             `json:"LaunchTime"`
	AmiLaunchIndex        int                   `json:"AmiLaunchIndex"`
	KeyName               string                `json:"KeyName,omitempty"`
	Architecture          Architecture          `json:"Architecture"`
	VirtualizationType    string                `json:"VirtualizationType"`
	KernelID              KernelID              `json:"KernelId,omitempty"`
	RamdiskID             RamdiskID             `json:"RamdiskId,omitempty"`
	BootMode              BootMode              `json:"BootMode"` // what the image asks for
	CurrentBootMode       BootMode              `json:"CurrentInstanceBootMode"`
	RootDeviceName        string                `json:"RootDeviceName"`
	RootDeviceType        string                `json:"RootDeviceType"`
	BlockDeviceMappings   []InstanceBlockDevice `json:"BlockDeviceMappings"`
	PrivateIPAddress      string                `json:"PrivateIpAddress,omitempty"`
	ShutdownBehavior      ShutdownBehavior      `json:"InstanceInitiatedShutdownBehavior"`
	DisableAPITermination bool                  `json:"DisableApiTermination"`
	MetadataOptions       MetadataOptions       `json:"MetadataOptions"`
	TpmSupport            string                `json:"TpmSupport,omitempty"` // v2.0: it has a TPM
	Platform              string                `json:"Platform,omitempty"`   // windows, or nothing
	PlatformDetails       string                `json:"PlatformDetails,omitempty"`
	UsageOperation        string                `json:"UsageOperation,omitempty"`
	UsageOperationTime    time.Time             `json:"UsageOperationUpdateTime,omitzero"`
	ProductCodes          []ProductCode         `json:"ProductCodes,omitempty"`
	Tags                  []Tag                 `json:"Tags,omitempty"`

	// kami's own.
	CPUs      int    `json:"Cpus"`
	MemoryMiB int64  `json:"MemoryMiB"`
	Driver    string `json:"Driver"`      // libvirt
	Connect   string `json:"ConnectUri"`  // qemu:///session
	Accel     string `json:"Accelerator"` // kvm or tcg
	MAC       string `json:"MacAddress"`
	Network   string `json:"NetworkName,omitempty"` // the hypervisor's; "" is user networking
	SSHPort   int    `json:"SshPort,omitempty"`     // on 127.0.0.1, where the network forwards one
	Hostname  string `json:"Hostname"`
	NoSeed    bool   `json:"NoSeed,omitempty"`     // the metadata service alone says who the guest is
	HostBoot  string `json:"HostBootId,omitempty"` // of the host, as the guest was last started
	// As the image's.
	KernelCmdline string    `json:"KernelCmdline,omitempty"`
	Terminated    time.Time `json:"TerminationTime,omitzero"`
}

// Reservation is what one launch made.
type Reservation struct {
	ReservationID ReservationID `json:"ReservationId"`
	OwnerID       string        `json:"OwnerId"`
	Instances     []Instance    `json:"Instances"`
}

// KeyPair is a public key that instances let in.
type KeyPair struct {
	KeyPairID      KeyPairID `json:"KeyPairId"`
	KeyName        string    `json:"KeyName"`
	KeyType        string    `json:"KeyType"` // ed25519 or rsa
	KeyFingerprint string    `json:"KeyFingerprint"`
	PublicKey      string    `json:"PublicKey"`
	CreateTime     time.Time `json:"CreateTime"`
	OwnerID        string    `json:"OwnerId"`
	Tags           []Tag     `json:"Tags,omitempty"`
}
