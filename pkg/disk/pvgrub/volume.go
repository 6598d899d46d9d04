package pvgrub

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"regexp"
	"strconv"
	"strings"

	"github.com/kamivm/kami/pkg/disk/guestfs"
)

// volume is a slice with a filesystem that can be read.
type volume struct {
	slice
	fs   *guestfs.FS
	left *int64 // of what may be read of configurations, for all volumes
}

// disk is what configurations are looked for on.
type disk struct {
	volumes []*volume
	// lacking says of each slice without a readable filesystem why it has none.
	lacking []string
	passed  []string
	faults  []error
	read    bool // a configuration was
}

func openDisk(ctx context.Context, img io.ReaderAt, size int64) (*disk, error) {
	parts, err := slicesOf(ctx, img, size)
	if err != nil {
		return nil, err
	}
	d, left := &disk{}, int64(maxConfigs)
	for _, p := range parts {
		filesystem, err := guestfs.Open(ctx, io.NewSectionReader(img, p.start, p.size), p.size)
		switch {
		case err == nil:
			d.volumes = append(d.volumes, &volume{slice: p, fs: filesystem, left: &left})
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case errors.Is(err, guestfs.ErrUnknown) && p.table == "" && len(parts) > 1:
			// The whole of a disk with partitions has none of its own.
		default:
			d.lacking = append(d.lacking, fmt.Sprintf("%s: %v", p.device(), err))
		}
	}
	if len(d.volumes) == 0 {
		return nil, fmt.Errorf("%w: %s", ErrNoFilesystem, strings.Join(d.lacking, "; "))
	}
	return d, nil
}

// pass notes what was found and not taken.
func (d *disk) pass(format string, args ...any) {
	const most = 50
	if len(d.passed) < most {
		d.passed = append(d.passed, shown(fmt.Sprintf(format, args...)))
	}
}

// fault notes why something was not taken that should have been.
func (d *disk) fault(err error) {
	d.faults = append(d.faults, err)
	d.pass("%v", err)
}

// place is a path on a device, as configurations have it.
type place struct {
	on   *volume
	path string
}

func (p place) String() string { return p.on.device() + p.path }

var (
	deviceName = regexp.MustCompile(`^\(([^()]*)\)(.*)$`)
	diskName   = regexp.MustCompile(`^hd(\d{1,3})(?:,(msdos|gpt)?(\d{1,3}))?$`)
)

// locate takes a path of a configuration apart: (hd0,1)/boot/vmlinuz, or what
// lies on the device root. base is the number of the first partition: 0 in
// menu.lst, 1 in grub.cfg.
func (d *disk) locate(path string, root *volume, base int) (place, error) {
	m := deviceName.FindStringSubmatch(path)
	if m == nil {
		return place{root, path}, nil
	}
	on, err := d.device(m[1], root, base)
	return place{on, m[2]}, err
}

// device finds the volume with a name such as hd0,msdos1. Images that were made
// for the one kind of PV-GRUB have run under the other: the partition of a disk
// that has none is the disk, and the disk where it has partitions is the one
// that the configuration stands on.
func (d *disk) device(name string, root *volume, base int) (*volume, error) {
	if name == "" {
		return root, nil
	}
	m := diskName.FindStringSubmatch(name)
	if m == nil {
		return nil, fmt.Errorf("it names the device (%s), which is no partition of the guest's root disk", name)
	}
	if n, err := strconv.Atoi(m[1]); err != nil || n != 0 {
		return nil, fmt.Errorf("it names the device (%s), and only the guest's root disk, hd0, is read", name)
	}
	number := 0
	if m[3] != "" {
		n, err := strconv.Atoi(m[3])
		if err != nil {
			return nil, err
		}
		number = n - base + 1
	}
	for _, v := range d.volumes {
		if v.number == number && (m[2] == "" || m[2] == v.table) {
			return v, nil
		}
	}
	if number == 0 || len(d.volumes) == 1 && d.volumes[0].table == "" {
		return root, nil
	}
	return nil, fmt.Errorf("it names the device (%s), which the disk does not have, or which has no filesystem that can be read", name)
}

// open finds the file at p.
func (p place) open(ctx context.Context) (*guestfs.File, error) {
	f, err := p.on.fs.Open(ctx, p.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", p, fs.ErrNotExist)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", p.on.device(), err)
	}
	return f, nil
}

// maxConfigs bounds the bytes of all configuration files together, and of one
// that is read many times.
const maxConfigs = 64 << 20

// read reads a configuration file of at most most bytes.
func (p place) read(ctx context.Context, most int64) ([]byte, error) {
	b, err := p.on.fs.ReadFile(ctx, p.path, most)
	if errors.Is(err, guestfs.ErrTooLarge) {
		return nil, fmt.Errorf("%w: %s: %w", ErrTooLarge, p.on.device(), err)
	}
	if *p.on.left -= int64(len(b)); *p.on.left < 0 {
		return nil, fmt.Errorf("%w: the configuration files have more than %d bytes", ErrTooLarge, maxConfigs)
	}
	return b, err
}
