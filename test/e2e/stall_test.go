package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

const (
	// writerMark begins each block that the writer writes.
	writerMark = "kami: the writer was here"
	// writerEnd is behind all that the writer counts on, in bytes: the end of the
	// root's partition, or of what is written to the other disk.
	writerEnd = 256 << 20
	// stallLimit is how much longer a live snapshot may keep a guest's write
	// waiting than the same guest waits without one.
	stallLimit = 50 * time.Millisecond
	// steady is the largest gap of a guest that nobody disturbs: where it is
	// longer without a snapshot the host was busy with something else, and what
	// is seen with one says nothing.
	steady = 25 * time.Millisecond
	// Rounds are made until enough of them were steady and show that all is
	// well; then the middle one of these counts.
	enoughRounds, mostRounds = 5, 9
)

// TestStall measures inside a guest how long its disks stall while it is imaged
// and while one of its volumes is snapshotted, and sees that all volumes of an
// image are of one instant. It is not parallel: what the other guests of the tests
// do would be measured too.
func TestStall(t *testing.T) {
	s := launchStalled(t, shared)
	suspended := watchSuspended(t, s.id)
	for _, verb := range []string{"image create", "snapshot create"} {
		t.Run(verb, func(t *testing.T) {
			s.want(t, verb)
			if said := suspended(); said != "" {
				t.Errorf("the guest was stopped, which it cannot measure:\n%s", said)
			}
		})
	}
}

// TestDirectStall is TestStall of a guest without libvirt.
func TestDirectStall(t *testing.T) {
	launchStalled(t, direct(shared)).want(t, "image create")
}

// stalled is a guest that writes to both of its disks.
type stalled struct {
	id, data string // data is its second volume
	writer   guestWriter
}

func launchStalled(t *testing.T, h *house) stalled {
	t.Helper()
	tiny(t)
	id := h.launch(t, "tiny", "--key-name", "e2e", "--wait", "ssh", "--block-device-mapping", "/dev/sdf=:1:true")
	data := deviceVolume(t, id, "/dev/sdf").Ebs.VolumeID
	return stalled{id, string(data), startWriter(t, id, guestDisk(t, id, data))}
}

// want makes images of the guest, or snapshots of its second disk.
func (g stalled) want(t *testing.T, verb string) {
	t.Helper()
	var rounds, quiet []stall
	for len(rounds) < mostRounds && (len(quiet) < enoughRounds || middle(quiet) > stallLimit) {
		image := ""
		s := g.writer.round(t, func() {
			if verb == "snapshot create" {
				shared.kami(t, "snapshot", "create", g.data)
				return
			}
			image = shared.kami(t, "image", "create", g.id, "--name", fmt.Sprintf("stall-%s-%d", g.id, len(rounds)), "--no-reboot", "-o", "id")
		})
		if image != "" {
			wantOneInstant(t, image, "/dev/sdf")
		}
		t.Logf("largest gap %v without, %v with; overslept %v, %v", s.without.gap, s.with.gap, s.without.overslept, s.with.overslept)
		if rounds = append(rounds, s); s.without.gap <= steady {
			quiet = append(quiet, s)
		}
	}
	got := least(rounds)
	if len(quiet) < enoughRounds {
		t.Logf("only %d of %d rounds were steady: the host is busy, and its best moments count", len(quiet), len(rounds))
	} else {
		got = middle(quiet)
	}
	if t.Logf("%s: %v longer", verb, got); got > stallLimit {
		t.Errorf("it keeps the guest's writes waiting for %v longer than without it, want at most %v", got, stallLimit)
	}
}

// look is what the writer in the guest has seen since the last look: the largest
// gap between two writes, and by how much at most a sleep was too long.
type look struct{ gap, overslept time.Duration }

func (l look) or(m look) look { return look{max(l.gap, m.gap), max(l.overslept, m.overslept)} }

// stall is a round: the same guest without a snapshot and with one.
type stall struct{ without, with look }

// middle is by how much the gap is longer with a snapshot in the middle round.
func middle(rounds []stall) time.Duration {
	longer := make([]time.Duration, len(rounds))
	for i, s := range rounds {
		longer[i] = s.with.gap - s.without.gap
	}
	slices.Sort(longer)
	return longer[len(longer)/2]
}

// least is by how much the shortest of the gaps with a snapshot is longer than the
// shortest without one: what no busy host can take from a snapshot.
func least(rounds []stall) time.Duration {
	with, without := rounds[0].with.gap, rounds[0].without.gap
	for _, s := range rounds {
		with, without = min(with, s.with.gap), min(without, s.without.gap)
	}
	return with - without
}

