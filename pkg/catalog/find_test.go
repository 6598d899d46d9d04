package catalog

import (
	"cmp"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/kamivm/kami/pkg/ami"
)

var (
	start    = time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)
	accounts = []string{"000000000000", "111111111111", "222222222222"}
	words    = []string{"", "a", "ab", "a*b", "a?b", `a\b`, "[ab]", "web-1", "web-2", "web-22", "é", "日本", "A", "]", "^a", "-"}
)

// pick is any of some values.
func pick[T any](r *rand.Rand, of ...T) T { return of[r.IntN(len(of))] }

// anyImage is an image with what filters look at, often the same as another's.
func anyImage(r *rand.Rand, n int) ami.Image {
	i := ami.Image{
		ImageID: ami.NewImageID(), Name: fmt.Sprint(pick(r, words...), n), OwnerID: pick(r, accounts...), Description: pick(r, words...),
		State: pick(r, ami.ImageAvailable, ami.ImageAvailable, ami.ImagePending, ami.ImageFailed, ami.ImageDisabled, ami.ImageDeregistered),
		// Several at one instant, so that their ids count.
		CreationDate: start.Add(time.Duration(r.IntN(20)) * time.Hour),
		Architecture: pick(r, ami.ArchX8664, ami.ArchARM64, ami.ArchI386), VirtualizationType: pick(r, "hvm", "paravirtual"),
		Hypervisor: "kvm", ImageType: pick(r, "machine", "kernel"), RootDeviceName: pick(r, "", "/dev/sda1"),
		RootDeviceType: "ebs", KernelID: pick(r, "", ami.PVGrub), OwnerAlias: pick(r, "", "kami"),
	}
	for range r.IntN(3) {
		t := ami.Tag{Key: pick(r, words[1:]...), Value: pick(r, words...)}
		if !slices.ContainsFunc(i.Tags, func(o ami.Tag) bool { return o.Key == t.Key }) {
			i.Tags = append(i.Tags, t)
		}
	}
	for range r.IntN(3) {
		m := ami.BlockDeviceMapping{DeviceName: pick(r, "/dev/sda1", "/dev/sdb")}
		if r.IntN(3) > 0 {
			m.Ebs = &ami.EBSBlockDevice{SnapshotID: pick(r, "", ami.SnapshotID("snap-1"), "snap-2"), Encrypted: pick(r, nil, new(true), new(false)), VolumeSize: pick(r, nil, new(int64(8)))}
		}
		i.BlockDeviceMappings = append(i.BlockDeviceMappings, m)
	}
	if r.IntN(4) == 0 {
		i.StateReason = &ami.StateReason{Code: pick(r, words...), Message: pick(r, words...)}
	}
	if r.IntN(4) == 0 {
		i.DeprecationTime = start.Add(time.Duration(r.IntN(20)) * time.Hour)
	}
	var shared []ami.LaunchPermission
	for range r.IntN(3) {
		shared = append(shared, pick(r, ami.LaunchPermission{UserID: pick(r, accounts...)}, ami.LaunchPermission{Group: ami.GroupAll}, ami.LaunchPermission{OrganizationARN: "arn:o"}))
	}
	i.SetLaunchPermissions(shared)
	return i
}

