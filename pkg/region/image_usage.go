package region

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
)

// ResourceInstance is the type of resource that uses images, EC2's.
const ResourceInstance = "ec2:Instance"

// ImageUsage is how an image of the caller's is used, by account.
type ImageUsage struct {
	ImageID          ami.ImageID       `json:"ImageId"`
	LastLaunchedTime time.Time         `json:"LastLaunchedTime,omitzero"`
	CreationTime     time.Time         `json:"ReportCreationTime"`
	Entries          []ImageUsageEntry `json:"ImageUsageReportEntries"`
}

// ImageUsageEntry is how many resources of one account use an image.
type ImageUsageEntry struct {
	AccountID    string `json:"AccountId"`
	ResourceType string `json:"ResourceType"`
	UsageCount   int    `json:"UsageCount"`
}

// ImageUsage counts the instances of an image of the caller's, of all accounts. It is
// EC2's image usage report, at once.
func (r *Region) ImageUsage(ctx context.Context, id ami.ImageID) (u ImageUsage, err error) {
	image, err := r.ownImage(ctx, id)
	if err != nil {
		return u, err
	}
	u = ImageUsage{ImageID: id, LastLaunchedTime: image.LastLaunchedTime, CreationTime: r.now().Truncate(time.Millisecond)}
	instances, err := r.instancesOf(ctx, id)
	counts := map[string]int{}
	for _, inst := range instances {
		counts[inst.OwnerID]++
	}
	for account, n := range counts {
		u.Entries = append(u.Entries, ImageUsageEntry{account, ResourceInstance, n})
	}
	slices.SortFunc(u.Entries, func(a, b ImageUsageEntry) int { return strings.Compare(a.AccountID, b.AccountID) })
	return u, err
}

// ImageReference is one resource of the caller's that refers to an image.
type ImageReference struct {
	ImageID      ami.ImageID `json:"ImageId"`
	ResourceType string      `json:"ResourceType"`
	ResourceID   string      `json:"ResourceId"`
}

// ImageReferences finds the caller's instances that refer to images, which may be
// anybody's.
func (r *Region) ImageReferences(ctx context.Context, ids []ami.ImageID) (out []ImageReference, err error) {
	for _, id := range ids {
		if err := parseAnyImageID(string(id)); err != nil {
			return nil, err
		}
		instances, err := r.instancesOf(ctx, id)
		if err != nil {
			return nil, err
		}
		for _, inst := range instances {
			if inst.OwnerID == r.account {
				out = append(out, ImageReference{id, ResourceInstance, string(inst.InstanceID)})
			}
		}
	}
	return out, nil
}

// instancesOf reads the instances that refer to an image, kernel or ramdisk and are
// not terminated, of all accounts.
func (r *Region) instancesOf(ctx context.Context, id ami.ImageID) (out []ami.Instance, err error) {
	err = r.catalog.View(ctx, func(tx *catalog.Tx) error {
		all, err := tx.Instances()
		out = slices.DeleteFunc(all, func(i ami.Instance) bool {
			of := i.ImageID == id || ami.ImageID(i.KernelID) == id || ami.ImageID(i.RamdiskID) == id
			return !of || i.State.Name == ami.InstanceTerminated
		})
		return r.legible(err)
	})
	return out, storeError(err, "The instances cannot be read.")
}

// ImageAncestor is one image in the line from an image to that which it came from.
type ImageAncestor struct {
	ImageID         ami.ImageID `json:"ImageId"`
	CreationDate    time.Time   `json:"CreationDate"`
	ImageOwnerAlias string      `json:"ImageOwnerAlias,omitempty"`
	SourceImageID   ami.ImageID `json:"SourceImageId,omitempty"`
}

// ImageAncestry returns the line of an image that the caller sees, the image first. It
// ends at one that came from none, or whose source the caller does not see: of that
// there is the id.
func (r *Region) ImageAncestry(ctx context.Context, id ami.ImageID) (line []ImageAncestor, err error) {
	if _, err := r.image(ctx, id); err != nil {
		return nil, err
	}
	err = r.catalog.View(ctx, func(tx *catalog.Tx) error {
		seen := map[ami.ImageID]bool{}
		for at := id; at != "" && !seen[at]; {
			seen[at] = true
			image, err := tx.Image(at)
			if errors.Is(err, catalog.ErrNotFound) || err == nil && !r.sees(image) {
				return nil
			}
			if err != nil {
				return err
			}
			line = append(line, ImageAncestor{image.ImageID, image.CreationDate, image.OwnerAlias, image.SourceImageID})
			at = image.SourceImageID
		}
		return nil
	})
	return line, storeError(err, "The images cannot be read.")
}
