package region

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
)

const (
	alice = "111122223333"
	bob   = "444455556666"
)

// found are the names of the images that are found.
func found(t *testing.T, r *Region, in DescribeInput) (names []string) {
	t.Helper()
	all, err := r.DescribeImages(t.Context(), in)
	must(t, err)
	for _, i := range all {
		names = append(names, i.Name)
	}
	return names
}

// recorded writes images as they are, one a minute.
func recorded(t *testing.T, r *Region, images ...ami.Image) []ami.Image {
	t.Helper()
	must(t, r.catalog.Update(t.Context(), func(tx *catalog.Tx) error {
		for n := range images {
			i := r.newImage(images[n].Name, "", images[n].Tags)
			i.State, i.CreationDate = ami.ImageAvailable, time.Date(2026, 1, 1, 0, n, 0, 0, time.UTC)
			if images[n].State != "" {
				i.State = images[n].State
			}
			if images[n].OwnerID != "" {
				i.OwnerID = images[n].OwnerID
			}
			i.DeprecationTime, i.OwnerAlias = images[n].DeprecationTime, images[n].OwnerAlias
			i.SetLaunchPermissions(images[n].LaunchPermissions)
			images[n] = i
			if err := tx.PutImage(i); err != nil {
				return err
			}
		}
		return nil
	}))
	return images
}

func sharedWith(who ...string) (all []ami.LaunchPermission) {
	for _, w := range who {
		if w == ami.GroupAll {
			all = append(all, ami.LaunchPermission{Group: w})
		} else {
			all = append(all, ami.LaunchPermission{UserID: w})
		}
	}
	return all
}

