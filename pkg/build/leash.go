package build

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// leash runs the program given to it in a process group of its own, and ends
// the whole group when the other end of descriptor 3 is closed: by kami when it
// is interrupted, and by the kernel when kami is killed. TERM gives each program
// the chance to take down what it has mounted.
const leash = `"$@" 3<&- &
child=$!
{ cat <&3 >/dev/null; kill -TERM 0; } >/dev/null 2>&1 &
watch=$!
trap : TERM
wait $child
status=$?
while kill -0 $child 2>/dev/null; do wait $child; status=$?; done
kill $watch 2>/dev/null
exit $status`

// leashLimit is how long a group that was told to end is waited for.
const leashLimit = 20 * time.Second

// leashed returns the command of a program on a leash, and what to call when it
// has been waited for, or not started.
func leashed(ctx context.Context, program string, args ...string) (cmd *exec.Cmd, done func(), err error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	cmd = exec.CommandContext(ctx, "/bin/sh", append([]string{"-c", leash, "sh", program}, args...)...)
	cmd.ExtraFiles = []*os.File{r} // descriptor 3
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = leashLimit
	return cmd, func() { r.Close(); w.Close() }, nil
}

// RemoveTree removes a folder of a build that was killed. What an ordinary
// user's build made belongs to users that only exist in a namespace, so it is
// removed in one.
func RemoveTree(ctx context.Context, dir string) error {
	err := os.RemoveAll(dir)
	if !errors.Is(err, fs.ErrPermission) || os.Getuid() == 0 {
		return err
	}
	cmd := exec.CommandContext(ctx, "unshare", "--user", "--map-root-user", "--map-auto", "rm", "-rf", "--one-file-system", "--", dir)
	if out, rerr := cmd.CombinedOutput(); rerr != nil {
		return fmt.Errorf("%w; in a namespace: %w: %s", err, rerr, strings.TrimSpace(string(out)))
	}
	return nil
}
