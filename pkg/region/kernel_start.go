package region

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
	"github.com/kamivm/kami/pkg/digest"
	"github.com/kamivm/kami/pkg/disk/pvgrub"
	"github.com/kamivm/kami/pkg/machine"
)

// bootFiles puts what a paravirtual guest is about to start with into its folder:
// copies, since a hypervisor makes a guest's files that guest's own. An hvm guest
// has none.
func (r *Region) bootFiles(ctx context.Context, inst ami.Instance) (machine.Kernel, error) {
	if inst.VirtualizationType != ami.VirtualizationParavirtual {
		return machine.Kernel{}, nil
	}
	if inst.KernelID == ami.PVGrub {
		return r.bootFromRoot(ctx, inst)
	}
	k := machine.Kernel{Cmdline: inst.KernelCmdline}
	if k.Cmdline == "" {
		k.Cmdline = DefaultCmdline
	}
	var err error
	if k.Path, err = r.bootObject(ctx, inst, "kernel", ami.ImageID(inst.KernelID)); err != nil {
		return k, err
	}
	k.Initrd, err = r.bootObject(ctx, inst, "initrd", ami.ImageID(inst.RamdiskID))
	return k, err
}

// bootObject copies a registered kernel or ramdisk to where a guest has it; "" is
// none.
func (r *Region) bootObject(ctx context.Context, inst ami.Instance, name string, id ami.ImageID) (string, error) {
	if id == "" {
		return "", r.noBootFile(inst, name)
	}
	var d digest.Digest
	err := r.catalog.View(ctx, func(tx *catalog.Tx) error {
		image, err := tx.Image(id)
		d = image.Data
		return err
	})
	if errors.Is(err, catalog.ErrNotFound) {
		return "", notFoundImage(id)
	}
	if err != nil {
		return "", storeError(err, "The %s %s cannot be read.", name, id)
	}
	path, err := r.writeBootFile(inst, name, func(w io.Writer) error { return r.copyObject(w, d) })
	return path, storeError(err, "The %s %s of %s cannot be read.", name, id, inst.InstanceID)
}

// bootFromRoot is pv-grub: it takes what the guest's own root says, as that is now.
func (r *Region) bootFromRoot(ctx context.Context, inst ami.Instance) (machine.Kernel, error) {
	root, err := rootOf(inst)
	if err != nil {
		return machine.Kernel{}, err
	}
	v, err := r.volumeRecord(ctx, root.Ebs.VolumeID)
	if err != nil {
		return machine.Kernel{}, err
	}
	head, err := r.layers.OpenHead(v.VolumeID, v.Layer)
	if err != nil {
		return machine.Kernel{}, storeError(err, "The root of %s cannot be read.", inst.InstanceID)
	}
	defer head.Close()
	conf, err := pvgrub.Find(ctx, head, head.Size())
	if err != nil {
		return machine.Kernel{}, r.nothingToBoot(ctx, inst, err)
	}
	for _, passed := range conf.Passed {
		r.progress.Note("%s: %s", inst.InstanceID, passed)
	}
	e, err := r.pickEntry(inst, conf.Entries)
	if err != nil {
		return machine.Kernel{}, r.nothingToBoot(ctx, inst, err)
	}
	k := machine.Kernel{Cmdline: strings.TrimSpace(e.Cmdline + " " + inst.KernelCmdline)}
	if len(k.Cmdline) >= maxCmdline {
		return k, r.nothingToBoot(ctx, inst, errors.New("the command line of its default entry is too long for a kernel"))
	}
	k.Path, err = r.writeBootFile(inst, "kernel", func(w io.Writer) error {
		_, err := e.Kernel.CopyTo(ctx, w)
		return err
	})
	if err != nil {
		return k, storeError(err, "The kernel %s in the root of %s cannot be read.", e.Kernel, inst.InstanceID)
	}
	if len(e.Initrds) == 0 {
		return k, r.noBootFile(inst, "initrd")
	}
	k.Initrd, err = r.writeBootFile(inst, "initrd", func(w io.Writer) error {
		for _, initrd := range e.Initrds {
			n, err := initrd.CopyTo(ctx, w)
			if err == nil { // each begins where the kernel looks for it
				_, err = w.Write(make([]byte, -n&3))
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
	return k, storeError(err, "The initial RAM disk in the root of %s cannot be read.", inst.InstanceID)
}

// pickEntry takes the first entry that a hypervisor can start, which not every
// kernel is that a boot loader can.
func (r *Region) pickEntry(inst ami.Instance, entries []pvgrub.Entry) (pvgrub.Entry, error) {
	var faults []error
	for _, e := range entries {
		k := e.Kernel
		switch {
		case k.Format == pvgrub.FormatELF && !k.PVH:
			faults = append(faults, fmt.Errorf("%s is an ELF file without an entry for PVH", k))
		case k.Format != pvgrub.FormatBzImage && k.Format != pvgrub.FormatELF:
			faults = append(faults, fmt.Errorf("%s is a kernel in the form of %s, which no hypervisor starts as it is", k, k.Format))
		case k.Architecture == ami.ArchX8664 && inst.Architecture == ami.ArchI386, k.Architecture == ami.ArchARM64:
			faults = append(faults, fmt.Errorf("%s is for %s, and the guest is of %s", k, k.Architecture, inst.Architecture))
		default:
			for _, fault := range faults {
				r.progress.Note("%s: %v", inst.InstanceID, fault)
			}
			return e, nil
		}
	}
	return pvgrub.Entry{}, errors.Join(faults...)
}

// nothingToBoot says why pv-grub has nothing to start.
func (r *Region) nothingToBoot(ctx context.Context, inst ami.Instance, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return ami.Errorf(ami.CodeUnsupportedOperation, "pv-grub finds nothing to start in the root of %s: %w", inst.InstanceID, err).
		WithHint("Mend /boot/grub there, with the root attached to another instance or in what the image is made of, or launch with another kernel: --kernel aki-…")
}

func (r *Region) bootFilePath(inst ami.Instance, name string) string {
	return filepath.Join(r.instanceDir(inst.InstanceID), name)
}

// noBootFile removes what an earlier start left.
func (r *Region) noBootFile(inst ami.Instance, name string) error {
	err := os.Remove(r.bootFilePath(inst, name))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return storeError(err, "What %s started with before cannot be removed.", inst.InstanceID)
}

// writeBootFile writes a file into an instance's folder that is there whole or not
// at all. It is written anew at each start, so it need not last.
func (r *Region) writeBootFile(inst ami.Instance, name string, write func(io.Writer) error) (path string, err error) {
	path = r.bootFilePath(inst, name)
	part := path + ".part"
	if err := os.Remove(part); err != nil && !errors.Is(err, os.ErrNotExist) { // of one that was killed here
		return "", err
	}
	f, err := os.OpenFile(part, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return "", err
	}
	err = errors.Join(write(f), f.Close())
	if err == nil {
		err = os.Rename(part, path)
	}
	if err != nil {
		return "", errors.Join(err, os.Remove(part))
	}
	return path, nil
}
