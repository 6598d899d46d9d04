package qemu

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/digitalocean/go-qemu/qmp/raw"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/hypervisor/qmp"
	"github.com/kamivm/kami/pkg/machine"
)

// AttachDisk plugs a disk into the first free port of a running guest. One that
// is there already stays as it is.
func (d *Driver) AttachDisk(ctx context.Context, id ami.InstanceID, disk machine.Disk) error {
	return d.with(ctx, id, func(m *qmp.Monitor) error {
		have, err := qmp.Disks(m.Within(ctx))
		if err != nil {
			return err
		}
		if _, ok := have[disk.Path]; ok {
			return nil
		}
		i, err := freePort(ctx, m)
		if err != nil {
			return err
		}
		if err := dropUnplugged(ctx, m, disk.Path, have); err != nil {
			return err
		}
		return withKeys(ctx, m, keysOf(disk), func() error {
			node := diskNode(disk, headID(i))
			if err := qmp.Ask(m.Within(ctx), "blockdev-add", node, nil); err != nil {
				return err
			}
			device := map[string]string{}
			fields := deviceFields(disk, i)
			for _, f := range fields[1:] {
				name, value, _ := strings.Cut(f, "=")
				device[name] = strings.ReplaceAll(value, ",,", ",")
			}
			device["driver"] = fields[0]
			err := qmp.Ask(m.Within(ctx), "device_add", device, nil)
			if err != nil {
				undoing, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeLimit)
				defer cancel()
				err = errors.Join(err, raw.NewMonitor(m.Within(undoing)).BlockdevDel(node.Name))
			}
			return err
		})
	})
}

// freePort is the first port of a guest that no disk is in.
func freePort(ctx context.Context, m *qmp.Monitor) (int, error) {
	var objects []struct {
		Name string `json:"name"`
	}
	if err := qmp.Ask(m.Within(ctx), "qom-list", map[string]string{"path": "/machine/peripheral"}, &objects); err != nil {
		return 0, err
	}
	has := map[string]bool{}
	for _, o := range objects {
		has[o.Name] = true
	}
	for i := 0; has[portID(i)]; i++ {
		if !has[diskID(i)] {
			return i, nil
		}
	}
	return 0, errors.New("the guest has no free port for a disk: stop it and start it again, for more of them")
}

// withKeys calls fn while QEMU has the keys in its memory.
func withKeys(ctx context.Context, m *qmp.Monitor, keys []machine.Key, fn func() error) (err error) {
	forgetting, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeLimit)
	defer cancel()
	for _, key := range keys {
		secret := map[string]string{"qom-type": "secret", "id": secretID(key), "data": string(key.Passphrase)}
		if err := qmp.Ask(m.Within(ctx), "object-add", secret, nil); err != nil {
			return fmt.Errorf("giving QEMU a key: %w", err)
		}
		defer func() {
			err = errors.Join(err, raw.NewMonitor(m.Within(forgetting)).ObjectDel(secretID(key)))
		}()
	}
	return fn()
}

// detachLimit bounds how long a guest is asked to let go of a disk, askAgain
// how often.
const detachLimit, askAgain = time.Minute, 2 * time.Second

// DetachDisk unplugs a disk. The guest has to agree, so it is asked again until
// it has let go or ctx ends.
func (d *Driver) DetachDisk(ctx context.Context, id ami.InstanceID, path string) error {
	ctx, cancel := context.WithTimeout(ctx, detachLimit)
	defer cancel()
	return d.with(ctx, id, func(m *qmp.Monitor) error {
		events, err := m.Events(ctx)
		if err != nil {
			return err
		}
		var last error
		for {
			have, err := qmp.Disks(m.Within(ctx))
			if err != nil {
				return err
			}
			disk, ok := have[path]
			if !ok {
				return dropUnplugged(ctx, m, path, have)
			}
			// That an earlier request is under way is no failure.
			if err := raw.NewMonitor(m.Within(ctx)).DeviceDel(disk.Device); err != nil {
				last = err
			}
			tick := time.After(askAgain)
			for waiting := true; waiting; {
				select {
				case e := <-events:
					waiting = e.Event != "DEVICE_DELETED" && e.Event != ""
				case <-tick:
					waiting = false
				case <-ctx.Done():
					return fmt.Errorf("the guest does not let go of the disk: %w", errors.Join(last, ctx.Err()))
				}
			}
		}
	})
}

// dropUnplugged closes the file at path where the guest has let go of its device,
// but whoever asked for that was killed, or has just learned of it.
func dropUnplugged(ctx context.Context, m *qmp.Monitor, path string, have map[string]qmp.Disk) error {
	nodes, err := qmp.Nodes(m.Within(ctx))
	if err != nil {
		return err
	}
	for _, n := range nodes {
		if strings.HasSuffix(n.Name, headSuffix) && qmp.ImageFile(n.File) == path && have[path].Node != n.Name {
			if err := raw.NewMonitor(m.Within(ctx)).BlockdevDel(n.Name); err != nil {
				return err
			}
		}
	}
	return nil
}

// ResizeDisk makes a disk larger under the running guest.
func (d *Driver) ResizeDisk(ctx context.Context, id ami.InstanceID, path string, size int64) error {
	return d.with(ctx, id, func(m *qmp.Monitor) error {
		have, err := qmp.Disks(m.Within(ctx))
		if err != nil {
			return err
		}
		disk, ok := have[path]
		if !ok {
			return fmt.Errorf("the guest has no disk %s", path)
		}
		return raw.NewMonitor(m.Within(ctx)).BlockResize(nil, &disk.Node, size)
	})
}
