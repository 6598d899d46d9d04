package main

import (
	"context"
	"path/filepath"
	"slices"
	"time"
)

// instanceStore compares launches of two images of one root: of a bundle, whose
// root is in the cache, and of a snapshot. It is the command that is timed, turn by
// turn; what the guest does after it is the same. The first launch, which fetches
// the bundle, is told beside.
func (b *bench) instanceStore(ctx context.Context) ([]row, []chart, error) {
	image, err := b.image(ctx, "tiny")
	if err != nil {
		return nil, nil, err
	}
	snap, err := b.rootSnapshot(ctx, b.home(), image)
	if err != nil {
		return nil, nil, err
	}
	const name = "tiny-instance-store"
	raw := filepath.Join(b.dir, name+".raw")
	for _, args := range [][]string{
		{"snapshot", "export", string(snap.SnapshotID), raw},
		{"bundle", "create", raw, "bench/" + name},
		{"image", "register", "--name", name, "--image-location", "bench/" + name + ".manifest"},
	} {
		if _, err := b.kami(ctx, args...); err != nil {
			return nil, nil, err
		}
	}
	b.forgetPeak()
	var first, ours, theirs []time.Duration
	for range b.rounds { // as on a host that has never had it
		if _, err := b.kami(ctx, "store", "gc", "--cache"); err != nil {
			return nil, nil, err
		}
		took, err := b.launchCommand(ctx, name)
		if err != nil {
			return nil, nil, err
		}
		first = append(first, took)
	}
	type side struct {
		image string
		took  *[]time.Duration
	}
	sides := []side{{name, &ours}, {image, &theirs}}
	for range 4 * b.rounds {
		for _, side := range sides {
			took, err := b.launchCommand(ctx, side.image)
			if err != nil {
				return nil, nil, err
			}
			*side.took = append(*side.took, took)
		}
		slices.Reverse(sides) // neither is always the first of the two
	}
	return []row{
		timed("instance-store", "`kami launch` of a bundle whose root is in the cache; of a snapshot of the same root", ours, theirs, ofExtra, 0.050),
		timed("instance-store, first", "`kami launch` of the bundle, which is fetched; of the snapshot", first, theirs, ofExtra, 0),
	}, nil, nil
}

// launchCommand says how long a launch takes until it says that its guest runs.
func (b *bench) launchCommand(ctx context.Context, image string) (time.Duration, error) {
	start := time.Now()
	id, err := b.kami(ctx, "launch", image, "-o", "id")
	took := time.Since(start)
	if err != nil {
		return 0, err
	}
	_, err = b.kami(ctx, "instance", "terminate", id)
	return took, err
}
