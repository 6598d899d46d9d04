package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// convert is what a person would run by hand: a compressed qcow2 and its digest.
func (b *bench) convert(ctx context.Context, raw string) (time.Duration, error) {
	out := filepath.Join(b.dir, "hand.qcow2")
	defer os.Remove(out)
	start := time.Now()
	if _, err := command(ctx, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-c", "-o", "compression_type=zstd", "-m", "16", "-W", raw, out); err != nil {
		return 0, err
	}
	if _, err := command(ctx, "openssl", "dgst", "-sha256", out); err != nil {
		return 0, err
	}
	return time.Since(start), nil
}

const byHand = "`qemu-img convert -c` zstd and `openssl dgst` of all of the root"

// fullLayer compares importing a Debian root with qemu-img and openssl. Each
// round imports into a home that has never seen the disk.
func (b *bench) fullLayer(ctx context.Context) ([]row, []chart, error) {
	raw, err := b.rawRoot(ctx)
	if err != nil {
		return nil, nil, err
	}
	b.forgetPeak()
	var ours, bare []time.Duration
	for i := range b.rounds {
		home := filepath.Join(b.dir, fmt.Sprintf("import-%d", i))
		start := time.Now()
		if _, err := b.kamiAt(ctx, home, nil, "import", raw, "--name", "imported"); err != nil {
			return nil, nil, err
		}
		ours = append(ours, time.Since(start))
		if err := os.RemoveAll(home); err != nil {
			return nil, nil, err
		}
		took, err := b.convert(ctx, raw)
		if err != nil {
			return nil, nil, err
		}
		bare = append(bare, took)
	}
	return []row{timed("full layer", "full layer: `kami import` of a raw 2 GiB debian-12, all digests included; "+byHand, ours, bare, ofHand, 1)}, nil, nil
}

// secondLayer changes one in a hundred of the clusters of a 2 GiB debian-12 and
// takes a snapshot: of a volume at rest, changed in pieces of 1 MiB and in single
// clusters all over the disk, and of a volume of a running guest.
func (b *bench) secondLayer(ctx context.Context) ([]row, []chart, error) {
	raw, err := b.rawRoot(ctx)
	if err != nil {
		return nil, nil, err
	}
	id, err := b.image(ctx, "debian-12")
	if err != nil {
		return nil, nil, err
	}
	base, err := b.rootSnapshot(ctx, b.home(), id)
	if err != nil {
		return nil, nil, err
	}
	guest, err := b.launchWriter(ctx, base)
	if err != nil {
		return nil, nil, err
	}
	b.forgetPeak()
	ways := []struct {
		name, what string
		volume     func(round int) (string, error)
		most       float64
		took       []time.Duration
	}{
		{name: "second layer, 1 MiB pieces", most: 0.05, what: "second layer: `kami snapshot create` of a volume at rest, a 2 GiB debian-12 with 1 % of all its clusters changed (20 MiB) in pieces of 1 MiB all over it; " + byHand},
		{name: "second layer, single clusters", what: "its worst case: the same, changed in single clusters all over it, each in another block of 512 KiB that has to be read and digested"},
		{name: "second layer, running guest", what: "the same in pieces of 1 MiB, as second volume of a running tiny"},
	}
	for w, run := range []int{16, 1} {
		ways[w].volume = func(round int) (string, error) { return b.changedVolume(ctx, b.home(), base, raw, run, byte(round)) }
	}
	ways[2].volume = func(int) (string, error) { return guest.volume, guest.write(ctx) }
	var bare []time.Duration
	for i := range b.rounds {
		for w := range ways {
			volume, err := ways[w].volume(i)
			if err != nil {
				return nil, nil, err
			}
			start := time.Now()
			if _, err := b.kami(ctx, "snapshot", "create", volume); err != nil {
				return nil, nil, err
			}
			ways[w].took = append(ways[w].took, time.Since(start))
			if volume == guest.volume {
				continue
			}
			if _, err := b.kami(ctx, "volume", "delete", volume); err != nil {
				return nil, nil, err
			}
		}
		took, err := b.convert(ctx, raw)
		if err != nil {
			return nil, nil, err
		}
		bare = append(bare, took)
	}
	var rows []row
	for _, w := range ways {
		rows = append(rows, timed(w.name, w.what, w.took, bare, ofHand, w.most))
	}
	_, err = b.kami(ctx, "instance", "terminate", guest.id)
	return rows, nil, err
}
