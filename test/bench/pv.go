package main

import (
	"context"
	"path/filepath"
	"time"

	"github.com/kamivm/kami/pkg/ami"
)

// pv compares two images over one snapshot: paravirtual, with the kernel taken out
// of the root on the host, and hvm, with BIOS and boot loader. Both are launched
// by kami, turn by turn, from the start of the command to the guest's first line
// of userspace.
func (b *bench) pv(ctx context.Context) ([]row, []chart, error) {
	image, err := b.image(ctx, "tiny")
	if err != nil {
		return nil, nil, err
	}
	snap, err := b.rootSnapshot(ctx, b.home(), image)
	if err != nil {
		return nil, nil, err
	}
	const name = "tiny-paravirtual"
	if _, err := b.kami(ctx, "image", "register", "--name", name, "--virtualization-type", ami.VirtualizationParavirtual,
		"--block-device-mapping", "/dev/sda1="+string(snap.SnapshotID)); err != nil {
		return nil, nil, err
	}
	b.forgetPeak()
	sides := []struct {
		args []string
		took []time.Duration
	}{{args: []string{name}}, {args: []string{image, "--boot-mode", string(ami.BootLegacyBIOS)}}}
	for i := range b.rounds {
		for s := range sides {
			took, err := b.launched(ctx, sides[s].args...)
			if err != nil {
				return nil, nil, err
			}
			b.say("launch %d of %d of %s: %.1f s", i+1, b.rounds, sides[s].args[0], took.Seconds())
			sides[s].took = append(sides[s].took, took)
		}
	}
	what := "the root of tiny launched as a paravirtual guest by pv-grub, to the first line of userspace; the same root as an hvm guest by BIOS and GRUB"
	return []row{timed("paravirtual", what, sides[0].took, sides[1].took, ofHand, 0.6)}, nil, nil
}

// launched launches an image, and says how long it took until its userspace began.
func (b *bench) launched(ctx context.Context, args ...string) (time.Duration, error) {
	start := time.Now()
	id, err := b.kami(ctx, append([]string{"launch", "--wait", "running", "-o", "id"}, args...)...)
	if err != nil {
		return 0, err
	}
	if err := waitLine(ctx, filepath.Join(b.instanceDir(id), "console.log"), userspace); err != nil {
		return 0, err
	}
	took := time.Since(start)
	_, err = b.kami(ctx, "instance", "terminate", id)
	return took, err
}
