package libvirt

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/digitalocean/go-qemu/qmp"
	"libvirt.org/go/libvirt"
)

// A libvirt that was restarted while it ended a backup has forgotten the job, and
// QEMU has not: its server still runs, and keeps every later backup from starting
// one; the copies of what the guest overwrote still take room.

// blockNode is any of the nodes that QEMU's disks are made of.
type blockNode struct {
	Name   string `json:"node-name"`
	Driver string `json:"drv"`
	File   string `json:"file"`
}

// ask sends one command and reads what QEMU returns into answer, nil for nothing.
func (m monitor) ask(command string, args, answer any) error {
	text, err := json.Marshal(qmp.Command{Execute: command, Args: args})
	if err != nil {
		return err
	}
	if text, err = m.Run(text); err != nil {
		return fmt.Errorf("%s: %w", command, err)
	}
	if answer == nil {
		return nil
	}
	if err := json.Unmarshal(text, &struct {
		Return any `json:"return"`
	}{answer}); err != nil {
		return fmt.Errorf("reading QEMU's answer: %w", err)
	}
	return nil
}

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
	if err := m.ask("query-block-exports", nil, &exports); err != nil || len(exports) == 0 {
		return err
	}
	if err := m.ask("nbd-server-stop", nil, nil); err != nil {
		return err
	}
	for len(exports) > 0 { // they go when their clients have gone
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
		if err := m.ask("query-block-exports", nil, &exports); err != nil {
			return err
		}
	}
	var nodes []blockNode
	if err := m.ask("query-named-block-nodes", map[string]bool{"flat": true}, &nodes); err != nil {
		return err
	}
	// A format before the file that it is in.
	slices.SortStableFunc(nodes, func(a, b blockNode) int { return strings.Compare(b.Driver, a.Driver) })
	var errs []error
	for _, n := range nodes {
		if strings.HasSuffix(imageFile(n.File), ".scratch") {
			errs = append(errs, m.ask("blockdev-del", map[string]string{"node-name": n.Name}, nil))
		}
	}
	return errors.Join(errs...)
}
