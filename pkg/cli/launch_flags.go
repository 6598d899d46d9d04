package cli

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/region"
)

// launchFlags are the flags that say how instances are launched, by a launch or by a
// template of many.
type launchFlags struct {
	tags, mappings                           []string
	boot, shutdown, userData, name, metadata string
	pv                                       bootFlags
}

// add adds them, for what they are read into.
func (l *launchFlags) add(a *app, c *cobra.Command, in *region.RunInstancesInput) {
	f := c.Flags()
	f.StringVar(&in.InstanceType, "instance-type", "", "`TYPE`, EC2's name of a size (default t3.micro: 2 CPUs, 1 GiB)")
	f.IntVar(&in.CPUs, "cpus", 0, "`N` CPUs, instead of the type's, or the one that emulated guests have")
	f.Int64Var(&in.MemoryMiB, "memory", 0, "`MIB` of memory, instead of the type's")
	f.StringVar(&in.KeyName, "key-name", "", "`NAME` of the key pair that the guest lets in")
	f.StringVar(&l.userData, "user-data", "", "`TEXT` for cloud-init, or @FILE, file://FILE or - for standard input; at most 16 KiB")
	f.StringVar(&l.boot, "boot-mode", "", "`MODE` of booting, instead of the image's: legacy-bios, uefi or uefi-preferred")
	l.pv.add(a, c, "the image's, else ")
	f.StringVar(&l.shutdown, "shutdown-behavior", "", "`WHAT` a shutdown inside the guest does: stop or terminate (default stop)")
	f.StringVar(&l.name, "name", "", "`NAME` (tag) of the instances, by which they can be called")
	f.StringVar(&in.Network, "network", "", "`NETWORK` of the hypervisor, or user for none (default the one named default where the system's libvirt has it up, else user)")
	f.StringVar(&l.metadata, "metadata-options", "", "`OPTIONS` of the metadata service: HttpTokens=required,InstanceMetadataTags=enabled and the like")
	f.BoolVar(&in.RequireKVM, "require-kvm", false, "fail rather than emulate")
	must(c.RegisterFlagCompletionFunc("key-name", a.completeKeys))
	must(c.RegisterFlagCompletionFunc("metadata-options", cobra.NoFileCompletions))
	completeValues(c, "boot-mode", bootModes()...)
	completeValues(c, "shutdown-behavior", "stop", "terminate")
	mappingFlag(c, &l.mappings)
	tagFlag(c, &l.tags)
}

// read reads them; what has to be looked up in a region comes with readIn.
func (l *launchFlags) read(a *app, in *region.RunInstancesInput) (err error) {
	if err := errors.Join(atLeast("cpus", int64(in.CPUs), 0), atLeast("memory", in.MemoryMiB, 0), oneOf("shutdown-behavior", l.shutdown, "stop", "terminate")); err != nil {
		return err
	}
	if in.Tags, err = parseTags(l.tags); err != nil {
		return err
	}
	if l.name != "" {
		in.Tags = append(in.Tags, ami.Tag{Key: "Name", Value: l.name})
	}
	if in.BlockDeviceMappings, err = parseMappings(l.mappings); err != nil {
		return err
	}
	if in.UserData, err = a.userData(l.userData); err != nil {
		return err
	}
	if l.metadata != "" {
		if in.MetadataOptions, err = ami.ParseMetadataOptions(l.metadata); err != nil {
			return err
		}
	}
	in.BootMode, in.ShutdownBehavior = ami.BootMode(l.boot), ami.ShutdownBehavior(l.shutdown)
	return nil
}

func (l *launchFlags) readIn(ctx context.Context, r *region.Region, in *region.RunInstancesInput) (err error) {
	in.PVBoot, err = l.pv.read(ctx, r)
	return err
}
