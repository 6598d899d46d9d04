package qemu

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/hypervisor"
	"github.com/kamivm/kami/pkg/hypervisor/qmp"
)

// agentAt plays a guest's agent: answer says what comes back to each line.
func agentAt(t *testing.T, r runFolder, answer func(line string) string) {
	t.Helper()
	alive, err := r.claim()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { alive.Close() })
	f, err := listen(r.path(agentSock))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	l, err := net.FileListener(f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				for in := bufio.NewScanner(conn); in.Scan(); {
					fmt.Fprint(conn, answer(in.Text()))
				}
			}()
		}
	}()
}

// synced answers a synchronisation with what was asked for.
func synced(line string) (string, bool) {
	_, id, ok := strings.Cut(line, `"id":`)
	if !ok || !strings.HasPrefix(line, "\xff") {
		return "", false
	}
	return "\xff" + `{"return": ` + strings.TrimRight(id, "}") + "}\n", true
}

func TestAgent(t *testing.T) {
	const stale = `{"return": 7}` + "\n" + `{"error": {"class": "GenericError", "desc": "stale"}}` + "\n\xff" + `{"return": 12}` + "\n"
	tests := []struct {
		name   string
		answer func(line string) string
		want   int
		fails  string
	}{
		{"answers", func(line string) string {
			if s, ok := synced(line); ok {
				return s
			}
			return `{"return": 3}` + "\n"
		}, 3, ""},
		{"late answers of an earlier conversation", func(line string) string {
			if s, ok := synced(line); ok {
				return stale + s
			}
			return `{"return": 3}` + "\n"
		}, 3, ""},
		{"refuses", func(line string) string {
			if s, ok := synced(line); ok {
				return s
			}
			return `{"error": {"class": "GenericError", "desc": "not today"}}` + "\n"
		}, 0, "not today"},
		{"talks nonsense", func(line string) string {
			if s, ok := synced(line); ok {
				return s
			}
			return "{]\n"
		}, 0, "invalid character"},
		{"never ends", func(line string) string {
			if s, ok := synced(line); ok {
				return s
			}
			return strings.Repeat("x", maxAnswer+1)
		}, 0, "more than"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := open(t, t.TempDir()).run(ami.NewInstanceID())
			agentAt(t, r, tt.answer)
			a, err := r.dialAgent(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer a.conn.Close()
			var got int
			err = a.ask(t.Context(), "guest-fsfreeze-freeze", nil, &got)
			if tt.fails == "" && (err != nil || got != tt.want) {
				t.Errorf("the agent answers %d, %v, want %d", got, err, tt.want)
			}
			if tt.fails != "" && (err == nil || !strings.Contains(err.Error(), tt.fails)) {
				t.Errorf("the agent's failure is %v, want %q", err, tt.fails)
			}
		})
	}
}

func TestAgentIsSilent(t *testing.T) {
	r := open(t, t.TempDir()).run(ami.NewInstanceID())
	agentAt(t, r, func(string) string { return "" })
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := r.dialAgent(ctx); err == nil {
		t.Error("an agent that says nothing was taken for one")
	}
}

// TestNoAgent holds that a guest whose agent has not come up is not waited for.
func TestNoAgent(t *testing.T) {
	d := open(t, t.TempDir())
	s := guest(t, d, halt(), withAgent)
	if _, err := d.Freeze(t.Context(), s.ID, time.Hour); !errors.Is(err, hypervisor.ErrNoAgent) {
		t.Errorf("Freeze: %v, want ErrNoAgent", err)
	}
	if err := d.Thaw(t.Context(), s.ID); !errors.Is(err, hypervisor.ErrNoAgent) {
		t.Errorf("Thaw: %v, want ErrNoAgent", err)
	}
	if addr, err := d.Address(t.Context(), s.Network, s.ID); addr != "" || err != nil {
		t.Errorf("Address: %q, %v, want none", addr, err)
	}
	if err := d.Reboot(t.Context(), s.ID); err != nil {
		t.Errorf("Reboot without an agent: %v", err)
	}
	if _, err := d.Freeze(t.Context(), ami.NewInstanceID(), time.Second); !errors.Is(err, hypervisor.ErrNotRunning) {
		t.Errorf("Freeze of an unknown guest: %v, want ErrNotRunning", err)
	}
}

// TestConsole types to a guest that says nothing, and holds that one at a time
// can.
func TestConsole(t *testing.T) {
	d := open(t, t.TempDir())
	s := guest(t, d, halt())
	conn, err := d.Console(t.Context(), s.ID)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write([]byte("x")); err != nil {
		t.Errorf("Write: %v", err)
	}
	if _, err := d.Console(t.Context(), s.ID); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("a second console: %v, want that it is in use", err)
	}
	conn.Close()
	becomesFree := func() error { // when QEMU has seen it
		var err error
		for range 100 {
			var again interface{ Close() error }
			if again, err = d.Console(t.Context(), s.ID); err == nil {
				return again.Close()
			}
			time.Sleep(10 * time.Millisecond)
		}
		return err
	}
	if err := becomesFree(); err != nil {
		t.Errorf("Console after Close: %v", err)
	}
	var refused *qmp.Error
	if _, err := d.Console(t.Context(), ami.NewInstanceID()); !errors.Is(err, hypervisor.ErrNotRunning) || errors.As(err, &refused) {
		t.Errorf("Console of an unknown guest: %v, want ErrNotRunning", err)
	}
}
