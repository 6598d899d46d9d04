package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/kamivm/kami/pkg/ami"
)

// rawRoot writes the root disk of an image as a raw file.
func (b *bench) rawRoot(ctx context.Context, name string) (string, error) {
	id, err := b.image(ctx, name)
	if err != nil {
		return "", err
	}
	path := filepath.Join(b.dir, name+".raw")
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	snap, err := b.rootSnapshot(ctx, id)
	if err != nil {
		return "", err
	}
	_, err = command(ctx, "qemu-img", "convert", "-f", "qcow2", "-O", "raw", b.layerPath(snap), path)
	return path, err
}

func (b *bench) layerPath(s ami.Snapshot) string {
	return filepath.Join(b.dir, "home/regions/local-1/layers", s.Layer.Hex()+".qcow2")
}

func (b *bench) rootSnapshot(ctx context.Context, image string) (ami.Snapshot, error) {
	out, err := b.kami(ctx, "image", "show", image, "-o", "json")
	if err != nil {
		return ami.Snapshot{}, err
	}
	img, err := one[ami.Image](out)
	if err != nil {
		return ami.Snapshot{}, err
	}
	for _, m := range img.BlockDeviceMappings {
		if m.DeviceName == img.RootDeviceName && m.Ebs != nil {
			out, err := b.kami(ctx, "snapshot", "show", string(m.Ebs.SnapshotID), "-o", "json")
			if err != nil {
				return ami.Snapshot{}, err
			}
			return one[ami.Snapshot](out)
		}
	}
	return ami.Snapshot{}, fmt.Errorf("image %s has no root snapshot", image)
}

// convert is what a person would run by hand: a compressed qcow2 and its digest.
func (b *bench) convert(ctx context.Context, format, in string) (time.Duration, error) {
	out := filepath.Join(b.dir, "hand.qcow2")
	defer os.Remove(out)
	start := time.Now()
	if _, err := command(ctx, "qemu-img", "convert", "-f", format, "-O", "qcow2", "-c", "-o", "compression_type=zstd", "-m", "16", "-W", in, out); err != nil {
		return 0, err
	}
	if _, err := command(ctx, "openssl", "dgst", "-sha256", out); err != nil {
		return 0, err
	}
	return time.Since(start), nil
}

// importDisk compares importing a Debian root with qemu-img and openssl. Each
// round imports into a home that has never seen the disk.
func (b *bench) importDisk(ctx context.Context) ([]row, error) {
	raw, err := b.rawRoot(ctx, "debian-12")
	if err != nil {
		return nil, err
	}
	var ours, bare []time.Duration
	for i := range b.rounds {
		home := filepath.Join(b.dir, fmt.Sprintf("import-%d", i))
		start := time.Now()
		if _, err := command(ctx, b.bin, "import", raw, "--name", "imported", "--home", home); err != nil {
			return nil, err
		}
		ours = append(ours, time.Since(start))
		if err := os.RemoveAll(home); err != nil {
			return nil, err
		}
		took, err := b.convert(ctx, "raw", raw)
		if err != nil {
			return nil, err
		}
		bare = append(bare, took)
	}
	a, z := median(ours), median(bare)
	return []row{{"`kami import` of a raw debian-12; `qemu-img convert -c` zstd and `openssl dgst`", seconds(a), seconds(z), ratio(a, z), "at most 1.00"}}, nil
}

// createImage changes 16 MiB in a running debian-12 and saves it, beside the
// full convert of its root.
func (b *bench) createImage(ctx context.Context) ([]row, error) {
	image, err := b.image(ctx, "debian-12")
	if err != nil {
		return nil, err
	}
	raw, err := b.rawRoot(ctx, "debian-12")
	if err != nil {
		return nil, err
	}
	if _, err := b.kami(ctx, "key", "create", "bench"); err != nil {
		return nil, err
	}
	id, err := b.kami(ctx, "launch", image, "--key-name", "bench", "--instance-type", "t3.small", "--wait", "ssh", "-o", "id")
	if err != nil {
		return nil, err
	}
	save := func(name string, more ...string) (ami.Snapshot, time.Duration, error) {
		start := time.Now()
		next, err := b.kami(ctx, append([]string{"image", "create", id, "--name", name, "--no-reboot", "-o", "id"}, more...)...)
		took := time.Since(start)
		if err != nil {
			return ami.Snapshot{}, 0, err
		}
		snap, err := b.rootSnapshot(ctx, next)
		return snap, took, err
	}
	// What first boot wrote goes into an image of its own.
	if _, err := b.kami(ctx, "ssh", id, "--", "sudo cloud-init status --wait >/dev/null 2>&1; sync; sleep 5"); err != nil {
		return nil, err
	}
	if _, _, err := save("settled"); err != nil {
		return nil, err
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
				return nil, err
			}
			snap, took, err := save(fmt.Sprintf("changed-%d-%d", i, len(way.args)), way.args...)
			if err != nil {
				return nil, err
			}
			*way.took = append(*way.took, took)
			changed, err := b.dataBytes(ctx, snap)
			if err != nil {
				return nil, err
			}
			most = max(most, float64(snap.LayerBytes)/float64(changed))
		}
		hand, err := b.convert(ctx, "raw", raw)
		if err != nil {
			return nil, err
		}
		bare = append(bare, hand)
	}
	if _, err := b.kami(ctx, "instance", "terminate", id); err != nil {
		return nil, err
	}
	f, a, z := median(frozen), median(asIs), median(bare)
	return []row{
		{"`kami image create --no-reboot --require crash-consistent` with 16 MiB changed; full convert of the 2 GiB root", seconds(a), seconds(z), ratio(a, z), "at most 0.10"},
		{"the same with the guest's agent freezing its file systems (the default)", seconds(f), seconds(z), ratio(f, z), "at most 0.10"},
		{"the layer's size over its changed clusters", fmt.Sprintf("%.2f", most), "", "", "at most 1.10"},
	}, nil
}

// dataBytes are the clusters of a layer that hold data, times their size: the
// changed clusters, as qemu-img counts them.
func (b *bench) dataBytes(ctx context.Context, s ami.Snapshot) (int64, error) {
	out, err := command(ctx, "qemu-img", "map", "--output=json", "-f", "qcow2", b.layerPath(s))
	if err != nil {
		return 0, err
	}
	extents, err := decodeMap(out)
	if err != nil {
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
