package cli

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/region"
)

// waits are what can be waited for.
func waits() []string {
	return []string{string(region.WaitRunning), string(region.WaitBooted), string(region.WaitSSH)}
}

func (a *app) launch() *cobra.Command {
	var in region.RunInstancesInput
	var tags, mappings []string
	var boot, shutdown, wait, userData, name, metadata string
	var pv bootFlags
	var limit time.Duration
	c := &cobra.Command{
		Use: "launch IMAGE", Short: "Launch instances of an image", Args: args(1, 1), ValidArgsFunction: once(a.completeImages),
		Long: `Launch instances of an image, which is named by its id, its name, or with
--latest by a pattern of which the newest is taken. All instances start, or none.
With --wait the command ends when the guest has come so far; if it never does,
the error has the last lines of its console, and the guest stays for a look.`,
		Example: "  kami launch web-1 --key-name me --wait ssh\n  kami launch 'web-*' --latest --count 3 --instance-type t3.small\n  kami launch web-1 --block-device-mapping /dev/sdf=:20 --user-data @setup.sh",
		RunE: func(c *cobra.Command, given []string) (err error) {
			if err := errors.Join(oneOf("wait", wait, waits()...), atLeast("count", int64(in.Count), 1), atLeast("cpus", int64(in.CPUs), 0),
				atLeast("memory", in.MemoryMiB, 0), oneOf("shutdown-behavior", shutdown, "stop", "terminate")); err != nil {
				return err
			}
			if in.Tags, err = parseTags(tags); err != nil {
				return err
			}
			if name != "" {
				in.Tags = append(in.Tags, ami.Tag{Key: "Name", Value: name})
			}
			if in.BlockDeviceMappings, err = parseMappings(mappings); err != nil {
				return err
			}
			if in.UserData, err = a.userData(userData); err != nil {
				return err
			}
			if metadata != "" {
				if in.MetadataOptions, err = ami.ParseMetadataOptions(metadata); err != nil {
					return err
				}
			}
			in.Image, in.BootMode, in.ShutdownBehavior = given[0], ami.BootMode(boot), ami.ShutdownBehavior(shutdown)
			return a.with(c.Context(), func(r *region.Region) error {
				if in.PVBoot, err = pv.read(c.Context(), r); err != nil {
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
	f.StringVar(&in.InstanceType, "instance-type", "", "`TYPE`, EC2's name of a size (default t3.micro: 2 CPUs, 1 GiB)")
	f.IntVar(&in.CPUs, "cpus", 0, "`N` CPUs, instead of the type's, or the one that emulated guests have")
	f.Int64Var(&in.MemoryMiB, "memory", 0, "`MIB` of memory, instead of the type's")
	f.IntVar(&in.Count, "count", 1, "`N` instances")
	f.StringVar(&in.KeyName, "key-name", "", "`NAME` of the key pair that the guest lets in")
	f.StringVar(&userData, "user-data", "", "`TEXT` for cloud-init, or @FILE, file://FILE or - for standard input; at most 16 KiB")
	f.StringVar(&boot, "boot-mode", "", "`MODE` of booting, instead of the image's: legacy-bios, uefi or uefi-preferred")
	pv.add(a, c, "the image's, else ")
	f.StringVar(&shutdown, "shutdown-behavior", "", "`WHAT` a shutdown inside the guest does: stop or terminate (default stop)")
	f.StringVar(&in.Hostname, "hostname", "", "host `NAME` (default the instance's id)")
	f.StringVar(&name, "name", "", "`NAME` (tag) of the instances, by which they can be called")
	f.StringVar(&in.Network, "network", "", "`NETWORK` of the hypervisor, or user for none (default the one named default where the system's libvirt has it up, else user)")
	f.StringVar(&metadata, "metadata-options", "", "`OPTIONS` of the metadata service: HttpTokens=required,InstanceMetadataTags=enabled and the like")
	f.BoolVar(&in.RequireKVM, "require-kvm", false, "fail rather than emulate")
	f.StringVar(&wait, "wait", "", "`STATE` to wait for: running, booted, or ssh (its ssh server answers)")
	f.DurationVar(&limit, "wait-timeout", region.DefaultWait, "`TIME` to wait at most")
	must(c.RegisterFlagCompletionFunc("key-name", a.completeKeys))
	must(c.RegisterFlagCompletionFunc("metadata-options", cobra.NoFileCompletions))
	completeValues(c, "wait", waits()...)
	completeValues(c, "boot-mode", bootModes()...)
	completeValues(c, "shutdown-behavior", "stop", "terminate")
	mappingFlag(c, &mappings)
	tagFlag(c, &tags)
	dryFlag(c, &in.DryRun)
	return c
}

// userData reads user data: a text, file://PATH, @PATH, or - for standard input.
func (a *app) userData(s string) ([]byte, error) {
	if s == "-" {
		return io.ReadAll(io.LimitReader(a.in, region.MaxUserData+1))
	}
	path, ok := strings.CutPrefix(s, "file://")
	if !ok {
		path, ok = strings.CutPrefix(s, "@")
	}
	if !ok {
		return []byte(s), nil
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("the user data cannot be read: %w", err)
	}
	return data, nil
}
