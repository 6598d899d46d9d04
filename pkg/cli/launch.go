package cli

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/kamivm/kami/pkg/region"
)

// waits are what can be waited for.
func waits() []string {
	return []string{string(region.WaitRunning), string(region.WaitBooted), string(region.WaitSSH)}
}

func (a *app) launch() *cobra.Command {
	var in region.RunInstancesInput
	var l launchFlags
	var wait string
	var limit time.Duration
	c := &cobra.Command{
		Use: "launch [IMAGE]", Short: "Launch instances of an image", Args: args(0, 1), ValidArgsFunction: once(a.completeImages),
		Long: `Launch instances of an image, which is named by its id, its name, or with
--latest by a pattern of which the newest is taken. All instances start, or none.
With --template a launch template says what is not said here, the image too; tags
and block devices are put together.
With --wait the command ends when the guest has come so far; if it never does,
the error has the last lines of its console, and the guest stays for a look.`,
		Example: "  kami launch web-1 --key-name me --wait ssh\n  kami launch 'web-*' --latest --count 3 --instance-type t3.small\n  kami launch web-1 --block-device-mapping /dev/sdf=:20 --user-data @setup.sh\n  kami launch --template 'web:$Latest' --instance-type t3.large",
		RunE: func(c *cobra.Command, given []string) (err error) {
			if err := errors.Join(oneOf("wait", wait, waits()...), atLeast("count", int64(in.Count), 1), l.read(a, &in)); err != nil {
				return err
			}
			if len(given) == 0 && in.Template == "" {
				return usagef("an image is needed, or a --template that has one; %s", seeHelp(c))
			}
			if len(given) > 0 {
				in.Image = given[0]
			}
			return a.with(c.Context(), func(r *region.Region) error {
				if err := l.readIn(c.Context(), r, &in); err != nil {
					return err
				}
				res, err := r.RunInstances(c.Context(), in)
				if err != nil {
					return err
				}
				if wait != "" {
					for i, inst := range res.Instances {
						if res.Instances[i], err = r.WaitInstance(c.Context(), inst.InstanceID, region.WaitFor(wait), limit); err != nil {
							// What was launched stays, so whoever asked is told of it.
							fmt.Fprintf(a.err, "kami: %s was launched and stays; only the wait is over\n", inst.InstanceID)
							return errors.Join(err, a.printInstances(res, res.Instances))
						}
					}
				}
				return a.printInstances(res, res.Instances)
			})
		},
	}
	f := c.Flags()
	f.BoolVar(&in.Latest, "latest", false, "IMAGE is a pattern with * and ?; take the newest that matches")
	f.StringVar(&in.Template, "template", "", "`NAME[:VERSION]` of a launch template; the version is a number, $Latest or $Default")
	f.IntVar(&in.Count, "count", 1, "`N` instances")
	f.StringVar(&in.Hostname, "hostname", "", "host `NAME` (default the instance's id)")
	f.StringVar(&wait, "wait", "", "`STATE` to wait for: running, booted, or ssh (its ssh server answers)")
	f.DurationVar(&limit, "wait-timeout", region.DefaultWait, "`TIME` to wait at most")
	completeValues(c, "wait", waits()...)
	must(c.RegisterFlagCompletionFunc("template", a.completeTemplates))
	l.add(a, c, &in)
	dryFlag(c, &in.DryRun)
	return c
}

// userData reads user data: a text, file://PATH, @PATH, or - for standard input.
func (a *app) userData(s string) ([]byte, error) {
	if s == "-" {
		return io.ReadAll(io.LimitReader(a.in, region.MaxUserData+1))
	}
	if path, ok := strings.CutPrefix(s, "@"); ok {
		s = "file://" + path
	}
	text, err := textOf("user data", s)
	return []byte(text), err
}

// textOf is a text that is given as it is, or as file://PATH; what names it.
func textOf(what, s string) (string, error) {
	path, ok := strings.CutPrefix(s, "file://")
	if !ok {
		return s, nil
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("the %s cannot be read: %w", what, err)
	}
	return string(b), nil
}
