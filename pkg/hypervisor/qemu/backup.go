package qemu

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/digitalocean/go-qemu/qmp/raw"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/hypervisor"
	"github.com/kamivm/kami/pkg/hypervisor/nbd"
	"github.com/kamivm/kami/pkg/hypervisor/qmp"
	"github.com/kamivm/kami/pkg/machine"
	"github.com/kamivm/kami/pkg/qcow2"
)

// A view is an image on top of the disk, empty at first: what it does not have is
// read from the disk. A job of QEMU's copies into it what the guest is about to
// overwrite. So it stays as the disk was when the job began, and it is exported
// over NBD, with a copy of the bitmap that knows what had changed by then.

// The names in QEMU of what belongs to a view, by which a later backup knows
// what an earlier one has left.
const (
	viewPrefix = "kami-view"    // jobs and exports: with the number of the disk
	copyPrefix = "kami-copy"    // nodes: with the number of the disk
	viewBitmap = "kami-changed" // of what has changed up to the instant
)

// closeLimit bounds how long the end of a backup is waited for.
const closeLimit = 30 * time.Second

// backupDisk is a disk of a backup with what the guest knows of it.
type backupDisk struct {
	hypervisor.BackupDisk
	qmp.Disk
	view, copies string // names in QEMU
	file         string // of the copies
}

func (p backupDisk) incremental() bool { return p.Bitmap != "" }

// Backup opens a view of disks.
func (d *Driver) Backup(ctx context.Context, id ami.InstanceID, b hypervisor.Backup) (hypervisor.View, error) {
	v := &view{d: d, id: id, disks: map[string]nbd.Disk{}}
	// The guest is quiesced while the rest is prepared.
	quiet := sync.OnceValue(func() error { return b.Quiesced(ctx) })
	begun := false
	err := d.with(ctx, id, func(m *qmp.Monitor) error {
		go func() { _ = quiet() }() // whose error is asked for below
		begun = true
		plan, err := prepareBackup(ctx, m, b)
		if err == nil {
			err = quiet()
		}
		if err == nil {
			err = beginBackup(ctx, m, b, plan)
		}
		if err == nil {
			err = v.open(ctx, m, b, plan)
		}
		return err
	})
	if err == nil {
		return v, nil
	}
	if begun {
		if qerr := quiet(); qerr != nil { // which comes to its end in any case
			err = qerr
		}
		err = errors.Join(err, v.close(b.Next))
	}
	return nil, err
}

// prepareBackup does all that does not need the guest to be quiet.
func prepareBackup(ctx context.Context, m *qmp.Monitor, b hypervisor.Backup) ([]backupDisk, error) {
	err := endViews(ctx, m)
	if err == nil {
		err = wake(ctx, m)
	}
	if err != nil && !errors.Is(err, hypervisor.ErrOutOfRoom) { // that was an earlier command's
		return nil, err
	}
	have, err := qmp.Disks(m.Within(ctx))
	if err != nil {
		return nil, err
	}
	var plan []backupDisk
	for i, want := range b.Disks {
		disk, ok := have[want.Path]
		if !ok {
			return nil, fmt.Errorf("the guest has no disk %s", want.Path)
		}
		if !disk.Usable(want.Bitmap) {
			want.Bitmap = ""
		}
		n := strconv.Itoa(i)
		plan = append(plan, backupDisk{want, disk, viewPrefix + n, copyPrefix + n, filepath.Join(b.CopiesDir, n+".scratch")})
	}
	for _, p := range plan {
		if err := p.addCopies(ctx, m); err != nil {
			return nil, err
		}
	}
	address := map[string]any{"type": "unix", "data": map[string]string{"path": socketPath(b)}}
	return plan, qmp.Ask(m.Within(ctx), "nbd-server-start", map[string]any{"addr": address}, nil)
}

func socketPath(b hypervisor.Backup) string { return filepath.Join(b.SocketDir, "s") }