// Who finds what: one's own, what is public, what was shared; what is deprecated and
// disabled where it is asked for.
func TestFindVisible(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	past := time.Now().Add(-time.Hour)
	all := recorded(t, h.open(t),
		ami.Image{Name: "private", OwnerID: alice, Tags: []ami.Tag{{Key: "secret", Value: "x"}}},
		ami.Image{Name: "public", OwnerID: alice, LaunchPermissions: sharedWith(ami.GroupAll), Tags: []ami.Tag{{Key: "secret", Value: "x"}}},
		ami.Image{Name: "for bob", OwnerID: alice, LaunchPermissions: sharedWith(bob, "777788889999")},
		ami.Image{Name: "old", OwnerID: alice, LaunchPermissions: sharedWith(ami.GroupAll), DeprecationTime: past},
		ami.Image{Name: "not yet old", OwnerID: alice, LaunchPermissions: sharedWith(ami.GroupAll), DeprecationTime: past.Add(2 * time.Hour)},
		ami.Image{Name: "disabled", OwnerID: alice, State: ami.ImageDisabled},
		ami.Image{Name: "gone", OwnerID: alice, State: ami.ImageDeregistered},
		ami.Image{Name: "bobs", OwnerID: bob},
	)
	a, b := h.open(t, as(alice)), h.open(t, as(bob))
	tests := []struct {
		name string
		r    *Region
		in   DescribeInput
		want []string
	}{
		{"the owner", a, DescribeInput{}, []string{"private", "public", "for bob", "old", "not yet old"}},
		{"the owner, disabled ones", a, DescribeInput{IncludeDisabled: true}, []string{"private", "public", "for bob", "old", "not yet old", "disabled"}},
		{"another", b, DescribeInput{}, []string{"public", "for bob", "not yet old", "bobs"}},
		{"another, everything", b, DescribeInput{IncludeDisabled: true, IncludeDeprecated: true}, []string{"public", "for bob", "old", "not yet old", "bobs"}},
		{"a stranger", h.open(t), DescribeInput{}, []string{"public", "not yet old"}},
		{"a deprecated one by its id", b, DescribeInput{IDs: []string{string(all[3].ImageID)}}, []string{"old"}},
		{"a disabled one by its id", a, DescribeInput{IDs: []string{string(all[5].ImageID)}}, []string{"disabled"}},
		{"one's own", b, DescribeInput{Owners: []string{"self"}}, []string{"bobs"}},
		{"of one of two", b, DescribeInput{Owners: []string{"self", alice}, Filters: []Filter{filter("name", "*bob*")}}, []string{"for bob", "bobs"}},
		{"of an alias", b, DescribeInput{Owners: []string{"amazon"}}, nil},
		{"of kami", b, DescribeInput{Owners: []string{ami.BuiltinAlias}, Filters: []Filter{filter("image-type", "*")}}, []string{"pv-grub-x86_64"}},
		{"shared with oneself", b, DescribeInput{ExecutableUsers: []string{"self"}}, []string{"for bob"}},
		{"shared with oneself by number", b, DescribeInput{ExecutableUsers: []string{bob}}, []string{"for bob"}},
		{"public ones", b, DescribeInput{ExecutableUsers: []string{ami.GroupAll}}, []string{"public", "not yet old"}},
		{"the owner knows with whom", a, DescribeInput{ExecutableUsers: []string{"777788889999"}}, []string{"for bob"}},
		{"nobody else does", b, DescribeInput{ExecutableUsers: []string{"777788889999"}}, nil},
		{"the owner's tags", a, DescribeInput{Filters: []Filter{filter("tag:secret", "x")}}, []string{"private", "public"}},
		{"are the owner's", b, DescribeInput{Filters: []Filter{filter("tag:secret", "*")}}, nil},
		{"and their keys", b, DescribeInput{Filters: []Filter{filter("tag-key", "*")}}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := found(t, tt.r, tt.in); !slices.Equal(got, tt.want) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
	// What one may not see is not there, also by its id and beside what one may see.
	for _, n := range []int{0, 5, 6} {
		_, err := b.DescribeImages(t.Context(), DescribeInput{IDs: []string{string(all[1].ImageID), string(all[n].ImageID)}})
		wantCode(t, err, ami.CodeInvalidAMIIDNotFound)
		wantSays(t, err, string(all[n].ImageID))
	}
	shown, err := b.DescribeImages(t.Context(), DescribeInput{IDs: []string{string(all[2].ImageID)}})
	must(t, err)
	if len(shown[0].LaunchPermissions)+len(shown[0].Tags) > 0 {
		t.Errorf("got %+v, want nothing of what its owner alone is to know", shown[0])
	}
}

// lister is one noun's list by pages.
type lister func(in DescribeInput) (ids []string, next string, err error)

func listed[T any](p Page[T], err error, id func(T) string) (ids []string, next string, _ error) {
	for _, o := range p.Items {
		ids = append(ids, id(o))
	}
	return ids, p.NextToken, err
}

func listers(t *testing.T, r *Region) map[string]lister {
	return map[string]lister{
		"images": func(in DescribeInput) ([]string, string, error) {
			p, err := r.DescribeImagesPage(t.Context(), in)
			return listed(p, err, func(i ami.Image) string { return string(i.ImageID) })
		},
		"kernels too": func(in DescribeInput) ([]string, string, error) {
			in.Filters = append(slices.Clone(in.Filters), filter("image-type", "machine", "kernel"))
			p, err := r.DescribeImagesPage(t.Context(), in)
			return listed(p, err, func(i ami.Image) string { return string(i.ImageID) })
		},
		"snapshots": func(in DescribeInput) ([]string, string, error) {
			p, err := r.DescribeSnapshotsPage(t.Context(), in)
			return listed(p, err, func(s ami.Snapshot) string { return string(s.SnapshotID) })
		},
		"volumes": func(in DescribeInput) ([]string, string, error) {
			p, err := r.DescribeVolumesPage(t.Context(), in)
			return listed(p, err, func(v ami.Volume) string { return string(v.VolumeID) })
		},
		"instances": func(in DescribeInput) ([]string, string, error) {
			p, err := r.DescribeInstancesPage(t.Context(), in)
			return listed(p, err, func(i ami.Instance) string { return string(i.InstanceID) })
		},
	}
}

// The pages of a list are the list, whatever their size, and their tokens are good
// for nothing else.
func TestPages(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	r := h.open(t)
	for n := range 3 {
		image(t, r, fmt.Sprintf("image %d", n))
		launched(t, r, RunInstancesInput{Image: fmt.Sprintf("image %d", n)})
	}
	tokens := map[string]string{}
	for name, list := range listers(t, r) {
		whole, next, err := list(DescribeInput{})
		if err != nil || next != "" || len(whole) < 3 {
			t.Fatalf("%s: got %q, %q, %v", name, whole, next, err)
		}
		for size := 1; size <= len(whole)+1; size++ {
			var got []string
			in := DescribeInput{MaxResults: size}
			for range whole {
				ids, next, err := list(in)
				must(t, err)
				got = append(got, ids...)
				if in.NextToken = next; next == "" {
					break
				}
				if len(ids) != size {
					t.Errorf("%s: got a page of %d, want %d", name, len(ids), size)
				}
				tokens[name] = next
			}
			if d := cmp.Diff(whole, got); d != "" || in.NextToken != "" {
				t.Errorf("%s by %d (-want +got):\n%s", name, size, d)
			}
		}
		for what, code := range map[string]struct {
			in   DescribeInput
			code ami.Code
		}{
			"a negative size":  {DescribeInput{MaxResults: -1}, ami.CodeInvalidParameterValue},
			"too large a page": {DescribeInput{MaxResults: MaxPage + 1}, ami.CodeInvalidParameterValue},
			"no token":         {DescribeInput{NextToken: "?"}, ami.CodeInvalidNextToken},
			"another's token":  {DescribeInput{NextToken: tokens[name], Filters: []Filter{filter("tag:x", "y")}}, ami.CodeInvalidNextToken},
			"half a token":     {DescribeInput{NextToken: tokens[name][:12]}, ami.CodeInvalidNextToken},
			"ids and a size":   {DescribeInput{IDs: whole[:1], MaxResults: 1}, ami.CodeInvalidParameterCombination},
			"ids and a token":  {DescribeInput{IDs: whole[:1], NextToken: tokens[name]}, ami.CodeInvalidParameterCombination},
		} {
			if _, _, err := list(code.in); ami.ErrorCode(err) != code.code {
				t.Errorf("%s: %s: got %v, want %s", name, what, err, code.code)
			}
		}
	}
	_, err := r.DescribeVolumesPage(t.Context(), DescribeInput{NextToken: tokens["snapshots"]})
	wantCode(t, err, ami.CodeInvalidNextToken)
	_, err = h.open(t, as(stranger)).DescribeImagesPage(t.Context(), DescribeInput{NextToken: tokens["images"]})
	wantCode(t, err, ami.CodeInvalidNextToken)
}

func TestAccounts(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	r := h.open(t, as(alice))
	image(t, r, "base")
	newVolume(t, h.open(t, as(bob)))
	_, err := r.Accounts(t.Context())
	wantCode(t, err, ami.CodeUnauthorizedOperation)
	got, err := h.open(t).Accounts(t.Context())
	must(t, err)
	want := []AccountUse{{AccountID: alice, Images: 1, Snapshots: 1}, {AccountID: bob, Volumes: 1}}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("accounts (-want +got):\n%s", d)
	}
	for _, bad := range []string{"1", "11112222333a", "1111222233334"} {
		_, err := Open(t.Context(), Options{Home: h.home, Account: bad})
		wantCode(t, err, ami.CodeInvalidUserIDMalformed)
		_, err = r.DescribeImages(t.Context(), DescribeInput{Owners: []string{bad}})
		wantCode(t, err, ami.CodeInvalidUserIDMalformed)
		_, err = r.DescribeImages(t.Context(), DescribeInput{ExecutableUsers: []string{bad}})
		wantCode(t, err, ami.CodeInvalidUserIDMalformed)
		_, err = r.DescribeSnapshots(t.Context(), DescribeInput{Owners: []string{bad}})
		wantCode(t, err, ami.CodeInvalidUserIDMalformed)
	}
}
