package ami

import (
	"testing"
	"time"
)

const (
	someOrg  = "arn:aws:organizations::123456789012:organization/o-a1b2c3d4e5"
	someUnit = "arn:aws:organizations::123456789012:ou/o-a1b2c3d4e5/ou-a1b2-a1b2c3d4"
)

func TestParseLaunchPermission(t *testing.T) {
	for s, want := range map[string]LaunchPermission{
		"123456789012": {UserID: "123456789012"}, "all": {Group: "all"},
		someOrg: {OrganizationARN: someOrg}, someUnit: {OrganizationalUnitARN: someUnit},
	} {
		got, err := ParseLaunchPermission(s)
		if err != nil || got != want || got.String() != s || got.Check() != nil {
			t.Errorf("%q: got %+v (%v), want %+v", s, got, err, want)
		}
	}
	for _, s := range []string{"", "12345678901", "1234567890123", "All", "everybody", "arn:aws:iam::123456789012:root", someOrg + "/x", " all"} {
		if p, err := ParseLaunchPermission(s); ErrorCode(err) != CodeInvalidAMIAttributeItemValue {
			t.Errorf("%q: got %+v (%v), want InvalidAMIAttributeItemValue", s, p, err)
		}
	}
	for _, p := range []LaunchPermission{{}, {Group: "some"}, {UserID: "all"}, {UserID: "123456789012", Group: "all"}, {OrganizationARN: someUnit}} {
		if err := p.Check(); ErrorCode(err) != CodeInvalidAMIAttributeItemValue {
			t.Errorf("%+v: got %v, want InvalidAMIAttributeItemValue", p, err)
		}
	}
}

func TestVisibleTo(t *testing.T) {
	with := func(all ...LaunchPermission) Image {
		i := Image{OwnerID: "111111111111"}
		i.SetLaunchPermissions(all)
		return i
	}
	for _, tt := range []struct {
		name    string
		image   Image
		account string
		orgs    []string
		want    bool
	}{
		{"its owner", with(), "111111111111", nil, true},
		{"nobody else", with(), "222222222222", []string{someOrg}, false},
		{"everybody", with(LaunchPermission{Group: "all"}), "222222222222", nil, true},
		{"an account", with(LaunchPermission{UserID: "222222222222"}), "222222222222", nil, true},
		{"not another", with(LaunchPermission{UserID: "222222222222"}), "333333333333", nil, false},
		{"an organisation", with(LaunchPermission{OrganizationARN: someOrg}), "222222222222", []string{someUnit, someOrg}, true},
		{"a unit", with(LaunchPermission{OrganizationalUnitARN: someUnit}), "222222222222", []string{someUnit}, true},
		{"not of the unit", with(LaunchPermission{OrganizationalUnitARN: someUnit}), "222222222222", []string{someOrg}, false},
		{"not without a name", with(LaunchPermission{UserID: "222222222222"}), "", []string{""}, false},
	} {
		if got := tt.image.VisibleTo(tt.account, tt.orgs...); got != tt.want {
			t.Errorf("%s: got %t, want %t", tt.name, got, tt.want)
		}
	}
	i := with(LaunchPermission{UserID: "222222222222"}, LaunchPermission{Group: "all"})
	if !i.Public {
		t.Error("an image with the group all is not public")
	}
	if i.SetLaunchPermissions(nil); i.Public || i.VisibleTo("222222222222") {
		t.Error("an image without permissions is still shared")
	}
}

func TestSnapshotLockState(t *testing.T) {
	at := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	lock := SnapshotLock{Mode: LockCompliance, CoolOffExpiresOn: at.Add(time.Hour), ExpiresOn: at.Add(48 * time.Hour)}
	for after, want := range map[time.Duration]string{
		0: "compliance-cooloff", time.Hour: "compliance", 48*time.Hour - 1: "compliance", 48 * time.Hour: "expired",
	} {
		if got := lock.State(at.Add(after)); got != want {
			t.Errorf("after %s: got %s, want %s", after, got, want)
		}
		if got := (Snapshot{Lock: &lock}).Locked(at.Add(after)); got != (want != "expired") {
			t.Errorf("after %s: locked is %t", after, got)
		}
	}
}
