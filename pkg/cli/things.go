package cli

import (
	"context"
	"fmt"
	"os"
	"runtime/debug"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/output"
	"github.com/kamivm/kami/pkg/region"
)

func (a *app) printSnapshots(all []ami.Snapshot) error {
	type col = output.Column[ami.Snapshot]
	return output.List(a.printer(), map[string]any{"Snapshots": nonNil(all)}, all, func(s ami.Snapshot) string { return string(s.SnapshotID) }, []col{
		{Title: "SNAPSHOT", Text: func(s ami.Snapshot) string { return string(s.SnapshotID) }},
		{Title: "STATE", Text: func(s ami.Snapshot) string { return string(s.State) }},
		{Title: "SIZE", Text: func(s ami.Snapshot) string { return strconv.FormatInt(s.VolumeSize, 10) + " GiB" }},
		{Title: "ON DISK", Text: func(s ami.Snapshot) string { return output.Bytes(s.LayerBytes) }},
		{Title: "LAYER", Text: func(s ami.Snapshot) string { return s.Layer.Short() }},
		{Title: "CONSISTENCY", Text: func(s ami.Snapshot) string { return string(s.Consistency) }},
		{Title: "VOLUME", Text: func(s ami.Snapshot) string { return string(s.VolumeID) }},
		{Title: "STARTED", Text: func(s ami.Snapshot) string { return stamp(s.StartTime) }},
	})
}

func (a *app) snapshot() *cobra.Command {
	show := &cobra.Command{
		Use: "show SNAPSHOT...", Short: "Show all that is known of snapshots", Args: args(1, -1), ValidArgsFunction: a.completeSnapshots,
		Example: "  kami snapshot show snap-0123456789abcdef0",
		RunE: func(c *cobra.Command, given []string) error {
			return a.with(c.Context(), func(r *region.Region) error {
				all, err := r.DescribeSnapshots(c.Context(), region.DescribeInput{IDs: given})
				if err != nil {
					return err
				}
				a.wide()
				return a.printSnapshots(all)
			})
		},
	}
	return group("snapshot", "Make, find and delete snapshots",
		a.list("snapshots", "  kami snapshot list\n  kami snapshot list --filter status=completed",
			func(ctx context.Context, r *region.Region, in region.DescribeInput) error {
				all, err := r.DescribeSnapshots(ctx, in)
				if err != nil {
					return err
				}
				return a.printSnapshots(all)
			}), show, a.snapshotCreate(), a.snapshotDelete(), a.tag("snapshot", a.completeSnapshots), a.untag("snapshot", a.completeSnapshots))
}

// wide shows one object whole where a person looks.
func (a *app) wide() {
	if a.flags.output == string(output.Table) {
		a.flags.output = string(output.YAML)
	}
}

func (a *app) snapshotCreate() *cobra.Command {
	var in region.CreateSnapshotInput
	var tags []string
	c := &cobra.Command{
		Use: "create VOLUME", Short: "Snapshot a volume, attached or not", Args: args(1, 1), ValidArgsFunction: a.completeVolumes,
		Example: "  kami snapshot create vol-0123456789abcdef0 --description before",
		RunE: func(c *cobra.Command, given []string) (err error) {
			if in.Tags, err = parseTags(tags); err != nil {
				return err
			}
			in.VolumeID = ami.VolumeID(given[0])
			return a.with(c.Context(), func(r *region.Region) error {
				s, err := r.CreateSnapshot(c.Context(), in)
				if err != nil {
					return err
				}
				return a.printSnapshots([]ami.Snapshot{s})
			})
		},
	}
	c.Flags().StringVar(&in.Description, "description", "", "description")
	tagFlag(c, &tags)
	dryFlag(c, &in.DryRun)
	return c
}

func (a *app) snapshotDelete() *cobra.Command {
	var dry bool
	c := &cobra.Command{
		Use: "delete SNAPSHOT...", Aliases: []string{"rm"}, Short: "Delete snapshots that no image uses", Args: args(1, -1), ValidArgsFunction: a.completeSnapshots,
		Example: "  kami snapshot delete snap-0123456789abcdef0",
		RunE: func(c *cobra.Command, given []string) error {
			return a.with(c.Context(), func(r *region.Region) error {
				for _, id := range given {
					if err := r.DeleteSnapshot(c.Context(), ami.SnapshotID(id), dry); err != nil {
						return err
					}
				}
				return nil
			})
		},
	}
	dryFlag(c, &dry)
	return c
}

