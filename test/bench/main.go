// Command bench runs kami beside the bare tools, turn by turn in one run on one
// machine, and prints ratios: numbers of one machine alone say little on
// another. It asserts nothing; docs/benchmarks.md keeps the last table with the
// machine and the versions.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

func main() {
	kami := flag.String("kami", "bin/kami", "the binary to measure")
	out := flag.String("out", "", "write the report to this file too")
	rounds := flag.Int("rounds", 5, "how often each side runs; the median counts")
	only := flag.String("only", "", "comma-separated: list,launch,import,image; empty is all")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *kami, *out, *rounds, *only); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// row is one comparison.
type row struct {
	what       string
	kami, bare string // measured
	ratio      string
	want       string // what was asked for
}

func run(ctx context.Context, bin, out string, rounds int, only string) (err error) {
	b, err := newBench(bin, rounds)
	if err != nil {
		return err
	}
	defer func() {
		if cerr := b.close(); err == nil {
			err = cerr
		}
	}()
	parts := []struct {
		name string
		run  func(context.Context) ([]row, error)
	}{
		{"list", b.list},
		{"launch", b.launch},
		{"import", b.importDisk},
		{"image", b.createImage},
	}
	var rows []row
	for _, p := range parts {
		if only != "" && !slices.Contains(strings.Split(only, ","), p.name) {
			continue
		}
		fmt.Fprintf(os.Stderr, "bench: %s\n", p.name)
		more, err := p.run(ctx)
		if err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		rows = append(rows, more...)
	}
	text := report(ctx, b, rows)
	fmt.Println(text)
	if out == "" {
		return nil
	}
	return os.WriteFile(out, []byte(text+"\n"), 0o644)
}

// bench has a home of its own and the images that it measures with.
type bench struct {
	bin, dir string
	rounds   int
}

func newBench(bin string, rounds int) (*bench, error) {
	bin, err := filepath.Abs(bin)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("/tmp", "kami-bench-")
	if err != nil {
		return nil, err
	}
	return &bench{bin: bin, dir: dir, rounds: max(rounds, 1)}, os.Chmod(dir, 0o711)
}

func (b *bench) close() error {
	left, err := b.kami(context.Background(), "instance", "list", "--filter", "instance-state-name=pending,running,stopping,stopped", "-o", "id")
	if ids := strings.Fields(left); err == nil && len(ids) > 0 {
		_, err = b.kami(context.Background(), append([]string{"instance", "terminate"}, ids...)...)
	}
	if rerr := os.RemoveAll(b.dir); err == nil {
		err = rerr
	}
	return err
}

// median of the durations.
func median(d []time.Duration) time.Duration {
	d = slices.Clone(d)
	slices.Sort(d)
	return d[len(d)/2]
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.3f s", d.Seconds()) }

func ratio(a, b time.Duration) string {
	if b <= 0 {
		return "-"
	}
	return fmt.Sprintf("%.2f", a.Seconds()/b.Seconds())
}
