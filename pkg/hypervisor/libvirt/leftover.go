package libvirt

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"libvirt.org/go/libvirt"

	"github.com/kamivm/kami/pkg/hypervisor/qmp"
)

// A libvirt that was restarted while it ended a backup has forgotten the job, and
// QEMU has not: its server still runs, and keeps every later backup from starting
// one; the copies of what the guest overwrote still take room.

// isLeftRunning says whether a backup cannot begin for an earlier one of which
// libvirt knows nothing, in QEMU's words.
func isLeftRunning(err error) bool {
	return err != nil && strings.Contains(err.Error(), "NBD server already running")
}

// endLeft ends what is left in QEMU of a backup of which libvirt knows nothing.
func (m monitor) endLeft(ctx context.Context) error {
	info, err := m.dom.GetJobInfo()
	if err != nil || info.Type != libvirt.DOMAIN_JOB_NONE { // libvirt knows of it, and is just ending it
		return err
	}
	var exports []struct {
		ID string `json:"id"`
	}
	if err := qmp.Ask(m, "query-block-exports", nil, &exports); err != nil || len(exports) == 0 {
		return err
	}
	if err := qmp.Ask(m, "nbd-server-stop", nil, nil); err != nil {
		return err
	}
	for len(exports) > 0 { // they go when their clients have gone
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
		if err := qmp.Ask(m, "query-block-exports", nil, &exports); err != nil {
			return err
		}
	}
	nodes, err := qmp.Nodes(m)
	if err != nil {
		return err
	}
	// A format before the file that it is in.
	slices.SortStableFunc(nodes, func(a, b qmp.Node) int { return strings.Compare(b.Driver, a.Driver) })
	var errs []error
	for _, n := range nodes {
		if strings.HasSuffix(qmp.ImageFile(n.File), ".scratch") {
			errs = append(errs, qmp.Ask(m, "blockdev-del", map[string]string{"node-name": n.Name}, nil))
		}
	}
	return errors.Join(errs...)
}
