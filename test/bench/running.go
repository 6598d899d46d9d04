package main

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/kamivm/kami/pkg/ami"
)

// createImage changes 16 MiB in a running debian-12 and saves it, beside the
// full convert of its root.
func (b *bench) createImage(ctx context.Context) ([]row, []chart, error) {
	image, err := b.image(ctx, "debian-12")
	if err != nil {
		return nil, nil, err
	}
	raw, err := b.rawRoot(ctx)
	if err != nil {
		return nil, nil, err
	}
	if err := b.key(ctx); err != nil {
		return nil, nil, err
	}
	b.forgetPeak()
	b.say("launching debian-12")
	id, err := b.kami(ctx, "launch", image, "--key-name", "bench", "--instance-type", "t3.small", "--wait", "ssh", "-o", "id")
	if err != nil {
		return nil, nil, err
	}
	save := func(name string, more ...string) (ami.Snapshot, time.Duration, error) {
		start := time.Now()
		next, err := b.kami(ctx, append([]string{"image", "create", id, "--name", name, "--no-reboot", "-o", "id"}, more...)...)
		took := time.Since(start)
		if err != nil {
			return ami.Snapshot{}, 0, err
		}
		snap, err := b.rootSnapshot(ctx, b.home(), next)
		return snap, took, err
	}
	// What first boot wrote goes into an image of its own.
	if _, err := b.kami(ctx, "ssh", id, "--", "sudo cloud-init status --wait >/dev/null 2>&1; sync; sleep 5"); err != nil {
		return nil, nil, err
	}
	if _, _, err := save("settled"); err != nil {
		return nil, nil, err
	}
	change := func() error {
		_, err := b.kami(ctx, "ssh", id, "--", "sudo dd if=/dev/urandom of=/var/tmp/changed bs=1M count=16 conv=notrunc,fsync 2>/dev/null; sync")
		return err
	}
	var frozen, asIs, bare []time.Duration
	var most float64
	for i := range b.rounds {
		for _, way := range []struct {
			took *[]time.Duration
			args []string
		}{{&frozen, nil}, {&asIs, []string{"--require", string(ami.ConsistencyCrash)}}} {
			if err := change(); err != nil {
				return nil, nil, err
			}
			snap, took, err := save(fmt.Sprintf("changed-%d-%d", i, len(way.args)), way.args...)
			if err != nil {
				return nil, nil, err
			}
			*way.took = append(*way.took, took)
			changed, err := b.dataBytes(ctx, snap)
			if err != nil {
				return nil, nil, err
			}
			most = max(most, float64(snap.LayerBytes)/float64(changed))
		}
		hand, err := b.convert(ctx, raw)
		if err != nil {
			return nil, nil, err
		}
		bare = append(bare, hand)
	}
	if _, err := b.kami(ctx, "instance", "terminate", id); err != nil {
		return nil, nil, err
	}
	return []row{
		timed("image of a running guest", "`kami image create --no-reboot --require crash-consistent` of a debian-12 with 16 MiB changed; "+byHand, asIs, bare, ofHand, 0.10),
		timed("with frozen file systems", "the same with the guest's agent freezing its file systems (the default)", frozen, bare, ofHand, 0.10),
		{Name: "layer over changed clusters", What: "the layer's size over its changed clusters", Kami: most, Unit: plain, Of: ofKami, Most: 1.10},
	}, nil, nil
}

// dataBytes are the clusters of a layer that hold data, times their size: the
// changed clusters, as qemu-img counts them.
func (b *bench) dataBytes(ctx context.Context, s ami.Snapshot) (int64, error) {
	out, err := command(ctx, "qemu-img", "map", "--output=json", "-f", "qcow2", layerPath(b.home(), s))
	if err != nil {
		return 0, err
	}
	var extents []struct {
		Length  int64 `json:"length"`
		Depth   int   `json:"depth"`
		Present bool  `json:"present"`
		Data    bool  `json:"data"`
	}
	if err := json.Unmarshal([]byte(out), &extents); err != nil {
		return 0, err
	}
	var sum int64
	for _, e := range extents {
		if e.Depth == 0 && e.Present && e.Data {
			sum += e.Length
		}
	}
	if sum == 0 {
		return 0, fmt.Errorf("layer %s has no data", s.Layer)
	}
	return sum, nil
}
