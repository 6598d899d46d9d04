package ami

import (
	"cmp"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// LaunchTemplateID is the id of a launch template.
type LaunchTemplateID string // lt-…

// NewLaunchTemplateID returns a fresh random id.
func NewLaunchTemplateID() LaunchTemplateID { return LaunchTemplateID(newID("lt-")) }

// LaunchTemplate says how instances are launched, in versions that never change.
type LaunchTemplate struct {
	LaunchTemplateID     LaunchTemplateID `json:"LaunchTemplateId"`
	LaunchTemplateName   string           `json:"LaunchTemplateName"`
	OwnerID              string           `json:"OwnerId"` // kami's own
	CreateTime           time.Time        `json:"CreateTime"`
	DefaultVersionNumber int64            `json:"DefaultVersionNumber"`
	// LatestVersionNumber is the highest that there ever was: a number is given once.
	LatestVersionNumber int64                   `json:"LatestVersionNumber"`
	Versions            []LaunchTemplateVersion `json:"LaunchTemplateVersions"` // oldest first
}

// LaunchTemplateVersion is one version of a launch template.
type LaunchTemplateVersion struct {
	VersionNumber      int64              `json:"VersionNumber"`
	VersionDescription string             `json:"VersionDescription,omitempty"`
	CreateTime         time.Time          `json:"CreateTime"`
	DefaultVersion     bool               `json:"DefaultVersion"`
	LaunchTemplateData LaunchTemplateData `json:"LaunchTemplateData"`
}

// LaunchTemplateData is what a version says of a launch; what it does not say is the
// launch's own or a default.
type LaunchTemplateData struct {
	ImageID             string               `json:"ImageId,omitempty"` // or a name
	InstanceType        string               `json:"InstanceType,omitempty"`
	KeyName             string               `json:"KeyName,omitempty"`
	UserData            []byte               `json:"UserData,omitempty"`
	BlockDeviceMappings []BlockDeviceMapping `json:"BlockDeviceMappings,omitempty"`
	ShutdownBehavior    ShutdownBehavior     `json:"InstanceInitiatedShutdownBehavior,omitempty"`
	MetadataOptions     MetadataOptions      `json:"MetadataOptions,omitzero"`
	KernelID            KernelID             `json:"KernelId,omitempty"`
	RamdiskID           RamdiskID            `json:"RamDiskId,omitempty"`
	Tags                []Tag                `json:"Tags,omitempty"` // of the instances

	// kami's own.
	CPUs          int      `json:"Cpus,omitempty"`
	MemoryMiB     int64    `json:"MemoryMiB,omitempty"`
	BootMode      BootMode `json:"BootMode,omitempty"`
	Network       string   `json:"NetworkName,omitempty"`
	KernelCmdline string   `json:"KernelCmdline,omitempty"`
	RequireKVM    bool     `json:"RequireKvm,omitempty"`
}

// Over is d with what it does not say taken from under: tags by their keys and block
// devices by their names, everything else whole.
func (d LaunchTemplateData) Over(under LaunchTemplateData) LaunchTemplateData {
	out := LaunchTemplateData{
		ImageID:             cmp.Or(d.ImageID, under.ImageID),
		InstanceType:        cmp.Or(d.InstanceType, under.InstanceType),
		KeyName:             cmp.Or(d.KeyName, under.KeyName),
		UserData:            d.UserData,
		BlockDeviceMappings: slices.Clone(under.BlockDeviceMappings),
		ShutdownBehavior:    cmp.Or(d.ShutdownBehavior, under.ShutdownBehavior),
		MetadataOptions:     d.MetadataOptions.Over(under.MetadataOptions),
		KernelID:            cmp.Or(d.KernelID, under.KernelID),
		RamdiskID:           cmp.Or(d.RamdiskID, under.RamdiskID),
		Tags:                slices.Clone(under.Tags),
		CPUs:                cmp.Or(d.CPUs, under.CPUs),
		MemoryMiB:           cmp.Or(d.MemoryMiB, under.MemoryMiB),
		BootMode:            cmp.Or(d.BootMode, under.BootMode),
		Network:             cmp.Or(d.Network, under.Network),
		KernelCmdline:       cmp.Or(d.KernelCmdline, under.KernelCmdline),
		RequireKVM:          d.RequireKVM || under.RequireKVM,
	}
	if len(out.UserData) == 0 {
		out.UserData = under.UserData
	}
	for _, m := range d.BlockDeviceMappings {
		out.BlockDeviceMappings = append(slices.DeleteFunc(out.BlockDeviceMappings, func(u BlockDeviceMapping) bool { return u.DeviceName == m.DeviceName }), m)
	}
	for _, t := range d.Tags {
		out.Tags = append(slices.DeleteFunc(out.Tags, func(u Tag) bool { return u.Key == t.Key }), t)
	}
	return out
}

// The versions that have a name instead of a number.
const (
	TemplateLatest  = "$Latest"
	TemplateDefault = "$Default"
)

// Version returns a version by its number, $Latest, or $Default, which "" is too. It
// returns InvalidLaunchTemplateId.VersionNotFound.
func (t LaunchTemplate) Version(ref string) (LaunchTemplateVersion, error) {
	number := t.DefaultVersionNumber
	switch ref {
	case "", TemplateDefault:
	case TemplateLatest:
		number = 0
		for _, v := range t.Versions {
			number = max(number, v.VersionNumber)
		}
	default:
		n, err := strconv.ParseInt(ref, 10, 64)
		if err != nil || n < 1 {
			return LaunchTemplateVersion{}, Errorf(CodeInvalidParameterValue, "%q is no version of a launch template.", ref).
				WithHint("Give a number, %s or %s.", TemplateLatest, TemplateDefault)
		}
		number = n
	}
	for _, v := range t.Versions {
		if v.VersionNumber == number {
			v.DefaultVersion = number == t.DefaultVersionNumber
			return v, nil
		}
	}
	return LaunchTemplateVersion{}, Errorf(CodeTemplateVersionNotFound, "Could not find the version '%s' of the launch template %s.", ref, t.LaunchTemplateName).
		WithHint("kami template show %s lists its versions.", t.LaunchTemplateName)
}

// ParseTemplateRef cuts NAME:VERSION into its parts; without a version that is "". "NAME:",
// which a shell makes of NAME:$Latest, is taken for a name, and no template has it.
func ParseTemplateRef(s string) (name, version string) {
	name, version, _ = strings.Cut(s, ":")
	if version == "" {
		return s, ""
	}
	return name, version
}

var templateName = regexp.MustCompile(`^[A-Za-z0-9().\-/_]{3,128}$`)

// CheckTemplateName checks the form of a launch template's name. It returns
// InvalidLaunchTemplateName.MalformedException.
func CheckTemplateName(name string) error {
	if templateName.MatchString(name) && !strings.HasPrefix(name, "lt-") {
		return nil
	}
	return Errorf(CodeTemplateNameMalformed, "A launch template name must be between 3 and 128 characters, and may contain letters, numbers, and the following characters: - ( ) . / _ : %q is not.", name)
}

// The codes of launch templates.
const (
	CodeTemplateNotFound        Code = "InvalidLaunchTemplateName.NotFoundException"
	CodeTemplateExists          Code = "InvalidLaunchTemplateName.AlreadyExistsException"
	CodeTemplateNameMalformed   Code = "InvalidLaunchTemplateName.MalformedException"
	CodeTemplateVersionNotFound Code = "InvalidLaunchTemplateId.VersionNotFound"
)
