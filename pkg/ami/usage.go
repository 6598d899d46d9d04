package ami

import (
	"time"

	"github.com/kamivm/kami/pkg/digest"
)

// UsageKind is what a usage is of.
type UsageKind string

// The kinds of usage.
const (
	UsageInstance UsageKind = "instance" // one run of an instance with its product codes, from its start to its stop
	UsageVolume   UsageKind = "volume"   // a volume of one size and type
	UsageSnapshot UsageKind = "snapshot" // a snapshot on one layer
)

// Usage is what was used of one thing, without a change, from one instant to another.
// It is kami's own noun: what bills are made of.
type Usage struct {
	Kind         UsageKind  `json:"Kind"`
	ResourceID   string     `json:"ResourceId"` // of the instance, volume or snapshot
	OwnerID      string     `json:"OwnerId"`    // who pays
	Type         string     `json:"Type,omitempty"`
	ProductCodes []string   `json:"ProductCodes,omitempty"` // of an instance
	ImageID      ImageID    `json:"ImageId,omitempty"`      // of an instance
	Bytes        int64      `json:"Bytes,omitempty"`        // provisioned, of a volume
	Layers       []LayerUse `json:"Layers,omitempty"`       // that a snapshot stands on, its own first
	From         time.Time  `json:"From"`
	To           time.Time  `json:"To,omitzero"` // zero: it goes on

	// Boot and Up are the run of the host that it began in, and how long that had
	// lasted: what a clock that is set meanwhile does not change.
	Boot string        `json:"Boot,omitempty"`
	Up   time.Duration `json:"Up,omitempty"` // nanoseconds
}

// LayerUse is a layer that something stands on, and the size of its file in bytes.
type LayerUse struct {
	Layer digest.Digest `json:"Layer"`
	Bytes int64         `json:"Bytes"`
}

// EndAt is the end of a usage that ends now, by the clock and by the host's own time:
// where the host is the same one, the length is what passed, however the clock was
// set meanwhile; else it is what the clock says, and never less than nothing.
func (u Usage) EndAt(now time.Time, boot string, up time.Duration) time.Time {
	length := now.Sub(u.From)
	if boot != "" && boot == u.Boot {
		length = up - u.Up
	}
	return u.From.Add(max(length, 0))
}
