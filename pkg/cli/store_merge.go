package cli

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/kamivm/kami/pkg/output"
	"github.com/kamivm/kami/pkg/region"
)

func mergeDoc(all []region.MergedChain) any {
	out := make([]region.MergedChain, len(all))
	for i, m := range all {
		m.Snapshots = nonNil(m.Snapshots)
		out[i] = m
	}
	return map[string]any{"Merged": out}
}

func (a *app) storeMerge() *cobra.Command {
	var in region.MergeInput
	c := &cobra.Command{
		Use: "merge", Short: "Shorten long chains of layers", Args: args(0, 0), ValidArgsFunction: cobra.NoFileCompletions,
		Long: `Shorten the chains of layers that have grown past their limit of twelve: what
changed along such a chain is written once more as one layer, and the snapshot
names that one from then on. Its content stays what it was.

A command that makes such a chain starts this by itself when its own work is done,
with --background, as a process of low priority that nobody waits for. By hand it
is needed where such processes are killed, as in a container that ends with its
command. It can be interrupted anywhere.

The layers whose place others have taken stay for a moment, since a command may
have read their names just before. --grace says for how long: not at all, where no
other command runs.`,
		Example: "  kami store merge\n  kami store merge --grace 0s\n  kami store merge -o json",
		RunE: func(c *cobra.Command, _ []string) error {
			if in.Background {
				// A home that was removed meanwhile is not made again.
				if _, err := os.Stat(a.flags.home); err != nil {
					return err
				}
			}
			return a.with(c.Context(), func(r *region.Region) error {
				merged, err := r.MergeChains(c.Context(), in)
				if err != nil {
					return err
				}
				if !a.asTable() {
					return output.List(a.printer(), mergeDoc(merged), merged, func(m region.MergedChain) string { return m.Layer.Hex() }, nil)
				}
				var bytes int64
				for _, m := range merged {
					bytes += m.Bytes
				}
				_, err = fmt.Fprintf(a.out, "merged %s, wrote %s\n", count(len(merged), "chain"), output.Bytes(bytes))
				return err
			})
		},
	}
	c.Flags().BoolVar(&in.Background, "background", false, "leave the work to another one that waits")
	c.Flags().DurationVar(&in.Grace, "grace", region.MergeGrace, "`TIME` that replaced layers stay")
	return c
}

// lowest is the priority of what nobody waits for.
const lowest = 19

// mergeLater starts kami store merge --background for a command that made a chain
// past its limit, when all that the command was asked for is done and said.
//
// It is a process of its own, in a session of its own and without this one's
// input and output: who waits for the command, or reads what it prints, does not
// wait for the merge, and an interrupt at the terminal does not reach it. That is
// no daemon: it does one piece of work and ends, everything it does can be cut off
// and is done by the next one, and where it is never let live all is as right as
// before, with longer chains.
func (a *app) mergeLater() {
	// In a test that runs the command line in its own process there is no program
	// to be run again.
	if !slices.Equal(a.args, os.Args[1:]) {
		return
	}
	if err := startLowest("--home", a.flags.home, "--region", a.flags.region, "--quiet", "store", "merge", "--background"); err != nil {
		if a.progress != nil {
			a.progress.Note("long chains of layers are not merged in the background (%v); kami store merge does it", err)
		}
		return
	}
	if a.progress != nil {
		a.progress.Note("a long chain of layers is merged in the background")
	}
}

// startLowest starts this program again, and does not wait for it.
func startLowest(args ...string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(context.Background(), self, args...)
	cmd.Args[0] = os.Args[0]
	cmd.Dir = "/" // it keeps no folder from being unmounted
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	// The session is a process group: so all threads that it has are meant. A
	// process that is over already needs none.
	_ = syscall.Setpriority(syscall.PRIO_PGRP, cmd.Process.Pid, lowest)
	return cmd.Process.Release()
}
