package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/kamivm/kami/pkg/hypervisor/hypervisortest"
)

const (
	wideDisk = int64(1) << 40
	widePart = 1 << 20 // bytes of data in each place of the wide disk
	wideStep = 256 << 20
)

// memory looks at how much memory kami has at most, of a disk of 2 GiB and of one
// of 1 TiB that has data all over it.
func (b *bench) memory(ctx context.Context) ([]row, []chart, error) {
	raw, err := b.rawRoot(ctx)
	if err != nil {
		return nil, nil, err
	}
	home := filepath.Join(b.dir, "memory")
	defer os.RemoveAll(home)
	var rows []row
	measure := func(name, what string, args ...string) (string, error) {
		b.forgetPeak()
		start := time.Now()
		out, err := b.kamiAt(ctx, home, nil, args...)
		b.say("%s: %s, %.1f s", name, inBytes.text(float64(b.peak)), time.Since(start).Seconds())
		rows = append(rows, row{Name: "memory: " + name, What: "memory of " + what, Kami: float64(b.peak), Unit: inBytes, Of: ofKami, Most: 256 << 20})
		return out, err
	}
	if _, err := measure("import 2 GiB", "`kami import` of a 2 GiB debian-12", "import", raw, "--name", "debian"); err != nil {
		return nil, nil, err
	}
	wide := filepath.Join(b.dir, "wide.raw")
	defer os.Remove(wide)
	if err := writeWide(wide, raw); err != nil {
		return nil, nil, err
	}
	what := fmt.Sprintf("`kami import` of a disk of 1 TiB with %d GiB of data, 1 MiB in every 256", wideDisk/wideStep*widePart>>30)
	image, err := measure("import 1 TiB", what, "import", wide, "--name", "wide", "-o", "id")
	if err != nil {
		return nil, nil, err
	}
	if err := os.Remove(wide); err != nil {
		return nil, nil, err
	}
	first, err := b.rootSnapshot(ctx, home, image)
	if err != nil {
		return nil, nil, err
	}
	volume, err := b.kamiAt(ctx, home, nil, "volume", "create", "--snapshot", string(first.SnapshotID), "-o", "id")
	if err != nil {
		return nil, nil, err
	}
	var script strings.Builder
	const step = 100 * widePart // one in a hundred
	for off := int64(widePart); off <= wideDisk-widePart; off += step {
		fmt.Fprintf(&script, "write -q -P %d %d %d\n", 1+off/step%255, off, widePart)
	}
	if err := writeDisk(ctx, headPath(home, volume), script.String()); err != nil {
		return nil, nil, err
	}
	second, err := measure("snapshot 1 TiB", "`kami snapshot create` with 1 % of that disk changed, 1 MiB in every 100", "snapshot", "create", volume, "-o", "id")
	if err != nil {
		return nil, nil, err
	}
	if _, err := b.kamiAt(ctx, home, nil, "volume", "delete", volume); err != nil {
		return nil, nil, err
	}
	if _, err := measure("verify", "`kami store verify` of all of these", "store", "verify"); err != nil {
		return nil, nil, err
	}
	if _, err := measure("diff 1 TiB", "`kami snapshot diff` of the two", "snapshot", "diff", string(first.SnapshotID), second); err != nil {
		return nil, nil, err
	}
	for _, format := range []string{"raw", "qcow2"} {
		out := filepath.Join(b.dir, "export."+format)
		_, err := measure("export 1 TiB, "+format, "`kami snapshot export` of the second as "+format, "snapshot", "export", second, out, "--format", format)
		if err := errors.Join(err, os.Remove(out)); err != nil {
			return nil, nil, err
		}
	}
	c := chart{File: "memory", Title: "The most memory of a process of kami; the line is 256 MiB", Unit: inBytes, Limit: 256 << 20}
	for _, r := range rows {
		b.peak = max(b.peak, int64(r.Kami))
		c.Lines = append(c.Lines, line{strings.TrimPrefix(r.Name, "memory: "), []float64{r.Kami}})
	}
	return rows, []chart{c}, nil
}

// writeWide writes a disk of 1 TiB that has data of another one all over it.
func writeWide(path, raw string) (err error) {
	src, err := os.Open(raw)
	if err != nil {
		return err
	}
	defer src.Close()
	runs, err := dataRuns(raw, widePart/cluster)
	if err != nil {
		return err
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := f.Truncate(wideDisk); err != nil {
		return err
	}
	for off := int64(0); off < wideDisk; off += wideStep {
		part := io.NewSectionReader(src, runs[int(off/wideStep)%len(runs)], widePart)
		if _, err := io.Copy(io.NewOffsetWriter(f, off), part); err != nil {
			return err
		}
	}
	// What boots is taken for an image.
	_, err = f.WriteAt(hypervisortest.BootSector("wide"), 0)
	return err
}
