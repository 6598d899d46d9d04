package main

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
	house "github.com/kamivm/kami/pkg/region"
)

// What find looks in, how much it asks for at once, and in which time it has to be
// there.
const (
	findImages = 100_000
	findPage   = 100
	findMost   = 0.010 // seconds
)

// The accounts of the images: a third is the caller's, a third is public, and of the
// last third the caller sees nothing.
var findAccounts = [3]string{ami.DefaultAccount, "111111111111", "222222222222"}

// find measures, in this process, pages of filtered lists in a catalog of very many
// images.
func (b *bench) find(ctx context.Context) ([]row, []chart, error) {
	home := filepath.Join(b.dir, "find")
	if err := fillCatalog(ctx, home); err != nil {
		return nil, nil, err
	}
	r, err := house.Open(ctx, house.Options{Home: home})
	if err != nil {
		return nil, nil, err
	}
	defer r.Close()
	filter := func(name string, values ...string) house.Filter { return house.Filter{Name: name, Values: values} }
	var rows []row
	for _, q := range []struct {
		name, what string
		in         house.DescribeInput
		skip       int // pages before the one that is measured
	}{
		{"all", "all images that are seen", house.DescribeInput{}, 0},
		{"page 50", "the same, page 50", house.DescribeInput{}, 49},
		{"common", "images of an architecture and a state that half of them have", house.DescribeInput{Filters: []house.Filter{filter("architecture", "x86_64"), filter("state", "available")}}, 0},
		{"owner and tag", "one's own images with a tag that one of 100 has", house.DescribeInput{Owners: []string{"self"}, Filters: []house.Filter{filter("tag:team", "42")}}, 0},
		{"late", "one's own images by four filters, one of which nothing of the older half fits", house.DescribeInput{Filters: []house.Filter{
			filter("tag:stage", "prod"), filter("architecture", "arm64", "x86_64"), filter("root-device-type", "ebs"), filter("virtualization-type", "hvm"),
		}, Owners: []string{"self"}}, 0},
		{"name", "the images of two names, of which one is another's", house.DescribeInput{Filters: []house.Filter{filter("name", "web-050001", "web-050003")}}, 0},
		{"name-*", "images by the beginning of a name, which one of 1000 has, and an architecture", house.DescribeInput{Filters: []house.Filter{filter("name", "web-0333*"), filter("architecture", "arm64")}}, 0},
		{"*", "images by the beginning of a name, which all have", house.DescribeInput{Filters: []house.Filter{filter("name", "web-*")}}, 0},
		{"month", "the images of a month", house.DescribeInput{Filters: []house.Filter{filter("creation-date", "2020-09-*")}}, 0},
		{"nothing", "images by a name that none has, and an architecture", house.DescribeInput{Filters: []house.Filter{filter("name", "none"), filter("architecture", "x86_64")}}, 0},
	} {
		took, n, err := b.timeFind(ctx, r, q.in, q.skip)
		if err != nil {
			return nil, nil, err
		}
		what := fmt.Sprintf("A page of %s (%d found), of %d images", q.what, n, findImages)
		rows = append(rows, timed("find "+q.name, what, took, nil, ofKami, findMost))
	}
	return rows, nil, nil
}

// timeFind times one page of a list, and says how many are on it.
func (b *bench) timeFind(ctx context.Context, r *house.Region, in house.DescribeInput, skip int) (took []time.Duration, n int, err error) {
	in.MaxResults = findPage
	for range skip {
		page, err := r.DescribeImagesPage(ctx, in)
		if err != nil {
			return nil, 0, err
		}
		in.NextToken = page.NextToken
	}
	for range b.rounds {
		start := time.Now()
		page, err := r.DescribeImagesPage(ctx, in)
		if err != nil {
			return nil, 0, err
		}
		took, n = append(took, time.Since(start)), len(page.Items)
	}
	return took, n, nil
}

// fillCatalog makes a home whose catalog has very many images, of an hour each.
func fillCatalog(ctx context.Context, home string) error {
	r, err := house.Open(ctx, house.Options{Home: home}) // which makes the region
	if err != nil {
		return err
	}
	if err := r.Close(); err != nil {
		return err
	}
	store, err := catalog.Open(ctx, filepath.Join(home, "regions", house.DefaultRegion, "catalog.db"))
	if err != nil {
		return err
	}
	defer store.Close()
	const batch = 5000
	for from := 0; from < findImages; from += batch {
		err := store.Update(ctx, func(tx *catalog.Tx) error {
			for n := from; n < from+batch; n++ {
				if err := tx.PutImage(benchImage(n)); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// benchImage is the n-th image, with what images have.
func benchImage(n int) ami.Image {
	size, del := int64(8), true
	i := ami.Image{
		ImageID: ami.NewImageID(), Name: fmt.Sprintf("web-%06d", n), Description: fmt.Sprintf("The build %d", n), OwnerID: findAccounts[n%3],
		State: ami.ImageAvailable, CreationDate: time.Date(2015, 1, 1, n, 0, 0, 0, time.UTC),
		Architecture:       [2]ami.Architecture{ami.ArchX8664, ami.ArchARM64}[n%2],
		VirtualizationType: ami.VirtualizationHVM, Hypervisor: "kvm", ImageType: ami.ImageTypeMachine,
		RootDeviceType: ami.RootDeviceEBS, RootDeviceName: "/dev/sda1", BootMode: ami.BootUEFIPreferred,
		ImageLocation: fmt.Sprintf("%s/web-%06d", findAccounts[n%3], n),
		Tags:          []ami.Tag{{Key: "team", Value: fmt.Sprint(n % 100)}, {Key: "stage", Value: [2]string{"test", "prod"}[n/(findImages/2)]}},
		BlockDeviceMappings: []ami.BlockDeviceMapping{{DeviceName: "/dev/sda1", Ebs: &ami.EBSBlockDevice{
			SnapshotID: ami.NewSnapshotID(), VolumeSize: &size, VolumeType: "gp3", DeleteOnTermination: &del,
		}}},
	}
	if n%3 == 1 {
		i.SetLaunchPermissions([]ami.LaunchPermission{{Group: ami.GroupAll}})
	}
	return i
}
