package cli

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/kamivm/kami/pkg/region"
)

func (a *app) ssh() *cobra.Command {
	var user, identity string
	c := &cobra.Command{
		Use: "ssh INSTANCE [-- COMMAND...]", Short: "Log in to an instance", Args: args(1, -1), ValidArgsFunction: once(a.completeInstances),
		Long: `Log in to an instance with ssh: the address, the port and the key are found, the
host's key is kept with the instance. What stands behind -- is run there, and its
exit status is kami's.`,
		Example: "  kami ssh i-0123456789abcdef0\n  kami ssh web -- uname -a",
		RunE: func(c *cobra.Command, given []string) error {
			var target region.SSHTarget
			err := a.with(c.Context(), func(r *region.Region) error {
				id, err := a.instanceID(c.Context(), r, given[0])
				if err != nil {
					return err
				}
				target, err = r.SSH(c.Context(), id)
				return err
			})
			if err != nil {
				return err
			}
			if user != "" {
				target.User = user
			}
			if identity != "" {
				target.IdentityFile = identity
			}
			return a.execSSH(target, given[1:])
		},
	}
	c.Flags().StringVar(&user, "user", "", "`NAME` of the user to log in as (default the image's, else root)")
	c.Flags().StringVar(&identity, "identity", "", "`FILE` with the private key to use (default the one that kami made)")
	return c
}

// execSSH becomes ssh.
func (a *app) execSSH(t region.SSHTarget, command []string) error {
	path, err := exec.LookPath("ssh")
	if err != nil {
		return errors.New("the program ssh is not installed: apt-get install openssh-client")
	}
	argv := []string{
		"ssh", "-p", strconv.Itoa(t.Port), "-o", "UserKnownHostsFile=" + quoted(t.KnownHosts), "-o", "GlobalKnownHostsFile=/dev/null",
		"-o", "StrictHostKeyChecking=accept-new", "-o", "LogLevel=ERROR", "-o", "ConnectTimeout=20",
	}
	if t.IdentityFile != "" {
		argv = append(argv, "-o", "IdentitiesOnly=yes", "-i", t.IdentityFile)
	}
	argv = append(argv, t.User+"@"+t.Host)
	if len(command) > 0 {
		argv = append(append(argv, "--"), command...)
	}
	if a.progress != nil {
		a.progress.Close()
	}
	return syscall.Exec(path, argv, os.Environ())
}

// quoted is a path as a value in ssh's options, which may have spaces.
func quoted(path string) string { return `"` + path + `"` }

func (a *app) console() *cobra.Command {
	var follow, attach bool
	c := &cobra.Command{
		Use: "console INSTANCE", Short: "Show or join an instance's serial console", Args: args(1, 1), ValidArgsFunction: once(a.completeInstances),
		Long: `Show all that the guest has written to its serial console, also before it was
stopped and started again. --follow goes on until Ctrl-C; --attach joins the
console of a running guest both ways, until Ctrl-].`,
		Example: "  kami console i-0123456789abcdef0\n  kami console i-0123456789abcdef0 --follow\n  kami console i-0123456789abcdef0 --attach",
		RunE: func(c *cobra.Command, given []string) error {
			if err := exclusive(c, "follow", "attach"); err != nil {
				return err
			}
			return a.with(c.Context(), func(r *region.Region) error {
				id, err := a.instanceID(c.Context(), r, given[0])
				if err != nil {
					return err
				}
				if attach {
					conn, err := r.Console(c.Context(), id)
					if err != nil {
						return err
					}
					return a.attach(conn)
				}
				path, err := r.ConsoleLog(c.Context(), id)
				if err != nil {
					return err
				}
				return a.showLog(c, path, follow)
			})
		},
	}
	c.Flags().BoolVarP(&follow, "follow", "f", false, "go on showing what the guest writes")
	c.Flags().BoolVar(&attach, "attach", false, "type into the console; Ctrl-] leaves it")
	return c
}

func (a *app) showLog(c *cobra.Command, path string, follow bool) error {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) && !follow {
		return nil // nothing yet
	}
	if err != nil {
		return err
	}
	defer f.Close()
	for {
		if _, err := io.Copy(a.out, f); err != nil || !follow {
			return err
		}
		select {
		case <-c.Context().Done():
			return nil
		case <-time.After(100 * time.Millisecond):
		}
	}
}

const leave = 0x1d // Ctrl-]

// attach joins a terminal and a console.
func (a *app) attach(conn io.ReadWriteCloser) error {
	defer conn.Close()
	if f, ok := a.in.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		state, err := term.MakeRaw(int(f.Fd()))
		if err != nil {
			return err
		}
		defer func() {
			if err := term.Restore(int(f.Fd()), state); err != nil {
				fmt.Fprintf(a.err, "kami: the terminal cannot be set back: %v (try reset)\r\n", err)
				return
			}
			fmt.Fprintln(a.err, "\r")
		}()
		fmt.Fprint(a.err, "kami: attached; Ctrl-] leaves\r\n")
	}
	done := make(chan error, 2)
	go func() {
		_, err := io.Copy(a.out, conn)
		done <- err
	}()
	go func() {
		buf := make([]byte, 256)
		for {
			n, err := a.in.Read(buf)
			for i, b := range buf[:n] {
				if b == leave {
					_, werr := conn.Write(buf[:i])
					done <- werr
					return
				}
			}
			if _, werr := conn.Write(buf[:n]); werr != nil || err != nil {
				done <- werr
				return
			}
		}
	}()
	return <-done
}
