package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/kamivm/kami/pkg/ami"
)

const (
	userspace = "tiny: userspace" // what images/tiny's init says first on the console
	bootLimit = 5 * time.Minute
)

func (b *bench) list(ctx context.Context) ([]row, []chart, error) {
	if _, err := b.image(ctx, "tiny"); err != nil {
		return nil, nil, err
	}
	b.forgetPeak() // a build is not what is measured here
	var took []time.Duration
	for range 4 * b.rounds {
		start := time.Now()
		if _, err := b.kami(ctx, "image", "list"); err != nil {
			return nil, nil, err
		}
		took = append(took, time.Since(start))
	}
	return []row{timed("list", "`kami image list`, one image, whole process", took, nil, ofKami, 0.040)}, nil, nil
}

// launch compares kami launch with virsh create of the same domain on a fresh
// overlay made by hand, from the start of the command to the guest's first line
// of userspace.
func (b *bench) launch(ctx context.Context) ([]row, []chart, error) {
	if _, err := b.image(ctx, "tiny"); err != nil {
		return nil, nil, err
	}
	b.forgetPeak()
	var ours, bare, oursUp, bareUp []time.Duration
	var d domain
	kami := func() error {
		start := time.Now()
		id, err := b.kami(ctx, "launch", "tiny", "--wait", "running", "-o", "id")
		if err != nil {
			return err
		}
		oursUp = append(oursUp, time.Since(start))
		if err := waitLine(ctx, filepath.Join(b.instanceDir(id), "console.log"), userspace); err != nil {
			return err
		}
		ours = append(ours, time.Since(start))
		if d, err = b.takeDomain(ctx, id); err != nil {
			return err
		}
		_, err = b.kami(ctx, "instance", "terminate", id)
		return err
	}
	hand := func() error {
		if err := d.clear(); err != nil {
			return err
		}
		start := time.Now()
		if err := d.overlay(ctx, d.layer); err != nil {
			return err
		}
		up, took, err := d.boot(ctx, start, userspace)
		bareUp, bare = append(bareUp, up), append(bare, took)
		return err
	}
	// An emulated boot varies by more than what is looked for: many of them, and
	// neither side always after the other.
	for range 2 * b.rounds {
		for _, run := range []func() error{kami, hand, hand, kami} {
			if err := run(); err != nil {
				return nil, nil, err
			}
		}
	}
	return []row{
		timed("launch", "`kami launch tiny` to the first line of userspace; `virsh create` by hand", ours, bare, ofExtra, 0.150),
		timed("launch", "the part of it that is kami's: until the command returns, and the guest runs", oursUp, bareUp, ofExtra, 0),
	}, nil, nil
}

func (b *bench) instanceDir(id string) string {
	return filepath.Join(region(b.home()), "instances", id)
}

// domain is a guest by hand: what kami rendered, on files of its own.
type domain struct {
	dir   string
	xml   string
	head  string // path of its disk, a qcow2
	layer string // on which kami had put it
}

const handName = "kami-bench-hand"

// takeDomain copies the domain of an instance.
func (b *bench) takeDomain(ctx context.Context, id string) (domain, error) {
	dir := b.instanceDir(id)
	xml, err := os.ReadFile(filepath.Join(dir, "domain.xml"))
	if err != nil {
		return domain{}, err
	}
	inst, err := show[ami.Instance](ctx, b, b.home(), "instance", id)
	if err != nil {
		return domain{}, err
	}
	d := domain{dir: filepath.Join(b.dir, "hand")}
	d.head = filepath.Join(d.dir, "head.qcow2")
	if err := os.MkdirAll(d.dir, 0o755); err != nil {
		return domain{}, err
	}
	head := headPath(b.home(), string(inst.BlockDeviceMappings[0].Ebs.VolumeID))
	chain, err := chainOf(ctx, head)
	if err != nil {
		return domain{}, err
	}
	d.layer = chain[1]
	seed, err := os.ReadFile(filepath.Join(dir, "seed.iso"))
	if err != nil {
		return domain{}, err
	}
	if err := os.WriteFile(filepath.Join(d.dir, "seed.iso"), seed, 0o644); err != nil {
		return domain{}, err
	}
	d.xml = strings.ReplaceAll(string(xml), head, d.head)
	d.xml = strings.ReplaceAll(d.xml, dir+"/", d.dir+"/")
	d.xml = regexp.MustCompile(`<name>[^<]*</name>`).ReplaceAllString(d.xml, "<name>"+handName+"</name>")
	return d, nil
}

func (d domain) log() string { return filepath.Join(d.dir, "console.log") }

// clear removes what the last guest wrote.
func (d domain) clear() error {
	for _, p := range []string{d.head, d.log(), filepath.Join(d.dir, "nvram.fd")} {
		if err := os.Remove(p); err != nil && !os.IsNotExist(err) {
			return err
		}
	}
	return nil
}

// overlay makes the guest's disk: a fresh overlay.
func (d domain) overlay(ctx context.Context, on string) error {
	_, err := command(ctx, "qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", on, d.head)
	return err
}

// boot starts the guest, waits for a line on its console and cuts it off. It
// returns the time from start until it ran, and until the line.
func (d domain) boot(ctx context.Context, start time.Time, line string) (up, took time.Duration, err error) {
	path := filepath.Join(d.dir, "domain.xml")
	if err := os.WriteFile(path, []byte(d.xml), 0o644); err != nil {
		return 0, 0, err
	}
	if _, err := command(ctx, "virsh", "-c", connect(), "create", path); err != nil {
		return 0, 0, err
	}
	up = time.Since(start)
	err = waitLine(ctx, d.log(), line)
	took = time.Since(start)
	// Also after an interrupt.
	if _, derr := command(context.WithoutCancel(ctx), "virsh", "-c", connect(), "destroy", handName); err == nil {
		err = derr
	}
	return up, took, err
}

// waitLine polls a console log for a line.
func waitLine(ctx context.Context, log, line string) error {
	ctx, cancel := context.WithTimeout(ctx, bootLimit)
	defer cancel()
	for {
		text, err := os.ReadFile(log)
		if err == nil && bytes.Contains(text, []byte(line)) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("no %q on %s: %w\n%s", line, log, ctx.Err(), text)
		case <-time.After(2 * time.Millisecond):
		}
	}
}
