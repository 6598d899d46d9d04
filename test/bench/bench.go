package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
	"time"
)

// bench has a folder with homes of its own and the images that it measures with.
type bench struct {
	bin, dir string
	rounds   int
	start    time.Time
	peak     int64    // bytes: the most memory that a process of kami had
	line     []string // the ten images of one line, once they are made
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
	return &bench{bin: bin, dir: dir, rounds: max(rounds, 1), start: time.Now()}, os.Chmod(dir, 0o711)
}

func (b *bench) close() error {
	// Also after an interrupt.
	return errors.Join(b.endAllGuests(context.Background()), os.RemoveAll(b.dir))
}

// endAllGuests ends what is left in any home.
func (b *bench) endAllGuests(ctx context.Context) error {
	regions, err := filepath.Glob(filepath.Join(b.dir, "*", "regions"))
	for _, r := range regions {
		err = errors.Join(err, b.endGuests(ctx, filepath.Dir(r)))
	}
	return err
}

func (b *bench) endGuests(ctx context.Context, home string) error {
	left, err := b.kamiAt(ctx, home, nil, "instance", "list", "--filter", "instance-state-name=pending,running,stopping,stopped", "-o", "id")
	ids := strings.Fields(left)
	if err != nil || len(ids) == 0 {
		return err
	}
	// What is stopped by force need not be waited for.
	if _, err := b.kamiAt(ctx, home, nil, append([]string{"instance", "stop", "--force"}, ids...)...); err != nil {
		return err
	}
	_, err = b.kamiAt(ctx, home, nil, append([]string{"instance", "terminate"}, ids...)...)
	return err
}

// say tells the person before the terminal what is being done, and when.
func (b *bench) say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "bench: %5.0f s  %s\n", time.Since(b.start).Seconds(), fmt.Sprintf(format, args...))
}

// home is the home that most parts share.
func (b *bench) home() string { return filepath.Join(b.dir, "home") }

// region is the folder of a home's bytes.
func region(home string) string { return filepath.Join(home, "regions", "local-1") }

// connect is where the guests run: libvirt gives root no session.
func connect() string {
	if os.Getuid() == 0 {
		return "qemu:///system"
	}
	return "qemu:///session"
}

func command(ctx context.Context, name string, args ...string) (string, error) {
	out, _, err := finish(exec.CommandContext(ctx, name, args...))
	return out, err
}

// finish runs a command and returns what it printed and the most memory that it,
// or a program that it ran, had in bytes.
func finish(cmd *exec.Cmd) (text string, peak int64, err error) {
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	// An interrupted command may undo what it began.
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 30 * time.Second
	err = cmd.Run()
	if cmd.ProcessState != nil {
		if use, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage); ok {
			peak = use.Maxrss << 10
		}
	}
	if err != nil {
		return "", peak, fmt.Errorf("%s %s: %w\n%s", filepath.Base(cmd.Path), strings.Join(cmd.Args[1:], " "), err, errs.String())
	}
	return strings.TrimSpace(out.String()), peak, nil
}

func (b *bench) kami(ctx context.Context, args ...string) (string, error) {
	return b.kamiAt(ctx, b.home(), nil, args...)
}

// kamiAt runs kami in a home, with something on its standard input.
func (b *bench) kamiAt(ctx context.Context, home string, stdin io.Reader, args ...string) (string, error) {
	// Options go before the "--" of kami ssh.
	at := slices.Index(args, "--")
	if at < 0 {
		at = len(args)
	}
	cmd := exec.CommandContext(ctx, b.bin, slices.Insert(slices.Clone(args), at, "--home", home, "--connect", connect())...)
	cmd.Stdin = stdin
	out, peak, err := finish(cmd)
	b.peak = max(b.peak, peak)
	return out, err
}

// forgetPeak begins to look for the most memory anew. The kernel counts for a
// process what the one that it was forked from had at most, so this one must not
// have had much.
func (b *bench) forgetPeak() {
	b.peak = 0
	debug.FreeOSMemory()
	// Not every kernel has it; then the numbers are too large, not too small.
	_ = os.WriteFile("/proc/self/clear_refs", []byte("5"), 0o200)
}

// allocated is what the files under the paths take on the disk, without the folders.
func allocated(paths ...string) (sum int64, err error) {
	return total(paths, func(st *syscall.Stat_t) int64 { return st.Blocks * 512 })
}

// length is how long the files under the paths are.
func length(paths ...string) (sum int64, err error) {
	return total(paths, func(st *syscall.Stat_t) int64 { return st.Size })
}

func total(paths []string, of func(*syscall.Stat_t) int64) (sum int64, err error) {
	for _, p := range paths {
		err := filepath.WalkDir(p, func(_ string, d os.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			info, err := d.Info()
			if err != nil {
				return err
			}
			if st, ok := info.Sys().(*syscall.Stat_t); ok {
				sum += of(st)
			}
			return nil
		})
		if err != nil {
			return 0, err
		}
	}
	return sum, nil
}