// addCopies makes the image of the copies and puts it on top of the disk.
func (p backupDisk) addCopies(ctx context.Context, m *qmp.Monitor) error {
	if err := p.CreateCopies(p.file, p.Size); err != nil {
		return err
	}
	n := node{Driver: "qcow2", Name: p.copies, File: &node{Driver: "file", Filename: p.file}, Backing: p.Node}
	var keys []machine.Key
	if p.Key != nil {
		keys = append(keys, *p.Key)
		n.Encrypt = &encrypt{"luks", secretID(*p.Key)}
	}
	return withKeys(ctx, m, keys, func() error { return qmp.Ask(m.Within(ctx), "blockdev-add", n, nil) })
}

// action is one of the things that QEMU does at one instant, or none of them.
type action struct {
	Type string `json:"type"`
	Data any    `json:"data"`
}

// bitmapArgs are the arguments of a bitmap to be added.
type bitmapArgs struct {
	Node        string `json:"node"`
	Name        string `json:"name"`
	Granularity int    `json:"granularity"`
	Persistent  bool   `json:"persistent"`
	Disabled    bool   `json:"disabled"`
}

// beginBackup is the instant. The jobs come first: from the first one on the guest
// waits, and what the bitmaps know then is exact.
func beginBackup(ctx context.Context, m *qmp.Monitor, b hypervisor.Backup, plan []backupDisk) error {
	var actions []action
	for _, p := range plan {
		actions = append(actions, action{"blockdev-backup", map[string]string{
			"job-id": p.view, "device": p.Node, "target": p.copies, "sync": "none",
		}})
	}
	for _, p := range plan {
		if p.incremental() {
			actions = append(
				actions,
				action{"block-dirty-bitmap-add", bitmapArgs{p.Node, viewBitmap, qcow2.ClusterSize, false, true}},
				action{"block-dirty-bitmap-merge", map[string]any{"node": p.Node, "target": viewBitmap, "bitmaps": []string{p.Bitmap}}},
			)
		}
		if b.Next != "" {
			actions = append(actions, action{"block-dirty-bitmap-add", bitmapArgs{p.Node, b.Next, qcow2.ClusterSize, true, false}})
		}
	}
	return qmp.Ask(m.Within(ctx), "transaction", map[string]any{"actions": actions}, nil)
}

// view is a backup under way.
type view struct {
	d     *Driver
	id    ami.InstanceID
	disks map[string]nbd.Disk
	left  error // of what could not be removed
	once  sync.Once
	err   error
}

// open exports the disks and connects to them, and removes the bitmaps that
// nothing needs any more.
func (v *view) open(ctx context.Context, m *qmp.Monitor, b hypervisor.Backup, plan []backupDisk) error {
	for _, p := range plan {
		export := map[string]any{"type": "nbd", "id": p.view, "name": p.view, "node-name": p.copies}
		bitmap := ""
		if p.incremental() {
			bitmap = viewBitmap
			export["bitmaps"] = []string{bitmap} // which is found in the disk underneath
		}
		if err := qmp.Ask(m.Within(ctx), "block-export-add", export, nil); err != nil {
			return err
		}
		disk, err := nbd.DialDisk(ctx, socketPath(b), p.view, bitmap)
		if err != nil {
			return err
		}
		v.disks[p.Path] = disk
		// One that stays is no reason to have no backup; the next tries again.
		v.left = errors.Join(v.left, qmp.DropBitmaps(m.Within(ctx), p.Disk, p.Bitmap))
	}
	return nil
}

// Disk returns the view of the disk with that path.
func (v *view) Disk(path string) (hypervisor.DiskView, error) {
	disk, ok := v.disks[path]
	if !ok {
		return nil, fmt.Errorf("%s is not in the backup", path)
	}
	return disk, nil
}

// Close ends the backup.
func (v *view) Close() error { return v.close("") }

