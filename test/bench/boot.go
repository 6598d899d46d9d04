package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"time"
)

// loginPrompt is what a debian-12 says on its console when it is up.
const loginPrompt = " login: "

// boot compares the same guest by hand on the chain of compressed layers that the
// tenth image of the line has, and on the same disk as one raw file.
func (b *bench) boot(ctx context.Context) ([]row, []chart, error) {
	if b.line == nil {
		if err := b.makeLine(ctx, func(string) error { return nil }); err != nil {
			return nil, nil, err
		}
	}
	b.forgetPeak()
	last := b.line[len(b.line)-1]
	snap, err := b.rootSnapshot(ctx, b.home(), last)
	if err != nil {
		return nil, nil, err
	}
	top := layerPath(b.home(), snap)
	chain, err := chainOf(ctx, top)
	if err != nil {
		return nil, nil, err
	}
	raw := filepath.Join(b.dir, "last.raw")
	defer os.Remove(raw)
	if _, err := b.kami(ctx, "snapshot", "export", string(snap.SnapshotID), raw); err != nil {
		return nil, nil, err
	}
	id, err := b.kami(ctx, "launch", last, "--instance-type", "t3.small", "--wait", "running", "-o", "id")
	if err != nil {
		return nil, nil, err
	}
	layers, err := b.takeDomain(ctx, id)
	if err != nil {
		return nil, nil, err
	}
	if err := b.endGuests(ctx, b.home()); err != nil {
		return nil, nil, err
	}
	// libvirt finds the chain of a disk that has none written out.
	rootDisk := regexp.MustCompile(`(?s)(<disk type="file" device="disk">)(.*?)<backingStore.*</backingStore>(.*?</disk>)`)
	whole := layers
	layers.xml = rootDisk.ReplaceAllString(layers.xml, "$1$2$3")
	whole.head = filepath.Join(whole.dir, "disk.raw")
	whole.xml = rootDisk.ReplaceAllString(whole.xml, `$1<driver name="qemu" type="raw" discard="unmap"/><source file="`+whole.head+`"/>$3`)
	sides := []struct {
		d    domain
		disk func() error
		took []time.Duration
	}{
		{d: layers, disk: func() error { return layers.overlay(ctx, top) }},
		{d: whole, disk: func() error {
			_, err := command(ctx, "cp", "--sparse=always", raw, whole.head)
			return err
		}},
	}
	rounds := min(b.rounds, 3)
	for i := range rounds {
		for s := range sides {
			d := sides[s].d
			if err := d.clear(); err != nil {
				return nil, nil, err
			}
			if err := sides[s].disk(); err != nil {
				return nil, nil, err
			}
			_, took, err := d.boot(ctx, time.Now(), loginPrompt)
			if err != nil {
				return nil, nil, err
			}
			b.say("boot %d of %d from %s: %.1f s", i+1, rounds, filepath.Base(d.head), took.Seconds())
			sides[s].took = append(sides[s].took, took)
		}
	}
	what := fmt.Sprintf("a debian-12 by hand from `virsh create` to the login prompt, on a fresh overlay over the tenth image's chain of %d compressed layers; on the same disk as one raw file (%d rounds)", len(chain), rounds)
	return []row{timed("boot from a chain", what, sides[0].took, sides[1].took, ofHand, 1.1)}, nil, nil
}
