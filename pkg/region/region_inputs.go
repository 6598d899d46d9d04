package region

import (
	"time"

	"github.com/kamivm/kami/pkg/ami"
)

// BuildInput asks for an image built from a recipe.
type BuildInput struct {
	Recipe      string // a directory with recipe.yaml, or the name of a built-in recipe
	Name        string // image name; "" is the recipe's name and a timestamp
	Description string
	Tags        []ami.Tag
	Keep        bool // keep the build's files when a step fails
	NoRelative  bool // do not lay the disk over a layer that is like it
	DryRun      bool

	Architecture ami.Architecture // "" is the recipe's
	SecureBoot   bool             // boot loaders and UEFI variables for Secure Boot, whatever the recipe says
	Mirrors      []string         // where packages come from, as lines of apt's or URLs; none is Debian's own servers

	VirtualizationType string // "" is the recipe's
	RootDeviceType     string // "" is ebs
	ImageLocation      string // BUCKET/NAME of the bundle of an instance-store image; "" is of the image's name
	Store              string // address of the bundle's object store; "" is the region's
}

// ImportInput asks for an image made from a disk file.
type ImportInput struct {
	Source       string // a path or an http(s) URL
	Name         string // "" is made from the file's name
	Description  string
	Format       string // "" is found by looking
	SHA256       string // expected digest of the file as given; "" is unchecked
	SHA512       string
	ChecksumFile string // a SHA256SUMS-style file or URL that names the source
	// UsageOperation is EC2's code of what is on the disk; "" is Linux's.
	UsageOperation string
	BootMode       ami.BootMode
	Architecture   ami.Architecture
	NoRelative     bool // do not lay the disk over a layer that is like it
	Tags           []ami.Tag
	DryRun         bool
}

// CreateImageInput asks for an image of an instance as it is now.
type CreateImageInput struct {
	InstanceID          ami.InstanceID
	Name                string
	Description         string
	NoReboot            bool
	Require             ami.Consistency          // fail rather than make an image of less; "" takes any
	BlockDeviceMappings []ami.BlockDeviceMapping // add volumes, NoDevice, DeleteOnTermination
	Tags                []ami.Tag                // for the image and all its snapshots
	DryRun              bool
}

// RegisterImageInput asks for an image over snapshots that exist, or of a bundle,
// which says then what is not said here.
type RegisterImageInput struct {
	BundleImageInput
	Name               string
	Description        string
	Architecture       ami.Architecture // "" is x86_64
	BootMode           ami.BootMode
	RootDeviceName     string // "" is /dev/sda1
	VirtualizationType string // "" is hvm
	PVBoot
	BlockDeviceMappings []ami.BlockDeviceMapping
	Tags                []ami.Tag
	ImdsSupport         string // "" or v2.0, which says that the image's software asks for metadata with tokens
	TpmSupport          string // "" or v2.0, which gives its guests a TPM; with the boot mode uefi alone
	UEFIData            string // base64, of the variables of UEFI; "" is none
	SecureBoot          bool   // take the variables with Microsoft's keys of the host's firmware; kami's own
	EnaSupport          *bool  // nil is nothing said
	SriovNetSupport     string // "" or simple
	DryRun              bool
}

// Filter keeps the objects whose field Name matches one of Values, which may
// have EC2's wildcards * and ?.
type Filter struct {
	Name   string
	Values []string
}

// DescribeInput selects objects: all of IDs (an unknown one is an error), then
// those that pass every filter, and what is said beside.
type DescribeInput struct {
	IDs     []string
	Filters []Filter

	Owners []string // of images and snapshots: accounts, self, aliases; any of them
	// ExecutableUsers are of images: those that name one of these accounts, self or
	// all in their launch permissions.
	ExecutableUsers   []string
	IncludeDeprecated bool // images of others too that are out of date
	IncludeDisabled   bool // images that are disabled

	MaxResults int    // objects on a page, at most MaxPage; 0 is all there are
	NextToken  string // of the page before; "" begins
}

// RunInstancesInput asks for instances of an image.
type RunInstancesInput struct {
	Image               string // id, name, or with Latest a name pattern
	Template            string // NAME[:VERSION] of a launch template, which says what is not said here; "" is none
	Latest              bool
	InstanceType        string // "" is t3.micro
	CPUs                int    // over the type's, 0 for the type's
	MemoryMiB           int64
	Count               int // 0 is 1
	KeyName             string
	UserData            []byte
	BlockDeviceMappings []ami.BlockDeviceMapping
	BootMode            ami.BootMode // over the image's
	PVBoot                           // over a paravirtual image's
	ShutdownBehavior    ami.ShutdownBehavior
	Hostname            string
	Network             string // a network of the hypervisor's, "user", or "" to choose
	MetadataOptions     ami.MetadataOptions
	Tags                []ami.Tag
	RequireKVM          bool
	DryRun              bool

	// A build's guest is known before it is, and lets the build in.
	instanceID ami.InstanceID
	publicKeys []string
	// What kami itself says of an instance.
	systemTags []ami.Tag
}

// WaitFor is a condition that an instance is waited for.
type WaitFor string