// watchSuspended looks out for stops of the guest, with which its clock would stop
// too, and returns a function that tells of them.
func watchSuspended(t *testing.T, id string) func() string {
	t.Helper()
	var said safeBuffer
	cmd := exec.Command("virsh", "-q", "-c", connect(), "event", "--domain", "kami-"+id, "--event", "lifecycle", "--loop")
	cmd.Stdout, cmd.Stderr = &said, &said
	must(t, cmd.Start())
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	return said.String
}

// safeBuffer is what a process that runs on has written.
type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// guestWriter is the program of package writer, running in a guest.
type guestWriter struct {
	in  io.Writer
	out *bufio.Reader
}

// startWriter builds the writer, puts it into the guest and starts it, on a file
// of the root disk and on the disk dev.
func startWriter(t *testing.T, id, dev string) guestWriter {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "writer")
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags=-s -w", "-o", bin, "./writer")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOARCH=amd64")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building the writer: %v\n%s", err, out)
	}
	program, err := os.ReadFile(bin)
	must(t, err)
	if r := shared.tryInput(string(program), "ssh", id, "--", "cat > /root/writer && chmod 700 /root/writer"); r.code != 0 {
		t.Fatalf("putting the writer into the guest: %s", r.stderr)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, shared.bin, "ssh", id, "--", fmt.Sprintf("/root/writer '%s' /root/written %s", writerMark, dev))
	cmd.Env = append(os.Environ(), shared.env...)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	t.Cleanup(func() {
		cancel()
		cmd.Wait()
	})
	w := guestWriter{in, bufio.NewReader(out)}
	w.look(t) // it writes by now
	return w
}

// ask sends the writer a line and returns its answer.
func (w guestWriter) ask(t *testing.T, line string) string {
	t.Helper()
	if _, err := io.WriteString(w.in, line+"\n"); err != nil {
		t.Fatal(err)
	}
	answer, err := w.out.ReadString('\n')
	if err != nil {
		t.Fatalf("the writer says %q: %v", answer, err)
	}
	return strings.TrimSpace(answer)
}

func (w guestWriter) look(t *testing.T) look {
	t.Helper()
	answer := w.ask(t, "look")
	var gap, overslept int64
	if _, err := fmt.Sscan(answer, &gap, &overslept); err != nil {
		t.Fatalf("the writer says %q: %v", answer, err)
	}
	return look{time.Duration(gap) * time.Microsecond, time.Duration(overslept) * time.Microsecond}
}

// round looks at the guest before, while and after a snapshot of it is made.
func (w guestWriter) round(t *testing.T, snapshot func()) stall {
	t.Helper()
	quiet := func() look {
		w.look(t)
		time.Sleep(600 * time.Millisecond)
		return w.look(t)
	}
	if got := w.ask(t, "fill"); got != "filled" {
		t.Fatalf("the writer says %q", got)
	}
	before := quiet()
	snapshot()
	with := w.look(t)
	return stall{before.or(quiet()), with}
}

// wantOneInstant checks that the root of an image and the volume at a device are
// of one instant: the writer writes each number to the root and then to the other.
func wantOneInstant(t *testing.T, image, device string) {
	t.Helper()
	root := lastNumber(t, rawVolume(t, shared, rootSnapshot(t, shared, image)))
	other := lastNumber(t, rawVolume(t, shared, string(imageSnapshot(t, shared, image, device))))
	t.Logf("the root is at %d, %s at %d", root, device, other)
	if root == 0 || other != root && other+1 != root {
		t.Errorf("the root is at %d and %s at %d: the guest was never there", root, device, other)
	}
}

// lastNumber is the largest number that the writer has written to a raw disk, on
// which its blocks are aligned to at least a KiB.
func lastNumber(t *testing.T, raw string) (last uint64) {
	t.Helper()
	f, err := os.Open(raw)
	must(t, err)
	defer f.Close()
	b := make([]byte, 1<<20)
	for off := int64(0); off < writerEnd; off += int64(len(b)) {
		if _, err := f.ReadAt(b, off); err != nil {
			t.Fatal(err)
		}
		for at := 0; at < len(b); at += 1 << 10 {
			if number, ok := bytes.CutPrefix(b[at:at+64], []byte(writerMark)); ok {
				last = max(last, binary.LittleEndian.Uint64(number))
			}
		}
	}
	return last
}
