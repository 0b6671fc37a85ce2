package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/hotdeploy/hotdeploy/systemd"
)

func setupCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "setup",
		Short: "Make user, folders and unit of a service, as root",
		Long: `Setup reads what is wanted as JSON on standard input, changes what differs and says what, a line each. It never restarts a
running service. It is what hotdeploy setup runs on the host.

Exit status: 0 done, or nothing to change; 1 if something could not be done.`,
		Example: "  hotdeploy setup root@web-1",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			spec, err := systemd.DecodeSetupSpec(cmd.InOrStdin())
			if err != nil {
				return err
			}
			report, err := systemd.Setup(cmd.Context(), spec)
			if err != nil && len(report.Changes) == 0 {
				return err
			}
			for _, line := range report.Lines() {
				fmt.Fprintln(cmd.OutOrStdout(), line)
			}
			return err
		},
	}
}