func (a *app) printVolumes(all []ami.Volume) error {
	type col = output.Column[ami.Volume]
	at := func(v ami.Volume) ami.VolumeAttachment {
		if len(v.Attachments) == 0 {
			return ami.VolumeAttachment{}
		}
		return v.Attachments[0]
	}
	return output.List(a.printer(), map[string]any{"Volumes": nonNil(all)}, all, func(v ami.Volume) string { return string(v.VolumeID) }, []col{
		{Title: "VOLUME", Text: func(v ami.Volume) string { return string(v.VolumeID) }},
		{Title: "STATE", Text: func(v ami.Volume) string { return string(v.State) }},
		{Title: "SIZE", Text: func(v ami.Volume) string { return strconv.FormatInt(v.Size, 10) + " GiB" }},
		{Title: "SNAPSHOT", Text: func(v ami.Volume) string { return string(v.SnapshotID) }},
		{Title: "INSTANCE", Text: func(v ami.Volume) string { return string(at(v).InstanceID) }},
		{Title: "DEVICE", Text: func(v ami.Volume) string { return at(v).Device }},
		{Title: "CREATED", Text: func(v ami.Volume) string { return stamp(v.CreateTime) }},
	})
}

func (a *app) volume() *cobra.Command {
	show := &cobra.Command{
		Use: "show VOLUME...", Short: "Show all that is known of volumes", Args: args(1, -1), ValidArgsFunction: a.completeVolumes,
		Example: "  kami volume show vol-0123456789abcdef0",
		RunE: func(c *cobra.Command, given []string) error {
			return a.with(c.Context(), func(r *region.Region) error {
				all, err := r.DescribeVolumes(c.Context(), region.DescribeInput{IDs: given})
				if err != nil {
					return err
				}
				a.wide()
				return a.printVolumes(all)
			})
		},
	}
	return group("volume", "Make, attach and delete volumes",
		a.list("volumes", "  kami volume list\n  kami volume list --filter status=available",
			func(ctx context.Context, r *region.Region, in region.DescribeInput) error {
				all, err := r.DescribeVolumes(ctx, in)
				if err != nil {
					return err
				}
				return a.printVolumes(all)
			}), show, a.volumeCreate(), a.volumeDelete(), a.volumeAttach(), a.volumeDetach(),
		a.tag("volume", a.completeVolumes), a.untag("volume", a.completeVolumes))
}

func (a *app) volumeCreate() *cobra.Command {
	var in region.CreateVolumeInput
	var tags []string
	var snap string
	c := &cobra.Command{
		Use: "create", Short: "Make a volume, blank or from a snapshot", Args: args(0, 0),
		Example: "  kami volume create --size 20\n  kami volume create --snapshot snap-0123456789abcdef0",
		RunE: func(c *cobra.Command, _ []string) (err error) {
			if in.Tags, err = parseTags(tags); err != nil {
				return err
			}
			in.SnapshotID = ami.SnapshotID(snap)
			return a.with(c.Context(), func(r *region.Region) error {
				v, err := r.CreateVolume(c.Context(), in)
				if err != nil {
					return err
				}
				return a.printVolumes([]ami.Volume{v})
			})
		},
	}
	c.Flags().Int64Var(&in.Size, "size", 0, "size in GiB (default the snapshot's)")
	c.Flags().StringVar(&snap, "snapshot", "", "snapshot to begin with")
	must(c.RegisterFlagCompletionFunc("snapshot", a.completeSnapshots))
	tagFlag(c, &tags)
	dryFlag(c, &in.DryRun)
	return c
}

func (a *app) volumeDelete() *cobra.Command {
	var dry bool
	c := &cobra.Command{
		Use: "delete VOLUME...", Aliases: []string{"rm"}, Short: "Delete volumes that are not attached", Args: args(1, -1), ValidArgsFunction: a.completeVolumes,
		Example: "  kami volume delete vol-0123456789abcdef0",
		RunE: func(c *cobra.Command, given []string) error {
			return a.with(c.Context(), func(r *region.Region) error {
				for _, id := range given {
					if err := r.DeleteVolume(c.Context(), ami.VolumeID(id), dry); err != nil {
						return err
					}
				}
				return nil
			})
		},
	}
	dryFlag(c, &dry)
	return c
}

