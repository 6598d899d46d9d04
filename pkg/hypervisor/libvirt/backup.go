package libvirt

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"libvirt.org/go/libvirt"
	"libvirt.org/go/libvirtxml"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/hypervisor"
	"github.com/kamivm/kami/pkg/hypervisor/nbd"
	"github.com/kamivm/kami/pkg/hypervisor/qmp"
	"github.com/kamivm/kami/pkg/machine"
)

// Backup opens a view by a libvirt backup job in pull mode: from the instant on
// that it begins, QEMU copies away what the guest overwrites, and exports the
// disks as they were over NBD.
func (d *Driver) Backup(ctx context.Context, id ami.InstanceID, b hypervisor.Backup) (hypervisor.View, error) {
	d.tidying.Wait() // of a view that was left open
	v := &view{d: d, id: id, disks: map[string]nbd.Disk{}}
	var plan []backupDisk
	// The guest is quiesced while the job is prepared.
	quiet := sync.OnceValue(func() error { return b.Quiesced(ctx) })
	go func() { _ = quiet() }() // whose error is asked for below
	err := d.with(ctx, id, func(dom *libvirt.Domain) error {
		var err error
		if plan, err = prepareBackup(ctx, dom, b); err == nil {
			err = quiet()
		}
		if err == nil {
			err = d.beginBackup(dom, b, plan)
		}
		if isLeftRunning(err) {
			if err = (monitor{dom}).endLeft(ctx); err == nil {
				err = d.beginBackup(dom, b, plan)
			}
		}
		if err != nil { // nobody will ask for the bitmap that was begun
			err = errors.Join(err, dropNext(dom, b.Next, plan))
		}
		return err
	})
	if err != nil {
		if qerr := quiet(); qerr != nil { // which comes to its end in any case
			err = qerr
		}
		// A call that was given up may have begun the job all the same.
		if ctx.Err() != nil {
			err = errors.Join(err, v.Close())
		}
		return nil, gone(err)
	}
	v.tidy(ctx, b.Next, plan)
	for _, disk := range plan {
		if !disk.inJob {
			continue
		}
		dv, err := dialDisk(ctx, socketPath(b), disk)
		if err != nil {
			return nil, errors.Join(err, v.Close())
		}
		v.disks[disk.Path] = dv
	}
	return v, nil
}

// backupDisk is a disk of a backup with what the guest knows of it.
type backupDisk struct {
	hypervisor.BackupDisk
	target string // vda
	inJob  bool
	node   qmp.Disk
}

func (b backupDisk) incremental() bool { return b.Bitmap != "" }

// closeLimit bounds how long the end of a backup is waited for.
const closeLimit = 30 * time.Second

func scratchPath(b hypervisor.Backup, p backupDisk) string {
	return filepath.Join(b.CopiesDir, p.target+".scratch")
}

func socketPath(b hypervisor.Backup) string { return filepath.Join(b.SocketDir, "s") }

// endJob ends the backup that is under way, if any.
func endJob(dom *libvirt.Domain) error {
	if info, err := dom.GetJobInfo(); err == nil && info.Type != libvirt.DOMAIN_JOB_NONE {
		if err := dom.AbortJob(); err != nil {
			return fmt.Errorf("ending a backup: %w", err)
		}
	}
	return nil
}

