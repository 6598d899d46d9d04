package ami

import (
	"regexp"
	"slices"
)

// GroupAll is the group of everybody: an image that it may launch is public.
const GroupAll = "all"

// LaunchPermission lets somebody find and launch an image of another account's:
// an account, everybody, an organisation, or a unit of one. One field is set.
type LaunchPermission struct {
	UserID                string `json:"UserId,omitempty"` // 12 digits
	Group                 string `json:"Group,omitempty"`  // GroupAll
	OrganizationARN       string `json:"OrganizationArn,omitempty"`
	OrganizationalUnitARN string `json:"OrganizationalUnitArn,omitempty"`
}

// String is what a person writes for p: an account's id, all, or an ARN.
func (p LaunchPermission) String() string {
	return p.UserID + p.Group + p.OrganizationARN + p.OrganizationalUnitARN
}

var (
	accountID = regexp.MustCompile(`^[0-9]{12}$`)
	orgARN    = regexp.MustCompile(`^arn:aws[a-z-]*:organizations::[0-9]{12}:organization/o-[a-z0-9]{10,32}$`)
	unitARN   = regexp.MustCompile(`^arn:aws[a-z-]*:organizations::[0-9]{12}:ou/o-[a-z0-9]{10,32}/ou-[0-9a-z]{4,32}-[0-9a-z]{8,32}$`)
)

// ParseLaunchPermission reads what String writes. It returns
// InvalidAMIAttributeItemValue for what is neither.
func ParseLaunchPermission(s string) (LaunchPermission, error) {
	switch {
	case s == GroupAll:
		return LaunchPermission{Group: s}, nil
	case accountID.MatchString(s):
		return LaunchPermission{UserID: s}, nil
	case orgARN.MatchString(s):
		return LaunchPermission{OrganizationARN: s}, nil
	case unitARN.MatchString(s):
		return LaunchPermission{OrganizationalUnitARN: s}, nil
	}
	return LaunchPermission{}, badPermission(s)
}

// Check finds whether p has one field set, and that one is sound. It returns
// InvalidAMIAttributeItemValue.
func (p LaunchPermission) Check() error {
	if q, err := ParseLaunchPermission(p.String()); err != nil || p != q {
		return badPermission(p.String())
	}
	return nil
}

func badPermission(s string) error {
	return Errorf(CodeInvalidAMIAttributeItemValue, "Invalid attribute item value %q for launchPermission item type.", s).
		WithHint("Give an account of 12 digits, all, or the ARN of an organisation or of a unit of one.")
}

// IsAccount says whether s has the form of an account's id.
func IsAccount(s string) bool { return accountID.MatchString(s) }

// VisibleTo says whether an account may find and launch i: it owns it, i is public,
// or i was shared with it or with one of its organisations and their units, given
// by their ARNs. It is the one rule of who sees what; a snapshot is readable
// through an image that this allows.
func (i Image) VisibleTo(account string, organizations ...string) bool {
	return i.OwnerID == account || i.Public || i.SharedWith(account, organizations...)
}

// SharedWith says whether i was shared with an account, or with one of its
// organisations or units, by name: not by being public, nor by being its own.
func (i Image) SharedWith(account string, organizations ...string) bool {
	return slices.ContainsFunc(i.LaunchPermissions, func(p LaunchPermission) bool {
		return p.UserID != "" && p.UserID == account ||
			p.OrganizationARN != "" && slices.Contains(organizations, p.OrganizationARN) ||
			p.OrganizationalUnitARN != "" && slices.Contains(organizations, p.OrganizationalUnitARN)
	})
}

// SetLaunchPermissions has i shared with exactly these, and public if everybody is
// among them.
func (i *Image) SetLaunchPermissions(all []LaunchPermission) {
	i.LaunchPermissions = slices.Clip(all)
	i.Public = slices.Contains(all, LaunchPermission{Group: GroupAll})
}
