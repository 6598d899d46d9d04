package ami

import (
	"slices"
	"time"
)

// The states that governing brings about.
const (
	ImageDisabled       ImageState    = "disabled"    // cannot be launched or shared
	SnapshotRecoverable SnapshotState = "recoverable" // in the recycle bin
)

// The states of an image's protection from being deregistered; "" is none.
const (
	Protected             = "enabled-without-cooldown"
	ProtectedWithCooldown = "enabled-with-cooldown"
)

// Recycled says since when an object lies in the recycle bin, and until when.
type Recycled struct {
	EnterTime time.Time  `json:"RecycleBinEnterTime"`
	ExitTime  time.Time  `json:"RecycleBinExitTime"`
	State     ImageState `json:"State,omitempty"` // that the image had
}

// IsDeprecated says whether i is out of date at an instant. It is launched as ever,
// and found by its owner alone unless by its id.
func (i Image) IsDeprecated(at time.Time) bool {
	return !i.DeprecationTime.IsZero() && !at.Before(i.DeprecationTime)
}

// HasEncrypted says whether any volume of i's is made of an encrypted snapshot.
func (i Image) HasEncrypted() bool {
	return slices.ContainsFunc(i.BlockDeviceMappings, func(m BlockDeviceMapping) bool {
		return m.Ebs != nil && m.Ebs.Encrypted != nil && *m.Ebs.Encrypted
	})
}

// ProductCode says that what has it is paid for, as which product.
type ProductCode struct {
	ID   string `json:"ProductCodeId"`
	Type string `json:"ProductCodeType"` // devpay, which the bundles of old carry, or marketplace
}

// LockMode is who may take a snapshot's lock off before its time.
type LockMode string

// The modes: the owner may, or, once its cooling-off period is over, nobody.
const (
	LockGovernance LockMode = "governance"
	LockCompliance LockMode = "compliance"
)

// SnapshotLock keeps a snapshot from being deleted.
type SnapshotLock struct {
	Mode              LockMode  `json:"LockMode"`
	CreatedOn         time.Time `json:"LockCreatedOn"`
	Duration          int       `json:"LockDuration"` // days
	DurationStartTime time.Time `json:"LockDurationStartTime"`
	ExpiresOn         time.Time `json:"LockExpiresOn"`
	CoolOffPeriod     int       `json:"CoolOffPeriod,omitempty"` // hours in which a compliance lock can still be changed
	CoolOffExpiresOn  time.Time `json:"CoolOffPeriodExpiresOn,omitzero"`
}

// State is what a lock is at an instant: governance, compliance-cooloff, compliance
// or expired.
func (l SnapshotLock) State(at time.Time) string {
	switch {
	case !at.Before(l.ExpiresOn):
		return "expired"
	case l.Mode == LockCompliance && at.Before(l.CoolOffExpiresOn):
		return "compliance-cooloff"
	}
	return string(l.Mode)
}

// Locked says whether s cannot be deleted at an instant.
func (s Snapshot) Locked(at time.Time) bool {
	return s.Lock != nil && s.Lock.State(at) != "expired"
}
