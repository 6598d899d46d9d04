package libvirt

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"libvirt.org/go/libvirt"
	"libvirt.org/go/libvirtxml"
)

// libvirt knows a dirty bitmap only as part of a checkpoint. What kami relies on
// is the bitmap in the disk's file: where libvirt's record of the checkpoint is
// not there, it is made anew from that. So a guest can be stopped and started,
// and libvirt with it, and nothing is lost.

// tellBitmaps sees to it that libvirt has a checkpoint for each bitmap of the
// plan. Those of the last backup are there as a rule, and are not told again,
// for libvirt reads its whole schema each time.
func tellBitmaps(dom *libvirt.Domain, plan []backupDisk) error {
	names := bitmapNames(plan)
	if len(names) == 0 {
		return nil
	}
	known, err := knownBitmaps(dom)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(plan, func(p backupDisk) bool { return p.incremental() && !slices.Contains(known[p.Bitmap], p.target) }) {
		return nil
	}
	if err := forgetCheckpoints(dom, slices.Collect(maps.Keys(known))); err != nil {
		return err
	}
	for _, name := range names {
		if err := tellBitmap(dom, name, plan, func(p backupDisk) bool { return p.inJob && p.Bitmap == name }); err != nil {
			return err
		}
	}
	return nil
}

// tellBitmap tells libvirt of the bitmap of that name in the disks that have it.
func tellBitmap(dom *libvirt.Domain, name string, plan []backupDisk, has func(backupDisk) bool) error {
	text, err := checkpointXML(name, plan, has)
	if err != nil {
		return err
	}
	c, err := dom.CreateCheckpointXML(text, libvirt.DOMAIN_CHECKPOINT_CREATE_REDEFINE)
	if err != nil {
		return fmt.Errorf("telling of the bitmap %s: %w", name, err)
	}
	return c.Free()
}

// knownBitmaps are the checkpoints that libvirt has, each with the disks (vda)
// that it says have a bitmap of that name.
func knownBitmaps(dom *libvirt.Domain) (map[string][]string, error) {
	all, err := dom.ListAllCheckpoints(0)
	if err != nil {
		return nil, err
	}
	known := map[string][]string{}
	var errs []error
	for _, c := range all {
		var x libvirtxml.DomainCheckpoint
		text, err := c.GetXMLDesc(libvirt.DOMAIN_CHECKPOINT_XML_NO_DOMAIN)
		if err == nil {
			err = x.Unmarshal(text)
		}
		errs = append(errs, err, c.Free())
		known[x.Name] = nil
		if x.Disks == nil {
			continue
		}
		for _, disk := range x.Disks.Disks {
			if disk.Checkpoint == "bitmap" && (disk.Bitmap == "" || disk.Bitmap == x.Name) {
				known[x.Name] = append(known[x.Name], disk.Name)
			}
		}
	}
	return known, errors.Join(errs...)
}

// forgetCheckpoints drops libvirt's records of the checkpoints of those names;
// bitmaps stay.
func forgetCheckpoints(dom *libvirt.Domain, names []string) error {
	all, err := dom.ListAllCheckpoints(libvirt.DOMAIN_CHECKPOINT_LIST_TOPOLOGICAL)
	if err != nil {
		return err
	}
	slices.Reverse(all) // children first
	var errs []error
	for _, c := range all {
		name, err := c.GetName()
		if err == nil && slices.Contains(names, name) {
			err = c.Delete(libvirt.DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY)
		}
		errs = append(errs, err, c.Free())
	}
	return errors.Join(errs...)
}

// bitmapNames are the bitmaps of a plan, each once.
func bitmapNames(plan []backupDisk) []string {
	var names []string
	for _, p := range plan {
		if p.incremental() && !slices.Contains(names, p.Bitmap) {
			names = append(names, p.Bitmap)
		}
	}
	return names
}

// checkpointXML describes a checkpoint by whose name the bitmaps go.
func checkpointXML(name string, plan []backupDisk, has func(backupDisk) bool) (string, error) {
	// A checkpoint that is told of anew needs a time, for which kami has no use.
	c := libvirtxml.DomainCheckpoint{Name: name, CreationTime: "1", Disks: &libvirtxml.DomainCheckpointDisks{}}
	for _, p := range plan {
		disk := libvirtxml.DomainCheckpointDisk{Name: p.target, Checkpoint: "no"}
		if has(p) {
			disk.Checkpoint = "bitmap"
		}
		c.Disks.Disks = append(c.Disks.Disks, disk)
	}
	return c.Marshal()
}
