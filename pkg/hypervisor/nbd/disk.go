package nbd

import (
	"context"
	"errors"

	"github.com/kamivm/kami/pkg/hypervisor"
)

// Disk is an export as a view of a disk. It reads by one connection, and learns by
// another what has changed, where a bitmap says so. What is zero is asked only of
// that.
type Disk struct {
	*Client
	changes *Client // nil without a bitmap
}

// DialDisk opens the export of that name with its dirty bitmap, "" for none.
func DialDisk(ctx context.Context, socket, export, bitmap string) (Disk, error) {
	data, err := Dial(ctx, socket, export, "")
	if err != nil || bitmap == "" {
		return Disk{data, nil}, err
	}
	changes, err := Dial(ctx, socket, export, bitmap)
	if err != nil {
		return Disk{}, errors.Join(err, data.Close())
	}
	return Disk{data, changes}, nil
}

// Close ends the connections. What is under way fails.
func (d Disk) Close() error {
	if d.changes == nil {
		return d.Client.Close()
	}
	return errors.Join(d.changes.Close(), d.Client.Close())
}

// Incremental says whether there is a bitmap.
func (d Disk) Incremental() bool { return d.changes != nil }

// Whole is the same disk without its bitmap.
func (d Disk) Whole() hypervisor.DiskView { return Disk{d.Client, nil} }

// Extents calls fn with consecutive runs that cover [off, off+length).
func (d Disk) Extents(ctx context.Context, off, length int64, fn func(off, length int64, dirty, zero bool) error) error {
	if d.changes == nil {
		return d.Client.Extents(ctx, off, length, fn)
	}
	return d.changes.Extents(ctx, off, length, func(off, length int64, dirty, _ bool) error {
		if !dirty {
			return fn(off, length, false, false)
		}
		return d.Client.Extents(ctx, off, length, fn)
	})
}

var _ hypervisor.DiskView = Disk{}
