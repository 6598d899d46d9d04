package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// contest feeds the disks of images to other stores, and notes what kami's layers
// take.
type contest struct {
	b      *bench
	home   string
	rivals []*rival
	images []string
	bytes  []float64 // of kami, after each image
}

func (b *bench) contest(ctx context.Context, part, home string, names ...string) (*contest, error) {
	rivals, err := b.rivals(ctx, part, names...)
	return &contest{b: b, home: home, rivals: rivals}, err
}

// add is told of the next image.
func (c *contest) add(ctx context.Context, image string) error {
	snap, err := c.b.rootSnapshot(ctx, c.home, image)
	if err != nil {
		return err
	}
	// The same name each time: restic and borg look at what they know of it.
	disk := filepath.Join(c.b.dir, "disk.raw")
	defer os.Remove(disk)
	if _, err := c.b.kamiAt(ctx, c.home, nil, "snapshot", "export", string(snap.SnapshotID), disk, "--format", "raw"); err != nil {
		return err
	}
	for _, r := range c.rivals {
		if err := r.add(ctx, disk); err != nil {
			return err
		}
	}
	c.images = append(c.images, image)
	n, deepest, err := c.size(ctx)
	if err != nil {
		return err
	}
	c.bytes = append(c.bytes, n)
	said := fmt.Sprintf("image %d, chains of at most %d: kami %s", len(c.bytes), deepest, inBytes.text(n))
	for _, r := range c.rivals {
		said += fmt.Sprintf(", %s %s", r.name, inBytes.text(r.bytes[len(r.bytes)-1]))
	}
	c.b.say("%s", said)
	return nil
}

// settle has what kami does behind its commands done, and weighs once more.
func (c *contest) settle(ctx context.Context) error {
	if _, err := c.b.kamiAt(ctx, c.home, nil, "store", "merge"); err != nil {
		return err
	}
	n, deepest, err := c.size(ctx)
	if err != nil {
		return err
	}
	c.bytes[len(c.bytes)-1] = n
	c.b.say("long chains merged, at most %d: kami %s", deepest, inBytes.text(n))
	return nil
}

// size is what the layers that the images stand on take on the disk, with their
// lists of blocks, and how many layers the longest chain has.
func (c *contest) size(ctx context.Context) (bytes float64, deepest int, err error) {
	seen := map[string]bool{}
	var files []string
	for _, image := range c.images {
		snap, err := c.b.rootSnapshot(ctx, c.home, image)
		if err != nil {
			return 0, 0, err
		}
		chain, err := chainOf(ctx, layerPath(c.home, snap))
		if err != nil {
			return 0, 0, err
		}
		deepest = max(deepest, len(chain))
		for _, p := range chain {
			if !seen[p] {
				seen[p] = true
				files = append(files, p, strings.TrimSuffix(p, ".qcow2")+".blocks")
			}
		}
	}
	n, err := allocated(files...)
	return float64(n), deepest, err
}

// rows compare the sizes at the end; most is the bar, 0 for none.
func (c *contest) rows(what string, most float64) []row {
	var rows []row
	for _, r := range c.rivals {
		rows = append(rows, row{
			Name: what + ", " + r.name, What: "layers of " + what + ", on the disk; a " + r.name + " store fed the same disks",
			Kami: c.bytes[len(c.bytes)-1], Hand: r.bytes[len(r.bytes)-1], Unit: inBytes, Of: ofHand, Most: most,
		})
	}
	return rows
}

func (c *contest) chart(file, title string) chart {
	lines := []line{{"kami", c.bytes}}
	for _, r := range c.rivals {
		lines = append(lines, line{r.name, r.bytes})
	}
	return chart{File: file, Title: title, Unit: inBytes, Lines: lines}
}
