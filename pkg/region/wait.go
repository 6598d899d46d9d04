package region

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/hypervisor"
)

// DefaultWait is how long a guest is waited for: an emulated one that grows its
// root and makes its keys at first boot takes a minute or two.
const DefaultWait = 5 * time.Minute

// booted is what a guest's console shows when it is up: a login prompt, or what
// cloud-init says when it has finished.
var booted = regexp.MustCompile(`(?m)(login: *$|Cloud-init v\. .* finished|^.*: ready\r?$)`)

// WaitInstance waits until an instance has come so far, at most limit (0 is
// DefaultWait). When the wait ends in vain, the error has the last lines of the
// guest's console.
func (r *Region) WaitInstance(ctx context.Context, id ami.InstanceID, cond WaitFor, limit time.Duration) (ami.Instance, error) {
	inst, err := r.instance(ctx, id)
	if err != nil {
		return inst, err
	}
	if limit <= 0 {
		limit = DefaultWait
	}
	from, err := r.bootOffset(id)
	if err != nil {
		return inst, err
	}
	var reached func(context.Context) bool
	switch cond {
	case WaitRunning:
		reached = func(context.Context) bool { return true } // the state is looked at below
	case WaitBooted:
		reached = func(context.Context) bool { return booted.Match(r.consoleTail(id, from, 64<<10)) }
	case WaitSSH:
		reached = func(ctx context.Context) bool { return r.sshAnswers(ctx, id) }
	default:
		return inst, ami.Errorf(ami.CodeInvalidParameterValue, "%q is nothing to wait for; choose running, booted or ssh.", cond)
	}
	step := r.progress.Step(fmt.Sprintf("waiting until %s is %s", id, describeWait(cond)), 0)
	hopeless := func() error { return nil }
	if inst.CurrentBootMode == ami.BootUEFI {
		hopeless = func() error { return firmwareEnd(r.consoleTail(id, from, 64<<10)) }
	}
	inst, err = r.wait(ctx, inst, limit, reached, hopeless)
	if errors.Is(err, errWaitLimit) || errors.Is(err, errGuestOff) || errors.Is(err, errRefused) || errors.Is(err, errNoLoader) {
		err = ami.Errorf(ami.CodeIncorrectInstanceState, "The instance '%s' is not %s: %w.%s", id, describeWait(cond), err, r.lastWords(id)).
			WithHint("kami console %s shows all that the guest has written.", id)
	}
	step.Done(err)
	return inst, err
}

func describeWait(cond WaitFor) string {
	if cond == WaitSSH {
		return "answering on ssh"
	}
	return string(cond)
}

var (
	errWaitLimit = errors.New("it did not come so far in time")
	errGuestOff  = errors.New("the guest is off")
)

// wait waits until reached says so. It ends early when the guest does, and with what
// hopeless says.
func (r *Region) wait(ctx context.Context, inst ami.Instance, limit time.Duration, reached func(context.Context) bool, hopeless func() error) (ami.Instance, error) {
	driver, err := r.driver(ctx, inst.Connect)
	if err != nil {
		return inst, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, limit, errWaitLimit)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	var asked time.Time
	for {
		if time.Since(asked) > time.Second { // cheaper than the question below
			state, err := driver.State(ctx, inst.InstanceID)
			if err == nil && (state == hypervisor.StateOff || state == hypervisor.StateGone || state == hypervisor.StateCrashed) {
				return inst, errGuestOff
			}
			if err := hopeless(); err != nil {
				return inst, err
			}
			asked = time.Now()
		}
		if reached(ctx) {
			return inst, nil
		}
		select {
		case <-ctx.Done():
			return inst, context.Cause(ctx)
		case <-tick.C:
		}
	}
}

// bootOffset is where in the console log this boot began, in bytes.
func (r *Region) bootOffset(id ami.InstanceID) (int64, error) {
	b, err := os.ReadFile(r.path("instances", string(id), "boot-offset"))
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, storeError(err, "The console of %s cannot be read.", id)
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	return n, storeError(err, "The console of %s cannot be read.", id)
}

// markBoot notes where in the console log the next boot begins.
func (r *Region) markBoot(id ami.InstanceID) error {
	var size int64
	if info, err := os.Stat(r.consolePath(id)); err == nil {
		size = info.Size()
	}
	return os.WriteFile(r.path("instances", string(id), "boot-offset"), []byte(strconv.FormatInt(size, 10)), 0o600)
}

// consoleTail returns at most limit of the last bytes of the console log that
// stand behind from, or of all of a log that was begun anew since.
func (r *Region) consoleTail(id ami.InstanceID, from, limit int64) []byte {
	f, err := os.Open(r.consolePath(id))
	if err != nil {
		return nil
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil
	}
	if from > info.Size() {
		from = 0
	}
	from = max(from, info.Size()-limit)
	if _, err := f.Seek(from, io.SeekStart); err != nil {
		return nil
	}
	b, _ := io.ReadAll(io.LimitReader(f, limit))
	return b
}

var controlBytes = regexp.MustCompile(`\x1b\[[0-9;?]*[A-Za-z]|[^\t\n\x20-\x7e]`)

// lastWords is the tail of the console, made safe for a terminal.
func (r *Region) lastWords(id ami.InstanceID) string {
	text := controlBytes.ReplaceAllString(string(r.consoleTail(id, 0, 8<<10)), "")
	var lines []string
	for _, l := range strings.Split(text, "\n") {
		if l = strings.TrimSpace(l); l != "" {
			lines = append(lines, l)
		}
	}
	if len(lines) == 0 {
		return " Its console has shown nothing."
	}
	return " The last lines of its console:\n    " + strings.Join(lines[max(0, len(lines)-12):], "\n    ")
}

// sshAnswers says whether an ssh server greets on the instance's address. A
// forwarded port accepts before the guest listens, so the greeting is read.
func (r *Region) sshAnswers(ctx context.Context, id ami.InstanceID) bool {
	target, err := r.SSH(ctx, id)
	if err != nil {
		return false
	}
	d := net.Dialer{Timeout: 2 * time.Second}
	conn, err := d.DialContext(ctx, "tcp", net.JoinHostPort(target.Host, strconv.Itoa(target.Port)))
	if err != nil {
		return false
	}
	defer conn.Close()
	// Short: a connection that the guest was too young for stays silent even
	// when its server is up a moment later; a new one is answered.
	if err := conn.SetDeadline(time.Now().Add(700 * time.Millisecond)); err != nil {
		return false
	}
	line, _ := bufio.NewReader(io.LimitReader(conn, 256)).ReadString('\n')
	return strings.HasPrefix(line, "SSH-")
}
