package region

import (
	"context"
	"errors"
	"net"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/hypervisor/fake"
)

// short is a wait that is meant to be in vain.
const short = 50 * time.Millisecond

func appendConsole(t *testing.T, r *Region, id ami.InstanceID, text string) {
	t.Helper()
	f, err := os.OpenFile(r.consolePath(id), os.O_WRONLY|os.O_APPEND, 0)
	must(t, err)
	_, err = f.WriteString(text)
	must(t, errors.Join(err, f.Close()))
}

func TestWait(t *testing.T) {
	t.Parallel()
	r, _ := open(t)
	inst := running(t, r)
	for _, cond := range []WaitFor{WaitRunning, WaitBooted} { // a fake guest is ready at once
		got, err := r.WaitInstance(t.Context(), inst.InstanceID, cond, 0)
		must(t, err)
		if got.InstanceID != inst.InstanceID {
			t.Errorf("waiting for %s: got %s, want %s", cond, got.InstanceID, inst.InstanceID)
		}
	}
	l, err := net.Listen("tcp4", net.JoinHostPort("127.0.0.1", strconv.Itoa(inst.SSHPort)))
	must(t, err)
	defer l.Close()
	go func() {
		for greeting := range slicesOf("", "HTTP/1.1 400\r\n", "SSH-2.0-test\r\n") { // it accepts before it serves
			conn, err := l.Accept()
			if err != nil {
				return
			}
			conn.Write([]byte(greeting))
			conn.Close()
		}
	}()
	_, err = r.WaitInstance(t.Context(), inst.InstanceID, WaitSSH, 0)
	must(t, err)
	_, err = r.WaitInstance(t.Context(), inst.InstanceID, "happy", 0)
	wantCode(t, err, ami.CodeInvalidParameterValue)
	_, err = r.WaitInstance(t.Context(), "i-00000000000000000", WaitRunning, 0)
	wantCode(t, err, ami.CodeInvalidInstanceIDNotFound)
}

func slicesOf(all ...string) func(func(string) bool) {
	return func(yield func(string) bool) {
		for _, s := range all {
			if !yield(s) {
				return
			}
		}
	}
}

func TestWhatIsBooted(t *testing.T) {
	t.Parallel()
	tests := []struct {
		console string
		want    bool
	}{
		{"debian login: ", true},
		{"Debian 12 tty\r\n\r\ndebian login:", true},
		{"[ 9.1] cloud-init[400]: Cloud-init v. 22.4.2 finished at Mon, 01 Jan", true},
		{"fake: ready\n", true},
		{"last login: Monday\n", false},
		{"Loading Linux ...\n", false},
		{"", false},
	}
	for _, tt := range tests {
		if got := booted.MatchString(tt.console); got != tt.want {
			t.Errorf("booted(%q) = %v, want %v", tt.console, got, tt.want)
		}
	}
}

// A wait that is over says what the console showed last, and nothing that a
// terminal would obey.
func TestWaitInVain(t *testing.T) {
	t.Parallel()
	r, d := open(t)
	inst := running(t, r)
	var text strings.Builder
	for n := range 30 {
		text.WriteString("line " + strconv.Itoa(n) + "\r\n")
	}
	appendConsole(t, r, inst.InstanceID, text.String()+"\x1b[31mred\x1b[0m \x07bell\x9b2J\n")
	_, err := r.WaitInstance(t.Context(), inst.InstanceID, WaitSSH, short)
	wantCode(t, err, ami.CodeIncorrectInstanceState)
	wantSays(t, err, "is not answering on ssh")
	wantSays(t, err, "\n    line 29\n    red bell2J")
	if regexp.MustCompile(`[^\n -~]`).MatchString(err.Error()) || strings.Contains(err.Error(), "line 10\n") {
		t.Errorf("got %q, want the last lines, and no control characters", err)
	}

	// What an earlier boot said does not count.
	must(t, r.markBoot(inst.InstanceID))
	_, err = r.WaitInstance(t.Context(), inst.InstanceID, WaitBooted, short)
	wantSays(t, err, "is not booted")
	appendConsole(t, r, inst.InstanceID, "host login: ")
	_, err = r.WaitInstance(t.Context(), inst.InstanceID, WaitBooted, 0)
	must(t, err)

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err = r.wait(ctx, inst, time.Minute, func(context.Context) bool { return false }, func() error { return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v for a wait that is given up, want context.Canceled", err)
	}
	must(t, os.WriteFile(r.path("instances", string(inst.InstanceID), "boot-offset"), []byte("x"), 0o600))
	_, err = r.WaitInstance(t.Context(), inst.InstanceID, WaitBooted, 0)
	wantCode(t, err, ami.CodeInternalError)

	silent := running(t, r)
	must(t, os.Remove(r.consolePath(silent.InstanceID)))
	_, err = r.WaitInstance(t.Context(), silent.InstanceID, WaitBooted, short)
	wantSays(t, err, "Its console has shown nothing")
	d.PowerOff(silent.InstanceID)
	_, err = r.WaitInstance(t.Context(), silent.InstanceID, WaitBooted, 0) // not for five minutes
	wantCode(t, err, ami.CodeIncorrectInstanceState)
	wantSays(t, err, "the guest is off")
	off := stopped(t, r)
	_, err = r.WaitInstance(t.Context(), off.InstanceID, WaitRunning, 0)
	wantSays(t, err, "the guest is off")
	wantSays(t, err, strings.TrimSpace(fake.ConsoleLine))
}

// A log that was begun anew since the boot was marked is read from its beginning.
func TestRotatedConsole(t *testing.T) {
	t.Parallel()
	r, _ := open(t)
	inst := running(t, r)
	must(t, os.WriteFile(r.consolePath(inst.InstanceID), []byte("web-1 login: "), 0o600))
	for from, want := range map[int64]string{0: "web-1 login: ", 6: "login: ", 13: "", 1 << 20: "web-1 login: "} {
		if got := string(r.consoleTail(inst.InstanceID, from, 64)); got != want {
			t.Errorf("behind %d: got %q, want %q", from, got, want)
		}
	}
}
