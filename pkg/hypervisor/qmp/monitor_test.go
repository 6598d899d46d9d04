package qmp

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/digitalocean/go-qemu/qmp/raw"
)

const greeting = `{"QMP": {"version": {"qemu": {"micro": 0, "minor": 2, "major": 7}}, "capabilities": []}}`

// asked is a command that a test's QEMU got.
type asked struct {
	Execute string          `json:"execute"`
	ID      json.RawMessage `json:"id"`
	Args    json.RawMessage `json:"arguments"`
}

// serve plays QEMU on the other end of a monitor. answer says something to each
// command after the greeting; what it returns is written as it is.
func serve(t *testing.T, answer func(asked) string) *Monitor {
	t.Helper()
	ours, theirs := net.Pipe()
	t.Cleanup(func() { theirs.Close() })
	go func() {
		fmt.Fprintf(theirs, "%s\r\n", greeting)
		in := bufio.NewScanner(theirs)
		in.Buffer(nil, 1<<20)
		for in.Scan() {
			var c asked
			if err := json.Unmarshal(in.Bytes(), &c); err != nil {
				panic(err)
			}
			if c.Execute == "qmp_capabilities" {
				fmt.Fprintf(theirs, `{"return": {}, "id": %s}`+"\r\n", c.ID)
				continue
			}
			text := answer(c)
			if text == "hang up" {
				theirs.Close()
				return
			}
			if _, err := theirs.Write([]byte(text)); err != nil {
				return
			}
		}
	}()
	m, err := New(t.Context(), ours)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

func TestTypedCall(t *testing.T) {
	m := serve(t, func(c asked) string {
		return fmt.Sprintf(`{"return": {"status": "io-error", "singlestep": false, "running": false}, "id": %s}`+"\r\n", c.ID)
	})
	info, err := raw.NewMonitor(m).QueryStatus()
	if err != nil || info.Status != raw.RunStateIOError {
		t.Errorf("QueryStatus: %v, %v", info, err)
	}
}

func TestLongAnswer(t *testing.T) {
	long := strings.Repeat("x", 3<<20)
	m := serve(t, func(c asked) string { return fmt.Sprintf(`{"return": %q, "id": %s}`+"\n", long, c.ID) })
	var got string
	if err := Ask(m, "human-monitor-command", nil, &got); err != nil || got != long {
		t.Errorf("an answer of %d bytes came as %d: %v", len(long), len(got), err)
	}
}

func TestRefusal(t *testing.T) {
	m := serve(t, func(c asked) string {
		return fmt.Sprintf(`{"error": {"class": "DeviceNotFound", "desc": "Device 'x' not found"}, "id": %s}`+"\n", c.ID)
	})
	err := raw.NewMonitor(m).DeviceDel("x")
	var refused *Error
	if !errors.As(err, &refused) || refused.Class != ClassDeviceNotFound || refused.Desc != "Device 'x' not found" {
		t.Errorf("DeviceDel: %v, want QEMU's error with its class", err)
	}
}

func TestNumbersStayExact(t *testing.T) {
	m := serve(t, func(c asked) string { return fmt.Sprintf(`{"return": %s, "id": %s}`+"\n", c.Args, c.ID) })
	const size = 1<<62 + 1
	var got struct{ Size int64 }
	if err := Ask(m, "block_resize", map[string]int64{"size": size}, &got); err != nil || got.Size != size {
		t.Errorf("%d became %d: %v", int64(size), got.Size, err)
	}
}

// TestGivenUp holds that an answer that comes too late is not taken for that of
// the next command.
func TestGivenUp(t *testing.T) {
	var first json.RawMessage
	m := serve(t, func(c asked) string {
		if c.Execute == "slow" {
			first = c.ID
			return ""
		}
		return fmt.Sprintf(`{"return": "late", "id": %s}`+"\n"+`{"return": "right", "id": %s}`+"\n", first, c.ID)
	})
	ctx, cancel := context.WithTimeoutCause(t.Context(), 20*time.Millisecond, errors.New("too slow"))
	defer cancel()
	if err := Ask(m.Within(ctx), "slow", nil, nil); err == nil || !strings.Contains(err.Error(), "too slow") {
		t.Errorf("a command without an answer: %v, want its context's cause", err)
	}
	var got string
	if err := Ask(m, "quick", nil, &got); err != nil || got != "right" {
		t.Errorf("the next command is answered %q, %v", got, err)
	}
}

func TestConcurrent(t *testing.T) {
	m := serve(t, func(c asked) string {
		return fmt.Sprintf(`{"event": "NIC_RX", "timestamp": {"seconds": 1, "microseconds": 2}}`+"\n"+`{"return": %s, "id": %s}`+"\n", c.Args, c.ID)
	})
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			var got map[string]int
			if err := Ask(m, "echo", map[string]int{"n": i}, &got); err != nil || got["n"] != i {
				t.Errorf("command %d is answered %v, %v", i, got, err)
			}
		})
	}
	wg.Wait()
}

