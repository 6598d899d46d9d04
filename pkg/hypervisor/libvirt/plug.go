package libvirt

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"time"

	"libvirt.org/go/libvirt"
	"libvirt.org/go/libvirtxml"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/hypervisor"
	"github.com/kamivm/kami/pkg/machine"
)

// disks returns the disks of a running guest as libvirt has them.
func disks(dom *libvirt.Domain) ([]libvirtxml.DomainDisk, error) {
	text, err := dom.GetXMLDesc(0)
	if err != nil {
		return nil, err
	}
	var d libvirtxml.Domain
	if err := xml.Unmarshal([]byte(text), &d); err != nil {
		return nil, fmt.Errorf("reading the guest's description: %w", err)
	}
	return d.Devices.Disks, nil
}

func diskFile(d libvirtxml.DomainDisk) string {
	if d.Source == nil || d.Source.File == nil {
		return ""
	}
	return d.Source.File.File
}

// AttachDisk plugs a disk into a running guest under the next free name.
func (d *Driver) AttachDisk(ctx context.Context, id ami.InstanceID, disk machine.Disk) error {
	return gone(d.with(ctx, id, func(dom *libvirt.Domain) error {
		have, err := disks(dom)
		if err != nil {
			return err
		}
		used := map[string]bool{}
		for _, h := range have {
			used[h.Target.Dev] = true
		}
		i := 0
		for used[targetName(i)] {
			i++
		}
		device := renderDisk(disk, i)
		text, err := device.Marshal()
		if err != nil {
			return err
		}
		return d.withKeys(keysOf(disk), func() error { return dom.AttachDeviceFlags(text, libvirt.DOMAIN_DEVICE_MODIFY_LIVE) })
	}))
}

// DetachDisk unplugs a disk. The guest has to agree, so it is asked again until
// it has let go or ctx ends.
func (d *Driver) DetachDisk(ctx context.Context, id ami.InstanceID, path string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	var last error
	for {
		found := false
		err := d.with(ctx, id, func(dom *libvirt.Domain) error {
			have, err := disks(dom)
			if err != nil {
				return err
			}
			for _, h := range have {
				if diskFile(h) != path {
					continue
				}
				found = true
				text, err := h.Marshal()
				if err != nil {
					return err
				}
				// That an earlier request is under way is no failure.
				last = dom.DetachDeviceFlags(text, libvirt.DOMAIN_DEVICE_MODIFY_LIVE)
			}
			return nil
		})
		if err != nil || !found {
			return gone(err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the guest does not let go of the disk: %w", errors.Join(last, ctx.Err()))
		case <-tick.C:
		}
	}
}

// ResizeDisk makes a disk larger under the running guest.
func (d *Driver) ResizeDisk(ctx context.Context, id ami.InstanceID, path string, size int64) error {
	return gone(d.with(ctx, id, func(dom *libvirt.Domain) error {
		return dom.BlockResize(path, uint64(size), libvirt.DOMAIN_BLOCK_RESIZE_BYTES)
	}))
}

// Freeze freezes the guest's file systems through its agent.
func (d *Driver) Freeze(ctx context.Context, id ami.InstanceID, limit time.Duration) (int, error) {
	// libvirt asks twice: whether the agent is there, and to freeze.
	ctx, cancel := context.WithTimeout(ctx, 2*limit+time.Second)
	defer cancel()
	n := 0
	err := d.with(ctx, id, func(dom *libvirt.Domain) error {
		if err := dom.AgentSetResponseTimeout(int(limit/time.Second), 0); err != nil {
			return err
		}
		return dom.FSFreeze(nil, 0)
	})
	if err == nil {
		n = 1
	}
	return n, gone(err)
}

// thawAnswer bounds each of an agent's two answers when it is asked to thaw.
const thawAnswer = 5 * time.Second

// Thaw undoes Freeze.
func (d *Driver) Thaw(ctx context.Context, id ami.InstanceID) error {
	ctx, cancel := context.WithTimeout(ctx, 2*thawAnswer+time.Second)
	defer cancel()
	return gone(d.with(ctx, id, func(dom *libvirt.Domain) error {
		if err := dom.AgentSetResponseTimeout(int(thawAnswer/time.Second), 0); err != nil {
			return err
		}
		return dom.FSThaw(nil, 0)
	}))
}

// Console opens the guest's serial console, both ways.
func (d *Driver) Console(ctx context.Context, id ami.InstanceID) (conn io.ReadWriteCloser, err error) {
	err = d.with(ctx, id, func(dom *libvirt.Domain) error {
		s, err := d.conn.NewStream(0)
		if err != nil {
			return err
		}
		if err := dom.OpenConsole("", s, libvirt.DOMAIN_CONSOLE_FORCE); err != nil {
			s.Free()
			return err
		}
		conn = stream{s}
		return nil
	})
	return conn, gone(err)
}

type stream struct{ s *libvirt.Stream }

func (c stream) Read(p []byte) (int, error)  { return c.s.Recv(p) }
func (c stream) Write(p []byte) (int, error) { return c.s.Send(p) }
func (c stream) Close() error                { return errors.Join(c.s.Abort(), c.s.Free()) }

var (
	_ hypervisor.Driver   = (*Driver)(nil)
	_ hypervisor.Plugger  = (*Driver)(nil)
	_ hypervisor.Resizer  = (*Driver)(nil)
	_ hypervisor.Consoler = (*Driver)(nil)
	_ hypervisor.Freezer  = (*Driver)(nil)
	_ hypervisor.Renderer = (*Driver)(nil)

	_ hypervisor.Networker = (*Driver)(nil)
)