// close ends the backup and, of one that has failed, the bitmap that it began:
// nobody will ask for that.
func (v *view) close(next string) error {
	v.once.Do(func() {
		errs := []error{v.left}
		for _, disk := range v.disks {
			errs = append(errs, disk.Close())
		}
		ctx, cancel := context.WithTimeout(context.Background(), closeLimit)
		defer cancel()
		err := v.d.with(ctx, v.id, func(m *qmp.Monitor) error {
			err := endViews(ctx, m)
			if next != "" {
				err = errors.Join(err, dropBitmap(ctx, m, next))
			}
			return errors.Join(err, wake(ctx, m))
		})
		if errors.Is(err, hypervisor.ErrNotRunning) {
			err = nil // the guest is gone, and the backup with it
		}
		v.err = errors.Join(append(errs, err)...)
	})
	return v.err
}

// endViews ends what there is of views in QEMU, by their names: one that was just
// read, or what a killed process has left.
func endViews(ctx context.Context, m *qmp.Monitor) error {
	within := m.Within(ctx)
	var exports []struct {
		ID string `json:"id"`
	}
	if err := qmp.Ask(within, "query-block-exports", nil, &exports); err != nil {
		return err
	}
	// Also one without exports may run; that none does is no failure.
	var refused *qmp.Error
	if err := qmp.Ask(within, "nbd-server-stop", nil, nil); err != nil && (len(exports) > 0 || !errors.As(err, &refused)) {
		return err
	}
	if err := endJobs(ctx, m); err != nil {
		return err
	}
	if err := dropBitmap(ctx, m, viewBitmap); err != nil {
		return err
	}
	nodes, err := qmp.Nodes(within)
	if err != nil {
		return err
	}
	var errs []error
	for _, n := range nodes {
		if len(n.Name) > len(copyPrefix) && n.Name[:len(copyPrefix)] == copyPrefix {
			errs = append(errs, raw.NewMonitor(within).BlockdevDel(n.Name))
		}
	}
	return errors.Join(errs...)
}

// endJobs ends the jobs that copy, and waits until they have.
func endJobs(ctx context.Context, m *qmp.Monitor) error {
	asked := map[string]bool{}
	for {
		var jobs []struct {
			ID string `json:"id"`
		}
		if err := qmp.Ask(m.Within(ctx), "query-jobs", nil, &jobs); err != nil {
			return err
		}
		left := false
		for _, j := range jobs {
			if len(j.ID) <= len(viewPrefix) || j.ID[:len(viewPrefix)] != viewPrefix {
				continue
			}
			left = true
			if !asked[j.ID] {
				asked[j.ID] = true
				force := true
				var refused *qmp.Error // it has just ended
				if err := raw.NewMonitor(m.Within(ctx)).BlockJobCancel(j.ID, &force); err != nil && !errors.As(err, &refused) {
					return err
				}
			}
		}
		if !left {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("ending a backup: %w", ctx.Err())
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// dropBitmap removes the bitmap of that name from the disks that have it.
func dropBitmap(ctx context.Context, m *qmp.Monitor, name string) error {
	disks, err := qmp.Disks(m.Within(ctx))
	if err != nil {
		return err
	}
	var errs []error
	for _, disk := range disks {
		for _, b := range disk.Bitmaps {
			if b.Name == name {
				errs = append(errs, raw.NewMonitor(m.Within(ctx)).BlockDirtyBitmapRemove(disk.Node, name))
			}
		}
	}
	return errors.Join(errs...)
}

// wake resumes a guest that an I/O error has paused, when the backup that used up
// the room is over, and says so. There is nobody else who would.
func wake(ctx context.Context, m *qmp.Monitor) error {
	qemu := raw.NewMonitor(m.Within(ctx))
	info, err := qemu.QueryStatus()
	if err != nil || info.Status != raw.RunStateIOError {
		return err
	}
	if err := qemu.Cont(); err != nil {
		return fmt.Errorf("the guest was paused by an I/O error and cannot be resumed: %w", err)
	}
	return hypervisor.ErrOutOfRoom
}