// The conditions: the hypervisor runs it; its console shows a login prompt or a
// ready line; its ssh server answers.
const (
	WaitRunning WaitFor = "running"
	WaitBooted  WaitFor = "booted"
	WaitSSH     WaitFor = "ssh"
)

// StopInput asks instances to stop.
type StopInput struct {
	InstanceIDs []ami.InstanceID
	Force       bool          // pull the plug at once
	Timeout     time.Duration // for the clean shutdown; 0 is two minutes
	DryRun      bool
}

// CreateSnapshotInput asks for a snapshot of a volume.
type CreateSnapshotInput struct {
	VolumeID    ami.VolumeID
	Description string
	Require     ami.Consistency // fail rather than make a snapshot of less; "" takes any
	Tags        []ami.Tag
	DryRun      bool
}

// CreateVolumeInput asks for a volume, blank or from a snapshot.
type CreateVolumeInput struct {
	SnapshotID ami.SnapshotID
	Size       int64 // GiB; 0 is the snapshot's size
	VolumeType string
	Encrypted  *bool  // nil: as the snapshot is
	KmsKeyID   string // id or alias; "" is the snapshot's, or the region's own
	Tags       []ami.Tag
	DryRun     bool
}

// AttachVolumeInput asks for a volume at a device of an instance.
type AttachVolumeInput struct {
	VolumeID   ami.VolumeID
	InstanceID ami.InstanceID
	Device     string // "" is the next free /dev/sdX
	DryRun     bool
}

// DeregisterResult says what deregistering did, per snapshot.
type DeregisterResult struct {
	ImageID         ami.ImageID          `json:"ImageId"`
	Return          bool                 `json:"Return"`
	DeleteSnapshots []SnapshotReturnCode `json:"DeleteSnapshotResults,omitempty"`
	RecycleBinExit  time.Time            `json:"RecycleBinExitTime,omitzero"` // it lies in the bin until then
	Freed           int64                `json:"FreedBytes"`                  // on disk, by all of it: kami's own
}

// SnapshotReturnCode is EC2's result of deleting one snapshot with its image.
type SnapshotReturnCode struct {
	SnapshotID ami.SnapshotID `json:"SnapshotId"`
	ReturnCode string         `json:"ReturnCode"` // success, skipped, missing-permissions, client-error, internal-error

	// kami's own.
	Reason         string    `json:"Reason,omitempty"` // why it was not deleted
	RecycleBinExit time.Time `json:"RecycleBinExitTime,omitzero"`
	Freed          int64     `json:"FreedBytes"` // on disk
}

// ImageCost is what one image costs on disk, in bytes.
type ImageCost struct {
	ImageID ami.ImageID `json:"ImageId"`
	Name    string      `json:"Name"`
	Virtual int64       `json:"VirtualBytes"` // what the guest sees
	Chain   int64       `json:"ChainBytes"`   // all layers that it stands on
	Unique  int64       `json:"UniqueBytes"`  // of these, what no other image stands on
	Shared  int64       `json:"SharedBytes"`  // the others of these
	Freed   int64       `json:"FreedBytes"`   // by deregistering it with its snapshots
}

// StoreUsage is what a region costs on disk, in bytes.
type StoreUsage struct {
	Images  []ImageCost `json:"Images"`
	Layers  int64       `json:"LayerBytes"`
	Volumes int64       `json:"VolumeBytes"`
	Objects int64       `json:"ObjectBytes"`     // kernels, ramdisks, the variables of UEFI
	Cache   int64       `json:"CacheBytes"`      // of the layers, those that are kept though they can be made again
	Garbage int64       `json:"GarbageBytes"`    // layers and objects that no record names
	Bin     int64       `json:"RecycleBinBytes"` // of the layers, what only the recycle bin keeps
}

// SSHTarget says how to log in to an instance.
type SSHTarget struct {
	InstanceID   ami.InstanceID `json:"InstanceId"`
	Host         string         `json:"Host"`
	Port         int            `json:"Port"`
	IdentityFile string         `json:"IdentityFile,omitempty"` // "" when kami holds no private key
	KnownHosts   string         `json:"KnownHostsFile"`
	User         string         `json:"User"`
}

// Check is one line of the doctor's report.
type Check struct {
	Name   string      `json:"Name"`
	Status CheckStatus `json:"Status"`
	Detail string      `json:"Detail"`
	Mend   string      `json:"Mend,omitempty"` // the command that mends it
}

// CheckStatus is ok, warning (kami works, but less well) or failed.
type CheckStatus string

// The statuses.
const (
	CheckOK      CheckStatus = "ok"
	CheckWarning CheckStatus = "warning"
	CheckFailed  CheckStatus = "failed"
)

// Info is one region of the home.
type Info struct {
	RegionName string `json:"RegionName"`
	Path       string `json:"Path"`
	Images     int    `json:"Images"`
	Instances  int    `json:"Instances"`
	// IdentityCertificate is told by Show alone: PEM, of the key that signs the
	// identity documents of instances.
	IdentityCertificate string `json:"IdentityCertificate,omitempty"`
}
