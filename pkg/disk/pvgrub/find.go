package pvgrub

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"unicode"

	"github.com/kamivm/kami/pkg/disk/guestfs"
)

// choice is an entry of a configuration whose files were not looked for yet.
type choice struct {
	title, cmdline string
	kernel         place
	initrds        []place
	fault          error // why it cannot be booted, where that is known already
}

// menu is what a configuration says: which entries to try, and the others.
type menu struct {
	first, rest []choice
}

// candidate is a place where a configuration may be, and who reads it.
type candidate struct {
	place
	read func(ctx context.Context, d *disk, at place) (menu, error)
}

func find(ctx context.Context, img io.ReaderAt, size int64) (Config, error) {
	d, err := openDisk(ctx, img, size)
	if err != nil {
		return Config{}, err
	}
	at, err := d.candidates(ctx)
	if err != nil {
		return Config{}, err
	}
	for _, c := range at {
		m, err := c.read(ctx, d, c.place)
		if ctx.Err() != nil {
			return Config{}, ctx.Err()
		}
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			d.fault(fmt.Errorf("%s: %w", c, err))
			continue
		}
		d.read = true
		entries, err := d.entries(ctx, c.place, m)
		if err != nil {
			return Config{}, err
		}
		if len(entries) > 0 {
			return Config{Source: c.String(), Entries: entries, Passed: d.passed}, nil
		}
	}
	if !d.read {
		return Config{}, d.noConfig(ctx)
	}
	return Config{}, d.noKernel()
}

// noKernel says why no entry can be booted. It is the error of the first of them,
// the default one, too.
func (d *disk) noKernel() error {
	if len(d.faults) == 0 {
		return fmt.Errorf("%w: %s", ErrNoKernel, strings.Join(d.passed, "; "))
	}
	message := ""
	if more := slices.DeleteFunc(slices.Clone(d.passed), func(s string) bool { return s == shown(d.faults[0].Error()) }); len(more) > 0 {
		message = "; " + strings.Join(more, "; ")
	}
	return fmt.Errorf("%w: %w%s", ErrNoKernel, d.faults[0], message)
}

// candidates are the places to look at, in the order of PV-GRUB, which knew
// menu.lst only: on the whole disk, then on each partition. Then those of GRUB 2
// and systemd-boot, and last what an EFI system partition has for finding these.
func (d *disk) candidates(ctx context.Context) ([]candidate, error) {
	var out []candidate
	for _, of := range []struct {
		read  func(context.Context, *disk, place) (menu, error)
		paths []string
	}{
		{readMenuLst, []string{"/boot/grub/menu.lst", "/grub/menu.lst", "/boot/grub/grub.conf", "/grub/grub.conf"}},
		{readGrubCfg, []string{"/boot/grub/grub.cfg", "/boot/grub2/grub.cfg", "/grub/grub.cfg", "/grub2/grub.cfg"}},
		{readLoader, []string{"/boot/loader/entries", "/loader/entries"}},
	} {
		for _, v := range d.volumes {
			for _, p := range of.paths {
				out = append(out, candidate{place{v, p}, of.read})
			}
		}
	}
	for _, v := range d.volumes {
		names, err := v.fs.ReadDir(ctx, "/EFI")
		if err != nil {
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			continue
		}
		slices.Sort(names)
		for _, name := range names[:min(len(names), 20)] {
			out = append(out, candidate{place{v, "/EFI/" + name + "/grub.cfg"}, readGrubCfg})
		}
	}
	return out, nil
}

// entries looks for the files of a menu's entries. Those that are not to be
// tried by the menu's own words stand in when none of the others can be.
func (d *disk) entries(ctx context.Context, source place, m menu) ([]Entry, error) {
	const maxTried = 100
	var out []Entry
	tried := 0
	if len(m.first)+len(m.rest) == 0 {
		d.pass("%s has no entries", source)
	}
	for _, list := range [][]choice{m.first, m.rest} {
		for _, c := range list {
			if tried++; tried > maxTried {
				d.pass("%s: after %d entries no more were looked at", source, maxTried)
				return out, nil
			}
			e, err := c.open(ctx)
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			if err != nil {
				d.fault(fmt.Errorf("%s: entry %q: %w", source, c.title, err))
				continue
			}
			out = append(out, e)
		}
		if len(out) > 0 {
			break
		}
	}
	return out, nil
}

func (c choice) open(ctx context.Context) (e Entry, err error) {
	const maxCmdline = 4096
	if c.fault != nil {
		return e, c.fault
	}
	if len(c.cmdline) > maxCmdline {
		return e, fmt.Errorf("%w: a command line of %d characters, at most %d are taken", ErrTooLarge, len(c.cmdline), maxCmdline)
	}
	if strings.ContainsFunc(c.cmdline, unicode.IsControl) {
		return e, errors.New("its command line has control characters")
	}
	e.Title, e.Cmdline = shown(c.title), c.cmdline
	if e.Kernel, err = openKernel(ctx, c.kernel); err != nil {
		return e, err
	}
	e.Initrds, err = openInitrds(ctx, c.initrds)
	return e, err
}

// noConfig says where was looked, and what was there instead.
func (d *disk) noConfig(ctx context.Context) error {
	var on []string
	for _, v := range d.volumes {
		on = append(on, fmt.Sprintf("%s (%s)", v.device(), v.fs.Kind()))
	}
	message := "none of /boot/grub/menu.lst, /boot/grub/grub.cfg, /boot/grub2/grub.cfg, /boot/loader/entries " +
		"(on a partition of its own without /boot) is on " + strings.Join(on, ", ")
	if len(d.lacking) > 0 {
		message += "; not read: " + strings.Join(d.lacking, "; ")
	}
	for _, v := range d.volumes {
		for _, p := range []string{
			"/boot/extlinux.conf", "/extlinux.conf", "/boot/extlinux/extlinux.conf", "/boot/syslinux/syslinux.cfg", "/syslinux/syslinux.cfg", "/EFI/Linux",
		} {
			_, err := v.fs.Open(ctx, p)
			if err == nil || errors.Is(err, guestfs.ErrNotAFile) {
				message += fmt.Sprintf("; %s is there, which is not read", place{v, p})
			}
		}
	}
	if len(d.faults) > 0 {
		return fmt.Errorf("%w: %s: %w", ErrNoConfig, message, d.faults[0])
	}
	return fmt.Errorf("%w: %s", ErrNoConfig, message)
}
