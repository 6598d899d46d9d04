package main

import (
	"context"
	"fmt"
	"path/filepath"
	"time"
)

// verify compares the check of all layers with openssl on the same files: a
// debian-12 and five snapshots of it.
func (b *bench) verify(ctx context.Context) ([]row, []chart, error) {
	raw, err := b.rawRoot(ctx)
	if err != nil {
		return nil, nil, err
	}
	home := filepath.Join(b.dir, "verify")
	image, err := b.kamiAt(ctx, home, nil, "import", raw, "--name", "imported", "-o", "id")
	if err != nil {
		return nil, nil, err
	}
	base, err := b.rootSnapshot(ctx, home, image)
	if err != nil {
		return nil, nil, err
	}
	for i := range 5 {
		volume, err := b.changedVolume(ctx, home, base, raw, 16, byte(i))
		if err != nil {
			return nil, nil, err
		}
		for _, args := range [][]string{{"snapshot", "create", volume}, {"volume", "delete", volume}} {
			if _, err := b.kamiAt(ctx, home, nil, args...); err != nil {
				return nil, nil, err
			}
		}
	}
	layers, err := filepath.Glob(filepath.Join(region(home), "layers", "*.qcow2"))
	if err != nil {
		return nil, nil, err
	}
	bytes, err := length(layers...)
	if err != nil {
		return nil, nil, err
	}
	var ours, bare []time.Duration
	for range b.rounds {
		start := time.Now()
		if _, err := b.kamiAt(ctx, home, nil, "store", "verify"); err != nil {
			return nil, nil, err
		}
		ours = append(ours, time.Since(start))
		start = time.Now()
		if _, err := command(ctx, "openssl", append([]string{"dgst", "-sha256"}, layers...)...); err != nil {
			return nil, nil, err
		}
		bare = append(bare, time.Since(start))
	}
	what := fmt.Sprintf("`kami store verify` of %d layers, %s; `openssl dgst -sha256` of the same bytes", len(layers), inBytes.text(float64(bytes)))
	return []row{timed("verify", what, ours, bare, ofHand, 1.3)}, nil, nil
}