func (a *app) printAttachment(at ami.VolumeAttachment) error {
	type col = output.Column[ami.VolumeAttachment]
	return output.List(a.printer(), at, []ami.VolumeAttachment{at}, func(at ami.VolumeAttachment) string { return string(at.VolumeID) }, []col{
		{Title: "VOLUME", Text: func(at ami.VolumeAttachment) string { return string(at.VolumeID) }},
		{Title: "INSTANCE", Text: func(at ami.VolumeAttachment) string { return string(at.InstanceID) }},
		{Title: "DEVICE", Text: func(at ami.VolumeAttachment) string { return at.Device }},
		{Title: "STATE", Text: func(at ami.VolumeAttachment) string { return at.State }},
	})
}

func (a *app) volumeAttach() *cobra.Command {
	var in region.AttachVolumeInput
	c := &cobra.Command{
		Use: "attach VOLUME INSTANCE", Short: "Attach a volume to an instance, also a running one", Args: args(2, 2), ValidArgsFunction: a.completeVolumes,
		Example: "  kami volume attach vol-0123456789abcdef0 i-0123456789abcdef0 --device /dev/sdf",
		RunE: func(c *cobra.Command, given []string) error {
			return a.with(c.Context(), func(r *region.Region) (err error) {
				in.VolumeID = ami.VolumeID(given[0])
				if in.InstanceID, err = a.instanceID(c.Context(), r, given[1]); err != nil {
					return err
				}
				at, err := r.AttachVolume(c.Context(), in)
				if err != nil {
					return err
				}
				return a.printAttachment(at)
			})
		},
	}
	c.Flags().StringVar(&in.Device, "device", "", "device name (default the next free one from /dev/sdf)")
	dryFlag(c, &in.DryRun)
	return c
}

func (a *app) volumeDetach() *cobra.Command {
	var force, dry bool
	c := &cobra.Command{
		Use: "detach VOLUME", Short: "Detach a volume from its instance", Args: args(1, 1), ValidArgsFunction: a.completeVolumes,
		Example: "  kami volume detach vol-0123456789abcdef0",
		RunE: func(c *cobra.Command, given []string) error {
			return a.with(c.Context(), func(r *region.Region) error {
				at, err := r.DetachVolume(c.Context(), ami.VolumeID(given[0]), force, dry)
				if err != nil {
					return err
				}
				return a.printAttachment(at)
			})
		},
	}
	c.Flags().BoolVar(&force, "force", false, "detach even if the guest does not let go")
	dryFlag(c, &dry)
	return c
}

func (a *app) printKeys(all []ami.KeyPair) error {
	type col = output.Column[ami.KeyPair]
	return output.List(a.printer(), map[string]any{"KeyPairs": nonNil(all)}, all, func(k ami.KeyPair) string { return string(k.KeyPairID) }, []col{
		{Title: "NAME", Text: func(k ami.KeyPair) string { return k.KeyName }},
		{Title: "ID", Text: func(k ami.KeyPair) string { return string(k.KeyPairID) }},
		{Title: "TYPE", Text: func(k ami.KeyPair) string { return k.KeyType }},
		{Title: "FINGERPRINT", Text: func(k ami.KeyPair) string { return k.KeyFingerprint }},
	})
}

func (a *app) key() *cobra.Command {
	return group("key", "Make and keep key pairs", a.keyCreate(), a.keyImport(),
		a.list("key pairs", "  kami key list", func(ctx context.Context, r *region.Region, in region.DescribeInput) error {
			all, err := r.DescribeKeyPairs(ctx, in)
			if err != nil {
				return err
			}
			return a.printKeys(all)
		}), a.keyDelete())
}

