package cli

import (
	"github.com/spf13/cobra"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/region"
)

func (a *app) snapshotLock() *cobra.Command {
	var in region.LockSnapshotInput
	var mode, until string
	c := &cobra.Command{
		Use: "lock SNAPSHOT", Short: "Keep a snapshot from being deleted", Args: args(1, 1), ValidArgsFunction: once(a.completeSnapshots),
		Long: `Keep a snapshot from being deleted for a number of days, or until a time. In
governance mode its owner can unlock it; in compliance mode nobody can, once the
cooling-off period is over, and the lock can only be made longer.`,
		Example: "  kami snapshot lock snap-0123456789abcdef0 --days 30\n  kami snapshot lock snap-0123456789abcdef0 --mode compliance --until 2030-01-31 --cool-off 24",
		RunE: func(c *cobra.Command, given []string) (err error) {
			if err := exclusive(c, "days", "until"); err != nil {
				return err
			}
			if until != "" {
				if in.Until, err = parseTime("until", until); err != nil {
					return err
				}
			}
			in.SnapshotID, in.Mode = ami.SnapshotID(given[0]), ami.LockMode(mode)
			return a.with(c.Context(), func(r *region.Region) error {
				s, err := r.LockSnapshot(c.Context(), in)
				if err != nil {
					return err
				}
				return a.printSnapshots([]ami.Snapshot{s})
			})
		},
	}
	f := c.Flags()
	f.StringVar(&mode, "mode", string(ami.LockGovernance), "`MODE` of the lock: governance or compliance")
	f.IntVar(&in.Days, "days", 0, "`NUMBER` of days that it lasts, up to 36500")
	f.StringVar(&until, "until", "", "`TIME` when it ends, at least a day away, such as 2030-01-31")
	f.IntVar(&in.CoolOffPeriod, "cool-off", 0, "`HOURS`, up to 72, in which a compliance lock can still be changed")
	completeValues(c, "mode", string(ami.LockGovernance), string(ami.LockCompliance))
	dryFlag(c, &in.DryRun)
	return c
}

func (a *app) snapshotUnlock() *cobra.Command {
	var dry bool
	c := &cobra.Command{
		Use: "unlock SNAPSHOT...", Short: "Let snapshots be deleted again", Args: args(1, -1), ValidArgsFunction: a.completeSnapshots,
		Example: "  kami snapshot unlock snap-0123456789abcdef0",
		RunE: func(c *cobra.Command, given []string) error {
			return a.with(c.Context(), func(r *region.Region) error {
				return allOrNone(given, dry, func(id string, dry bool) error {
					_, err := r.UnlockSnapshot(c.Context(), ami.SnapshotID(id), dry)
					return err
				})
			})
		},
	}
	dryFlag(c, &dry)
	return c
}