// anyFilter asks for what an image has, or almost has.
func anyFilter(r *rand.Rand, images []ami.Image) (name string, values []string) {
	fields := ami.ImageFields(pick(r, images...))
	f := pick(r, fields...)
	for range r.IntN(3) + 1 {
		v := f.Value
		if r.IntN(4) == 0 {
			v = pick(r, words...)
		}
		switch r.IntN(5) {
		case 0:
		case 1:
			v = ami.EscapePattern(v)
		case 2:
			v = ami.EscapePattern(v[:len(v)/2]) + "*"
		case 3:
			v = pick(r, "*", "?", "", "*"+v, v+"?", `\`+v, v+`\`)
		case 4:
			if runes := []rune(v); len(runes) > 0 {
				runes[r.IntN(len(runes))] = pick(r, '*', '?', '[', 'x')
				v = string(runes)
			}
		}
		values = append(values, v)
	}
	return f.Name, values
}

// TestFindAgrees holds the index to ami's matchers on random images and filters,
// page by page.
func TestFindAgrees(t *testing.T) {
	for seed := range uint64(3) {
		r := rand.New(rand.NewPCG(seed, 1))
		s := open(t, filepath.Join(t.TempDir(), "catalog.db"))
		images := churn(t, s, r)
		err := s.View(t.Context(), func(tx *Tx) error {
			for range 200 {
				agree(t, tx, r, images)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// churn puts images, changes some and deletes some, and returns those that are left
// in the order of lists.
func churn(t *testing.T, s *Store, r *rand.Rand) []ami.Image {
	t.Helper()
	var images []ami.Image
	for n := range 150 {
		images = append(images, anyImage(r, n))
	}
	put := func(all []ami.Image) {
		t.Helper()
		err := s.Update(t.Context(), func(tx *Tx) (err error) {
			for _, i := range all {
				err = errors.Join(err, tx.PutImage(i))
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	put(images)
	for n := range 40 {
		id := images[n].ImageID
		images[n] = anyImage(r, n)
		images[n].ImageID = id
	}
	put(images[:60])
	err := s.Update(t.Context(), func(tx *Tx) (err error) {
		for _, i := range images[:20] {
			err = errors.Join(err, tx.DeleteImage(i.ImageID))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	images = images[20:]
	slices.SortFunc(images, func(a, b ami.Image) int {
		return cmp.Or(a.CreationDate.Compare(b.CreationDate), cmp.Compare(a.ImageID, b.ImageID))
	})
	return images
}

func agree(t *testing.T, tx *Tx, r *rand.Rand, images []ami.Image) {
	t.Helper()
	me, org := pick(r, accounts...), pick(r, "", "arn:o")
	q := ImageQuery{
		Viewers: []string{me, ami.GroupAll}, Account: me, Now: start.Add(10 * time.Hour),
		Disabled: r.IntN(2) == 0, Deprecated: r.IntN(2) == 0, Limit: r.IntN(8),
	}
	if org != "" {
		q.Viewers = append(q.Viewers, org)
	}
	type filter struct {
		name   string
		values []string
	}
	var filters []filter
	for range r.IntN(4) {
		name, values := anyFilter(r, images)
		filters = append(filters, filter{name, values})
		q.Where = append(q.Where, Filter(name, values...))
	}
	user := ""
	if r.IntN(4) == 0 {
		user = pick(r, append(accounts, ami.GroupAll)...)
		q.Where = append(q.Where, ExecutableBy("", user))
	}
	var want []ami.ImageID
	for _, i := range images {
		ok := i.VisibleTo(me, org) && i.State != ami.ImageDeregistered && (q.Disabled || i.State != ami.ImageDisabled) &&
			(q.Deprecated || i.OwnerID == me || !i.IsDeprecated(q.Now)) &&
			(user == "" || user == ami.GroupAll && i.Public || i.SharedWith(user))
		for _, f := range filters {
			m, err := ami.MatchImage(i, f.name, f.values)
			if err != nil {
				t.Fatal(err)
			}
			ok = ok && m
		}
		if ok {
			want = append(want, i.ImageID)
		}
	}
	// However many there are: the plans of long lists and of patterns of many terms.
	most := pick(r, usual(), limits{merged: 1, lookedUp: 1, sorted: 1, tried: 5, resorted: 10},
		limits{merged: 4, lookedUp: 10, sorted: 10, tried: 1, resorted: 1000}, limits{merged: 1, lookedUp: 100, sorted: 1000, tried: 10})
	var got []ami.ImageID
	for pages := 0; ; pages++ {
		page, end, err := tx.find(q, most)
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range page {
			got = append(got, i.ImageID)
		}
		if q.Limit > 0 && len(page) > q.Limit || end != nil && len(page) != q.Limit || pages > len(images) {
			t.Fatalf("got a page of %d images, want at most %d", len(page), q.Limit)
		}
		if end == nil {
			break
		}
		q.After = *end
	}
	if d := gocmp.Diff(want, got); d != "" {
		t.Errorf("%+v %+v and %q (-want +got):\n%s", most, q, filters, d)
	}
}

// TestIndexIsWhole holds that nothing is left in the index of images that are gone,
// and that it is as it would be made anew.
func TestIndexIsWhole(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 7))
	s := open(t, filepath.Join(t.TempDir(), "catalog.db"))
	images := churn(t, s, r)
	err := s.Update(t.Context(), func(tx *Tx) error {
		before := indexOf(t, tx)
		if err := tx.reindex(); err != nil {
			return err
		}
		if d := gocmp.Diff(before, indexOf(t, tx)); d != "" {
			t.Errorf("the index before and after it was made anew (-before +after):\n%s", d)
		}
		var err error
		for _, i := range images {
			err = errors.Join(err, tx.DeleteImage(i.ImageID))
		}
		if left := indexOf(t, tx); len(left) > 0 {
			t.Errorf("got %q of no image, want nothing", left)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// indexOf is the whole index as text.
func indexOf(t *testing.T, tx *Tx) (out []string) {
	t.Helper()
	rows, err := tx.conn.QueryContext(t.Context(), `
		SELECT name || '=' || value || ' ' || n || ' ' || coalesce(created, '') || ' ' || coalesce(image, '') FROM image_terms LEFT JOIN image_postings ON term = id
		UNION SELECT image || ' ' || owner || ' ' || at FROM image_deprecations ORDER BY 1`)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var s string
		if err := rows.Scan(&s); err != nil {
			t.Fatal(err)
		}
		out = append(out, s)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return out
}

// TestPagesAreStable holds that images which come and go between two pages neither
// hide nor repeat others.
func TestPagesAreStable(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "catalog.db"))
	var images []ami.Image
	add := func(at time.Duration) {
		t.Helper()
		i := image(fmt.Sprint("image ", len(images)))
		i.CreationDate = start.Add(at)
		images = append(images, i)
		if err := s.Update(t.Context(), func(tx *Tx) error { return tx.PutImage(i) }); err != nil {
			t.Fatal(err)
		}
	}
	for n := range 9 {
		add(time.Duration(n) * time.Hour)
	}
	q := ImageQuery{Viewers: []string{ami.DefaultAccount}, Limit: 3}
	page := func() (names []string) {
		t.Helper()
		err := s.View(t.Context(), func(tx *Tx) error {
			got, end, err := tx.FindImages(q)
			for _, i := range got {
				names = append(names, i.Name)
			}
			if end != nil {
				q.After = *end
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return names
	}
	got := [][]string{page()}
	add(30 * time.Minute)              // before what was shown: not any more
	add(5*time.Hour + 30*time.Minute)  // in what comes
	for _, gone := range []int{2, 3} { // the last that was shown, and the next
		if err := s.Update(t.Context(), func(tx *Tx) error { return tx.DeleteImage(images[gone].ImageID) }); err != nil {
			t.Fatal(err)
		}
	}
	got = append(got, page(), page())
	want := [][]string{{"image 0", "image 1", "image 2"}, {"image 4", "image 5", "image 10"}, {"image 6", "image 7", "image 8"}}
	if d := gocmp.Diff(want, got); d != "" {
		t.Errorf("pages (-want +got):\n%s", d)
	}
}