func (a *app) keyCreate() *cobra.Command {
	var keyType, save string
	var dry bool
	c := &cobra.Command{
		Use: "create NAME", Short: "Make a key pair", Args: args(1, 1),
		Long: `Make a key pair. The private key stays in the region, readable by its owner
alone, where kami ssh finds it; --save writes a copy of it.`,
		Example: "  kami key create me\n  kami key create me --type rsa --save me.pem",
		RunE: func(c *cobra.Command, given []string) error {
			return a.with(c.Context(), func(r *region.Region) error {
				k, private, err := r.CreateKeyPair(c.Context(), given[0], keyType, dry)
				if err != nil {
					return err
				}
				if save != "" {
					f, err := os.OpenFile(save, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
					if err != nil {
						return fmt.Errorf("the key pair was made, but its private key cannot be saved: %w", err)
					}
					defer f.Close()
					if _, err := f.Write(private); err != nil {
						return fmt.Errorf("the key pair was made, but its private key cannot be saved: %w", err)
					}
				}
				return a.printKeys([]ami.KeyPair{k})
			})
		},
	}
	c.Flags().StringVar(&keyType, "type", "ed25519", "ed25519 or rsa")
	c.Flags().StringVar(&save, "save", "", "file to write the private key to; it must not exist")
	dryFlag(c, &dry)
	return c
}

func (a *app) keyImport() *cobra.Command {
	var dry bool
	c := &cobra.Command{
		Use: "import NAME FILE", Short: "Take over a public key", Args: args(2, 2),
		Example: "  kami key import me ~/.ssh/id_ed25519.pub",
		RunE: func(c *cobra.Command, given []string) error {
			public, err := os.ReadFile(given[1])
			if err != nil {
				return err
			}
			return a.with(c.Context(), func(r *region.Region) error {
				k, err := r.ImportKeyPair(c.Context(), given[0], public, dry)
				if err != nil {
					return err
				}
				return a.printKeys([]ami.KeyPair{k})
			})
		},
	}
	dryFlag(c, &dry)
	return c
}

func (a *app) keyDelete() *cobra.Command {
	var dry bool
	c := &cobra.Command{
		Use: "delete NAME...", Aliases: []string{"rm"}, Short: "Forget key pairs", Args: args(1, -1), ValidArgsFunction: a.completeKeys,
		Example: "  kami key delete me",
		RunE: func(c *cobra.Command, given []string) error {
			return a.with(c.Context(), func(r *region.Region) error {
				for _, name := range given {
					if err := r.DeleteKeyPair(c.Context(), name, dry); err != nil {
						return err
					}
				}
				return nil
			})
		},
	}
	dryFlag(c, &dry)
	return c
}

func (a *app) region() *cobra.Command {
	show := func(all []region.Info) error {
		type col = output.Column[region.Info]
		return output.List(a.printer(), map[string]any{"Regions": all}, all, func(i region.Info) string { return i.RegionName }, []col{
			{Title: "REGION", Text: func(i region.Info) string { return i.RegionName }},
			{Title: "IMAGES", Text: func(i region.Info) string { return strconv.Itoa(i.Images) }},
			{Title: "INSTANCES", Text: func(i region.Info) string { return strconv.Itoa(i.Instances) }},
			{Title: "PATH", Text: func(i region.Info) string { return i.Path }},
		})
	}
	list := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List the regions of this home", Args: args(0, 0), Example: "  kami region list",
		RunE: func(c *cobra.Command, _ []string) error {
			all, err := region.List(c.Context(), a.flags.home)
			if err != nil {
				return err
			}
			return show(all)
		},
	}
	create := &cobra.Command{
		Use: "create NAME", Short: "Make a region", Args: args(1, 1), Example: "  kami region create lab-1",
		RunE: func(c *cobra.Command, given []string) error {
			info, err := region.Create(c.Context(), a.flags.home, given[0])
			if err != nil {
				return err
			}
			return show([]region.Info{info})
		},
	}
	var dry bool
	del := &cobra.Command{
		Use: "delete NAME", Aliases: []string{"rm"}, Short: "Remove a region that holds nothing", Args: args(1, 1),
		ValidArgsFunction: a.completeRegions, Example: "  kami region delete lab-1",
		RunE: func(c *cobra.Command, given []string) error {
			return region.Delete(c.Context(), a.flags.home, given[0], dry)
		},
	}
	dryFlag(del, &dry)
	return group("region", "Make and list regions", list, create, del)
}

func (a *app) version() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Say which kami this is", Args: args(0, 0), Example: "  kami version",
		RunE: func(*cobra.Command, []string) error {
			v := "unknown"
			if info, ok := debug.ReadBuildInfo(); ok {
				v = info.Main.Version
			}
			_, err := fmt.Fprintln(a.out, "kami", v)
			return err
		},
	}
}