func TestEvents(t *testing.T) {
	m := serve(t, func(c asked) string {
		event := `{"event": "DEVICE_DELETED", "data": {"device": "disk3"}, "timestamp": {"seconds": 1, "microseconds": 2}}` + "\n"
		return strings.Repeat(event, 100) + fmt.Sprintf(`{"return": {}, "id": %s}`+"\n", c.ID)
	})
	ctx, cancel := context.WithCancel(t.Context())
	events, err := m.Events(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := Ask(m, "device_del", nil, nil); err != nil { // nobody listens meanwhile, and nothing hangs
		t.Fatal(err)
	}
	if e := <-events; e.Event != "DEVICE_DELETED" || e.Data["device"] != "disk3" {
		t.Errorf("the event is %+v", e)
	}
	cancel()
	for range events { // which ends
	}
}

func TestEnded(t *testing.T) {
	m := serve(t, func(asked) string { return "hang up" })
	events, err := m.Events(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := Ask(m, "quit", nil, nil); !errors.Is(err, ErrEnded) {
			t.Errorf("a QEMU that hangs up: %v, want ErrEnded", err)
		}
	}
	if _, ok := <-events; ok {
		t.Error("an event after the end")
	}
	if _, err := m.Events(t.Context()); !errors.Is(err, ErrEnded) {
		t.Errorf("Events after the end: %v, want ErrEnded", err)
	}
}

// TestBusy holds that a QEMU that talks with somebody else is waited for only as
// long as the context lets.
func TestBusy(t *testing.T) {
	ours, theirs := net.Pipe()
	defer theirs.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := New(ctx, ours); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("New without a greeting: %v, want context.DeadlineExceeded", err)
	}
}

func TestNotQEMU(t *testing.T) {
	for _, text := range []string{"SSH-2.0-OpenSSH\r\n", "{}\n", "\n", "no end of line"} {
		ours, theirs := net.Pipe()
		go func() {
			theirs.Write([]byte(text))
			theirs.Close()
		}()
		if m, err := New(t.Context(), ours); err == nil {
			m.Close()
			t.Errorf("%q was taken for a QEMU", text)
		}
	}
}

// FuzzMonitor holds that nothing that comes from the socket ends the process, and
// that every command comes to its end.
func FuzzMonitor(f *testing.F) {
	f.Add([]byte(`{"return": {}, "id": 2}` + "\n"))
	f.Add([]byte(`{"event": "STOP", "data": {}, "id": 2}` + "\n" + `{"error": {}, "id": 2}` + "\n"))
	f.Add([]byte(`{"error": null, "id": 18446744073709551615}` + "\n{\n"))
	f.Fuzz(func(t *testing.T, said []byte) {
		ours, theirs := net.Pipe()
		go func() {
			defer theirs.Close()
			fmt.Fprintf(theirs, "%s\n", greeting)
			in := bufio.NewReader(theirs)
			for _, text := range []string{`{"return": {}, "id": 1}` + "\n", string(said)} {
				if _, err := in.ReadString('\n'); err != nil {
					return
				}
				if _, err := theirs.Write([]byte(text)); err != nil {
					return
				}
			}
		}()
		m, err := New(t.Context(), ours)
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		var answer any
		_ = Ask(m, "query-status", nil, &answer)
	})
}
