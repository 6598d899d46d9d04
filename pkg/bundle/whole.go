package bundle

import (
	"context"
	"errors"
	"fmt"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/build"
	"github.com/kamivm/kami/pkg/disk"
	"github.com/kamivm/kami/pkg/disk/foreign"
	"github.com/kamivm/kami/pkg/qcow2"
	"github.com/kamivm/kami/pkg/recipe"
)

// image packs a filesystem or disk in any format that is imported.
func (o *packing) image(ctx context.Context) error {
	step := o.Progress.Step("reading "+o.Path, 0)
	disks, err := foreign.Open(ctx, o.Path, foreign.Auto, o.Tmp, step)
	step.Done(err)
	if err != nil {
		return err
	}
	o.out.closers = append(o.out.closers, disks)
	if len(disks.Disks) != 1 {
		return fmt.Errorf("%w: it has %d disks, and a bundle is one", ErrTemplate, len(disks.Disks))
	}
	if disks.Blank {
		return fmt.Errorf("%w: it has nothing but zeros", ErrTemplate)
	}
	return o.whole(ctx, disks.Disks[0].Source)
}

// whole takes a disk or filesystem as it is, or the root out of a disk.
func (o *packing) whole(ctx context.Context, src qcow2.Source) error {
	rep, err := disk.Inspect(ctx, src, src.Size())
	if err != nil {
		return err
	}
	if rep.Truncated(src.Size()) {
		return fmt.Errorf("%w: the disk ends before its partitions do", ErrTemplate)
	}
	o.out.Source, o.out.Partition, o.out.BootMode = src, rep.Table, rep.BootMode()
	if rep.Architecture != "" {
		o.out.Architecture = rep.Architecture
	}
	switch {
	case o.Partition == "" || o.Partition == rep.Table:
		return nil
	case o.Partition != PartitionNone:
		return fmt.Errorf("%w: its partitioning is %q and stays so; only a tree of files gets %q", ErrTemplate, rep.Table, o.Partition)
	}
	var roots []disk.Partition
	for _, p := range rep.Partitions {
		if !p.ESP && !p.BIOSBoot {
			roots = append(roots, p)
		}
	}
	if len(roots) != 1 {
		return fmt.Errorf("%w: which of the %d partitions of the disk is its root cannot be told", ErrTemplate, len(roots))
	}
	o.out.Source, o.out.Partition, o.out.BootMode = section{src, roots[0].Start, roots[0].Size}, PartitionNone, ""
	return nil
}

// recipe builds a recipe's disk.
func (o *packing) recipe(ctx context.Context) error {
	rec, err := recipe.Load(o.Path)
	if err != nil {
		return fmt.Errorf("%w: the recipe has faults:\n%w", ErrTemplate, err)
	}
	if rec.From != "" {
		return fmt.Errorf("%w: the recipe changes a guest of %s; build it, launch it and bundle the instance", ErrTemplate, rec.From)
	}
	res, err := build.Build(ctx, build.Options{
		Recipe: rec, Paravirtual: o.Partition == PartitionNone, Tmp: o.Tmp, Progress: o.Progress,
	})
	if err != nil {
		var step *build.StepError
		if errors.As(err, &step) && step.Output != "" {
			err = fmt.Errorf("%w\n%s", err, lastLines(step.Output))
		}
		return err
	}
	if err := o.open(res.RawDisk, PartitionGPT); err != nil {
		return err
	}
	if err := o.whole(ctx, o.out.Source); err != nil {
		return err
	}
	o.out.Architecture, o.out.BootMode, o.out.User = res.Architecture, res.BootMode, res.DefaultUser
	return nil
}

// section is a part of a disk.
type section struct {
	qcow2.Source
	off, size int64
}

func (s section) Size() int64 { return s.size }

func (s section) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off > s.size || int64(len(p)) > s.size-off {
		return 0, fmt.Errorf("bytes %d and on, behind the end of a partition of %d", off, s.size)
	}
	return s.Source.ReadAt(p, s.off+off)
}

func (s section) Extents(ctx context.Context, off, length int64, fn func(off, length int64, state qcow2.ExtentState) error) error {
	return s.Source.Extents(ctx, s.off+off, length, func(off, length int64, state qcow2.ExtentState) error {
		return fn(off-s.off, length, state)
	})
}

// Virtualization is EC2's word for how a guest of a blob starts: a filesystem with
// a kernel, a whole disk with firmware.
func Virtualization(partition string) string {
	if partition == PartitionNone {
		return ami.VirtualizationParavirtual
	}
	return ami.VirtualizationHVM
}

// PartitionOf says whether a disk is one filesystem, or has a partition table.
func PartitionOf(ctx context.Context, src qcow2.Source) (string, error) {
	rep, err := disk.Inspect(ctx, src, src.Size())
	return rep.Table, err
}
