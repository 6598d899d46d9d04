package cli

import (
	"fmt"
	"runtime/debug"

	"github.com/spf13/cobra"
)

func (a *app) version() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Say which kami this is", Args: args(0, 0), ValidArgsFunction: cobra.NoFileCompletions, PersistentPreRunE: unsettled, Example: "  kami version",
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
