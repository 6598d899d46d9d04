// Command bench runs kami beside the bare tools, turn by turn in one run on one
// machine, and prints ratios: numbers of one machine alone say little on
// another. It asserts nothing. What was measured is kept in docs/benchmarks.json,
// part by part with the machine and the versions, so that a run of some parts
// measures anew only these; docs/benchmarks.md and its charts are drawn from it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"
)

func main() {
	kami := flag.String("kami", "bin/kami", "the binary to measure")
	out := flag.String("out", "", "page to write, with its rows (.json) and charts beside it")
	rounds := flag.Int("rounds", 5, "how often each side runs; the median counts")
	only := flag.String("only", "", "comma-separated parts: "+strings.Join(partNames(), ",")+"; empty is all")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *kami, *out, *rounds, *only); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// part is what runs, and is measured anew, as one.
type part struct {
	name string
	run  func(*bench, context.Context) ([]row, []chart, error)
}

// parts in the order of the page.
func parts() []part {
	return []part{
		{"list", (*bench).list},
		{"find", (*bench).find},
		{"launch", (*bench).launch},
		{"pv", (*bench).pv},
		{"instancestore", (*bench).instanceStore},
		{"layer", (*bench).fullLayer},
		{"second", (*bench).secondLayer},
		{"verify", (*bench).verify},
		{"image", (*bench).createImage},
		{"copy", (*bench).copy},
		{"lineage", (*bench).lineage},
		{"boot", (*bench).boot},
		{"scratch", (*bench).scratch},
		{"memory", (*bench).memory},
		{"hundred", (*bench).hundred},
		{"pack", (*bench).pack},
		{"unpack", (*bench).unpack},
	}
}

func partNames() []string {
	var names []string
	for _, p := range parts() {
		names = append(names, p.name)
	}
	return names
}

func run(ctx context.Context, bin, out string, rounds int, only string) (err error) {
	chosen := partNames()
	if only != "" {
		chosen = strings.Split(only, ",")
	}
	for _, name := range chosen {
		if !slices.Contains(partNames(), name) {
			return fmt.Errorf("there is no part %q, only %s", name, strings.Join(partNames(), ", "))
		}
	}
	var known page
	if out != "" {
		if known, err = readPage(out); err != nil {
			return err
		}
	}
	b, err := newBench(bin, rounds)
	if err != nil {
		return err
	}
	defer func() {
		if cerr := b.close(); err == nil {
			err = cerr
		}
	}()
	var failed []error
	for _, p := range parts() {
		if !slices.Contains(chosen, p.name) {
			continue
		}
		start := time.Now()
		b.say("%s", p.name)
		b.forgetPeak()
		rows, charts, err := p.run(b, ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			// The other parts are worth having.
			b.say("%s failed: %v", p.name, err)
			failed = append(failed, fmt.Errorf("%s: %w", p.name, err), b.endAllGuests(ctx))
			continue
		}
		r := result{
			Part: p.name, Rows: rows, Charts: charts, Rounds: b.rounds, Peak: b.peak,
			Seconds: time.Since(start).Seconds(), Date: time.Now().UTC().Format(time.DateOnly),
			Machine: machine(), Versions: b.versions(ctx),
		}
		if out == "" {
			known.put(r)
		} else if known, err = putPage(out, r); err != nil {
			return err
		}
	}
	fmt.Println(known.terminal())
	return errors.Join(failed...)
}
