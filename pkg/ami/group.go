package ami

import (
	"regexp"
	"time"
)

// Group keeps a number of instances of an image running, after EC2's Auto Scaling
// groups: it is reconciled when somebody asks, and never by itself.
type Group struct {
	GroupName       string          `json:"AutoScalingGroupName"`
	OwnerID         string          `json:"OwnerId"`
	Launch          GroupLaunch     `json:"Launch"` // of instances from now on
	MinSize         int             `json:"MinSize"`
	MaxSize         int             `json:"MaxSize"`
	DesiredCapacity int             `json:"DesiredCapacity"`
	HealthCheck     string          `json:"HealthCheckType"`        // running, booted or ssh
	GraceSeconds    int64           `json:"HealthCheckGracePeriod"` // that an instance has to become healthy
	CreatedTime     time.Time       `json:"CreatedTime"`
	Status          string          `json:"Status,omitempty"`          // "Delete in progress"
	Refresh         *GroupRefresh   `json:"InstanceRefresh,omitempty"` // the last roll
	Instances       []GroupInstance `json:"Instances,omitempty"`       // computed
}

// GroupDeleting is the status of a group that is being deleted.
const GroupDeleting = "Delete in progress"

// GroupLaunch is what a group launches: a template, or an image.
type GroupLaunch struct {
	Template string             `json:"LaunchTemplate,omitempty"`    // NAME[:VERSION]
	Data     LaunchTemplateData `json:"LaunchTemplateData,omitzero"` // over the template
}

// GroupRefresh is a roll: the replacement of all instances by others.
type GroupRefresh struct {
	Status    string      `json:"Status"`
	Reason    string      `json:"StatusReason,omitempty"` // of one that failed
	Target    GroupLaunch `json:"DesiredConfiguration"`
	Batch     int         `json:"BatchSize"` // instances at once
	StartTime time.Time   `json:"StartTime"`
	EndTime   time.Time   `json:"EndTime,omitzero"`
}

// The states of a roll, EC2's.
const (
	RefreshInProgress = "InProgress"
	RefreshSuccessful = "Successful"
	RefreshFailed     = "Failed"
)

// GroupInstance is an instance of a group.
type GroupInstance struct {
	InstanceID InstanceID    `json:"InstanceId"`
	State      InstanceState `json:"State"`
	ImageID    ImageID       `json:"ImageId"`
	Revision   string        `json:"Revision"` // what it was launched of
	LaunchTime time.Time     `json:"LaunchTime"`
	Current    bool          `json:"Current"`   // it is what the group launches now
	InService  bool          `json:"InService"` // it was found healthy
}

// The tags, of the reserved kind, by which an instance belongs to a group, says of what
// that launched it (kami's own), and of which template it is.
const (
	TagGroup           = "aws:autoscaling:groupName"
	TagGroupHealthy    = "aws:autoscaling:inService" // when it was found healthy first
	TagGroupRevision   = "aws:autoscaling:revision"
	TagTemplateID      = "aws:ec2launchtemplate:id"
	TagTemplateVersion = "aws:ec2launchtemplate:version"
)

var groupName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$`)

// CheckGroupName checks the form of a group's name. It returns InvalidParameterValue.
func CheckGroupName(name string) error {
	if groupName.MatchString(name) {
		return nil
	}
	return Errorf(CodeInvalidParameterValue, "The group's name %q is not 1 to 128 letters, digits, dots, underscores and dashes, the first of them a letter or digit.", name)
}

// The codes of groups, those of EC2 Auto Scaling.
const (
	CodeGroupExists     Code = "AlreadyExists"
	CodeGroupInUse      Code = "ResourceInUse"
	CodeGroupContention Code = "ResourceContention"
	CodeGroupNotFound   Code = "ValidationError"
)