// wake resumes a guest that an I/O error has paused, when the backup that used
// up the room is over, and says so. There is nobody else who would.
func wake(ctx context.Context, dom *libvirt.Domain) error {
	state, reason, err := dom.GetState()
	if err != nil || state != libvirt.DOMAIN_PAUSED || libvirt.DomainPausedReason(reason) != libvirt.DOMAIN_PAUSED_IOERROR {
		return err
	}
	for ctx.Err() == nil { // aborting only begins the job's end
		info, err := dom.GetJobInfo()
		if err != nil || info.Type == libvirt.DOMAIN_JOB_NONE {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	if err := dom.Resume(); err != nil {
		return fmt.Errorf("the guest was paused by an I/O error and cannot be resumed: %w", err)
	}
	return hypervisor.ErrOutOfRoom
}

// prepareBackup does all that a backup needs and that does not need the guest to
// be quiet: what a killed process left of an earlier backup is ended, libvirt
// knows the bitmaps, and what the guest overwrites has somewhere to go.
func prepareBackup(ctx context.Context, dom *libvirt.Domain, b hypervisor.Backup) ([]backupDisk, error) {
	if err := endJob(dom); err != nil {
		return nil, err
	}
	err := wake(ctx, dom)
	if err != nil && !errors.Is(err, hypervisor.ErrOutOfRoom) { // that was an earlier command's
		return nil, err
	}
	plan, err := planBackup(dom, b)
	if err != nil {
		return nil, err
	}
	for _, p := range plan {
		if !p.inJob {
			continue
		}
		if err := p.CreateCopies(scratchPath(b, p), p.node.Size); err != nil {
			return plan, err
		}
	}
	if err := tellBitmaps(dom, plan); err != nil || b.Next == "" {
		return plan, err
	}
	// Begun before the instant, the next bitmap knows of a little more than it
	// has to. With the job, libvirt would read its schema once more for it, while
	// the guest waits.
	for _, p := range plan {
		if !p.inJob {
			continue
		}
		if err := qmp.AddBitmap(monitor{dom}, p.node, b.Next); err != nil {
			return plan, err
		}
	}
	return plan, nil
}

// dropNext removes the next bitmap from the disks that have got it.
func dropNext(dom *libvirt.Domain, next string, plan []backupDisk) error {
	m := monitor{dom}
	nodes, err := qmp.Disks(m)
	if err != nil || next == "" {
		return err
	}
	var errs []error
	for _, p := range plan {
		n := nodes[p.Path]
		n.Bitmaps = slices.DeleteFunc(n.Bitmaps, func(b qmp.Bitmap) bool { return b.Name != next })
		if p.inJob {
			errs = append(errs, qmp.DropBitmaps(m, n, ""))
		}
	}
	return errors.Join(errs...)
}

// beginBackup starts the job.
func (d *Driver) beginBackup(dom *libvirt.Domain, b hypervisor.Backup, plan []backupDisk) error {
	text, err := backupXML(b, plan)
	if err != nil {
		return err
	}
	var keys []machine.Key
	for _, p := range plan {
		if p.inJob && p.Key != nil {
			keys = append(keys, *p.Key)
		}
	}
	return d.withKeys(keys, func() error {
		return dom.BackupBegin(text, "", libvirt.DOMAIN_BACKUP_BEGIN_REUSE_EXTERNAL)
	})
}

// planBackup finds the disks in the guest, and drops from the plan the bitmaps
// that cannot be relied on.
func planBackup(dom *libvirt.Domain, b hypervisor.Backup) ([]backupDisk, error) {
	m := monitor{dom}
	nodes, err := qmp.Disks(m)
	if err != nil {
		return nil, err
	}
	have, err := disks(dom)
	if err != nil {
		return nil, err
	}
	var plan []backupDisk
	for _, h := range have {
		disk := backupDisk{target: h.Target.Dev}
		for _, want := range b.Disks {
			if want.Path == diskFile(h) {
				disk.BackupDisk, disk.inJob = want, true
			}
		}
		if disk.inJob {
			disk.node = nodes[disk.Path]
			if !disk.node.Usable(disk.Bitmap) {
				disk.Bitmap = ""
			}
		}
		plan = append(plan, disk)
	}
	for _, want := range b.Disks {
		if !slices.ContainsFunc(plan, func(p backupDisk) bool { return p.Path == want.Path }) {
			return nil, fmt.Errorf("the guest has no disk %s", want.Path)
		}
	}
	return plan, nil
}

func backupXML(b hypervisor.Backup, plan []backupDisk) (string, error) {
	var out []libvirtxml.DomainBackupPullDisk
	for _, p := range plan {
		disk := libvirtxml.DomainBackupPullDisk{Name: p.target, Backup: "no"}
		if p.inJob {
			disk.Backup, disk.ExportName, disk.BackupMode = "yes", p.target, "full"
			if p.incremental() {
				disk.BackupMode, disk.Incremental = "incremental", p.Bitmap
			}
			disk.Scratch = &libvirtxml.DomainDiskSource{
				File: &libvirtxml.DomainDiskSourceFile{File: scratchPath(b, p)},
			}
			if p.Key != nil {
				disk.Scratch.Encryption = encryption(*p.Key)
			}
		}
		out = append(out, disk)
	}
	return (&libvirtxml.DomainBackup{Pull: &libvirtxml.DomainBackupPull{
		Server: &libvirtxml.DomainBackupPullServer{UNIX: &libvirtxml.DomainBackupPullServerUNIX{Socket: socketPath(b)}},
		Disks:  &libvirtxml.DomainBackupPullDisks{Disks: out},
	}}).Marshal()
}

// view is a backup job under way.
type view struct {
	d      *Driver
	id     ami.InstanceID
	disks  map[string]nbd.Disk
	tidied chan error // nil when there is nothing to tidy
	once   sync.Once
	err    error
}

// tidy does, while the disks are read, what need not be waited for: libvirt is
// told of the next bitmap, and what nothing needs any more goes.
func (v *view) tidy(ctx context.Context, next string, plan []backupDisk) {
	v.tidied = make(chan error, 1)
	v.d.tidying.Go(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeLimit)
		defer cancel()
		v.tidied <- v.d.with(ctx, v.id, func(dom *libvirt.Domain) error {
			errs := []error{forgetCheckpoints(dom, bitmapNames(plan))}
			if next != "" {
				errs = append(errs, tellBitmap(dom, next, plan, func(p backupDisk) bool { return p.inJob }))
			}
			for _, p := range plan {
				if p.inJob {
					errs = append(errs, qmp.DropBitmaps(monitor{dom}, p.node, p.Bitmap))
				}
			}
			return errors.Join(errs...)
		})
	})
}

// Disk returns the view of the disk with that path.
func (v *view) Disk(path string) (hypervisor.DiskView, error) {
	dv, ok := v.disks[path]
	if !ok {
		return nil, fmt.Errorf("%s is not in the backup", path)
	}
	return dv, nil
}

// Close ends the job.
func (v *view) Close() error {
	v.once.Do(func() {
		var errs []error
		for _, dv := range v.disks {
			errs = append(errs, dv.Close())
		}
		if v.tidied != nil {
			errs = append(errs, <-v.tidied)
		}
		ctx, cancel := context.WithTimeout(context.Background(), closeLimit)
		defer cancel()
		err := v.d.with(ctx, v.id, func(dom *libvirt.Domain) error { return errors.Join(endJob(dom), wake(ctx, dom)) })
		if errors.Is(err, hypervisor.ErrNotFound) {
			err = nil // the guest is gone, and the job with it
		}
		v.err = errors.Join(append(errs, err)...)
	})
	return v.err
}

func dialDisk(ctx context.Context, socket string, disk backupDisk) (nbd.Disk, error) {
	bitmap := ""
	if disk.incremental() {
		bitmap = "backup-" + disk.target // libvirt's name for it
	}
	return nbd.DialDisk(ctx, socket, disk.target, bitmap)
}

var _ hypervisor.Snapshotter = (*Driver)(nil)
