package cli

import (
	"cmp"
	"context"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/imds"
	"github.com/kamivm/kami/pkg/region"
)

// imds is not for people: the hypervisor runs it.
func (a *app) imds() *cobra.Command {
	answer := &cobra.Command{
		Use: "answer INSTANCE", Short: "Answer one connection of a guest to its metadata service", Args: args(1, 1), ValidArgsFunction: cobra.NoFileCompletions,
		Long: `Answer the requests on standard input as the metadata service of an instance, on
standard output. The hypervisor runs it for each connection of the guest's to
169.254.169.254; by hand it shows what the guest would be answered.`,
		Example: "  printf 'GET /latest/meta-data/ HTTP/1.0\\r\\n\\r\\n' | kami imds answer i-0123456789abcdef0",
		// All that can be settled for it is in its words. It reads no settings:
		// what is wrong with those is no business of the guest's.
		PersistentPreRunE: unsettled,
		RunE: func(c *cobra.Command, given []string) error {
			return a.answer(c.Context(), given[0])
		},
	}
	c := group("imds", "Serve metadata to guests", answer.Example, answer)
	c.Hidden = true
	return c
}

// answer serves one connection. Where QEMU runs this, the guest is at the other
// end of standard error too: it is told nothing but the answers.
func (a *app) answer(ctx context.Context, instance string) error {
	var conn io.ReadWriter = struct {
		io.Reader
		io.Writer
	}{a.in, a.out}
	if in, ok := a.in.(*os.File); ok {
		if c, err := net.FileConn(in); err == nil { // a socket: with limits in time of its own
			defer c.Close()
			conn = c
			if err := a.hush(in); err != nil {
				return exitError(exitFailed)
			}
		}
	}
	home, err := filepath.Abs(cmp.Or(a.flags.home, os.Getenv("KAMI_HOME"), defaultHome()))
	if err != nil {
		return err
	}
	guest, err := region.OpenMetadata(home, cmp.Or(a.flags.region, os.Getenv("KAMI_REGION"), region.DefaultRegion), ami.InstanceID(instance))
	if err != nil {
		return err
	}
	leave, ok, err := guest.Seat()
	if err != nil {
		return err
	}
	if !ok {
		return imds.Refuse(conn)
	}
	defer leave()
	return imds.Serve(ctx, conn, imds.NewHandler(guest, time.Now))
}

// hush has nothing written to the guest but answers: neither errors, nor what the
// run time says when it must stop.
func (a *app) hush(in *os.File) error {
	guest, err := in.Stat()
	if err != nil {
		return err
	}
	shown, err := os.Stderr.Stat()
	if err != nil || !os.SameFile(guest, shown) {
		return err
	}
	a.err = io.Discard
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	return unix.Dup3(int(null.Fd()), int(os.Stderr.Fd()), 0)
}

// program is the path by which this program can be run again, also when a newer
// one has taken its place. It is the one that it was called by, since a package
// may have a link there to a path that the next version has not.
func program() string {
	exe, err := os.Executable()
	if err != nil {
		return ""
	}
	called, err := exec.LookPath(os.Args[0])
	if err != nil {
		return exe
	}
	if called, err = filepath.Abs(called); err != nil {
		return exe
	}
	running, rerr := os.Stat(exe)
	named, nerr := os.Stat(called)
	if rerr != nil || nerr != nil || !os.SameFile(running, named) {
		return exe
	}
	return called
}
