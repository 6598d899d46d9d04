package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// rootTree unpacks the root of debian-12 as a folder of files, once.
func (b *bench) rootTree(ctx context.Context) (string, error) {
	dir := filepath.Join(b.dir, "tree")
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	raw, err := b.rawRoot(ctx)
	if err != nil {
		return "", err
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", err
	}
	// Where pkg/disk puts the root of a disk.
	_, err = command(ctx, "/sbin/debugfs", "-R", "rdump / "+dir, raw+"?offset=8388608")
	return dir, err
}

// side is one way to do a thing, in a fresh folder each time. Nothing is removed
// in between: ext4 makes files slowly where others have just gone.
type side struct {
	name string
	run  func(dir string) error
	took []time.Duration
}

func (b *bench) turns(part string, sides []side) error {
	for i := range b.rounds {
		for s := range sides {
			dir := filepath.Join(b.dir, fmt.Sprintf("%s-%d-%d", part, i, s))
			if err := os.Mkdir(dir, 0o755); err != nil {
				return err
			}
			start := time.Now()
			if err := sides[s].run(dir); err != nil {
				return err
			}
			took := time.Since(start)
			b.say("%s %d of %d by %s: %.2f s", part, i+1, b.rounds, sides[s].name, took.Seconds())
			sides[s].took = append(sides[s].took, took)
		}
	}
	return nil
}

// pack compares packing a tree into a bundle with an archive of it, and with casync:
// of the same tree, and of the filesystem that a bundle is.
func (b *bench) pack(ctx context.Context) ([]row, []chart, error) {
	tree, err := b.rootTree(ctx)
	if err != nil {
		return nil, nil, err
	}
	if _, err := b.kami(ctx, "bundle", "create", tree, "bench/root"); err != nil {
		return nil, nil, err
	}
	fs := filepath.Join(b.dir, "root.ext4")
	if _, err := b.kami(ctx, "bundle", "unpack", "bench/root", fs); err != nil {
		return nil, nil, err
	}
	b.forgetPeak()
	sides := []side{
		{name: "kami", run: func(dir string) error {
			_, err := b.kami(ctx, "bundle", "create", tree, "bench/root", "--store", dir)
			return err
		}},
		{name: "tar and zstd", run: func(dir string) error {
			_, err := command(ctx, "sh", "-c", `tar -C "$0" -c . | zstd -q -T0 -o "$1/root.tar.zst"`, tree, dir)
			return err
		}},
		{name: "casync, of the tree", run: func(dir string) error {
			_, err := command(ctx, "casync", "make", "--with=unix", "--store="+dir+"/store", dir+"/root.caidx", tree)
			return err
		}},
		{name: "casync, of the filesystem", run: func(dir string) error {
			_, err := command(ctx, "casync", "make", "--store="+dir+"/store", dir+"/root.caibx", fs)
			return err
		}},
	}
	if err := b.turns("pack", sides); err != nil {
		return nil, nil, err
	}
	size, err := length(filepath.Join(b.dir, "pack-0-0", "bench"))
	if err != nil {
		return nil, nil, err
	}
	archive, err := length(filepath.Join(b.dir, "pack-0-1"))
	if err != nil {
		return nil, nil, err
	}
	const what = "`kami bundle create` of the tree of a debian-12, made durable; "
	return []row{
		timed("pack a tree", what+"an archive by tar and zstd -T0", sides[0].took, sides[1].took, ofHand, 2),
		timed("pack, beside casync", what+"`casync make` of the tree", sides[0].took, sides[2].took, ofHand, 1.0/3),
		timed("pack, beside casync of an image", what+"`casync make` of the filesystem that it becomes", sides[0].took, sides[3].took, ofHand, 1.0/3),
		{Name: "a bundle's size", What: "what the bundle takes in the store; the archive", Kami: float64(size), Hand: float64(archive), Unit: inBytes},
	}, nil, nil
}

// unpack compares a bundle's way back to a bootable root with an archive's.
func (b *bench) unpack(ctx context.Context) ([]row, []chart, error) {
	tree, err := b.rootTree(ctx)
	if err != nil {
		return nil, nil, err
	}
	archive, store := filepath.Join(b.dir, "unpack.tar.zst"), filepath.Join(b.dir, "unpack-store")
	if _, err := command(ctx, "sh", "-c", `tar -C "$0" -c . | zstd -q -T0 -o "$1"`, tree, archive); err != nil {
		return nil, nil, err
	}
	if _, err := b.kami(ctx, "bundle", "create", tree, "bench/root", "--store", store); err != nil {
		return nil, nil, err
	}
	b.forgetPeak()
	sides := []side{
		{name: "kami", run: func(dir string) error {
			_, err := b.kami(ctx, "bundle", "unpack", "bench/root", filepath.Join(dir, "root.img"), "--store", store)
			return err
		}},
		{name: "zstd and tar", run: func(dir string) error {
			_, err := command(ctx, "sh", "-c", `zstd -q -dc "$0" | tar -x -C "$1"`, archive, dir)
			return err
		}},
	}
	if err := b.turns("unpack", sides); err != nil {
		return nil, nil, err
	}
	what := "`kami bundle unpack` of a debian-12 to a bootable root, verified and made durable; zstd -d and tar -x"
	return []row{timed("unpack a root", what, sides[0].took, sides[1].took, ofHand, 1.2)}, nil, nil
}
