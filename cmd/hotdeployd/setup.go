package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/hotdeploy/hotdeploy/internal/api"
	"github.com/hotdeploy/hotdeploy/systemd"
)

func setupCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "setup",
		Short: "Make user, folders and unit of a service, as root",
		Long: `Setup reads what is wanted as JSON on standard input, changes what differs and says what, a line each. It never restarts a
running service, but lets its daemon make way for this one, which the app does not notice. It is what hotdeploy setup runs on the host.

Exit status: 0 done, or nothing to change; 1 if something could not be done.`,
		Example: "  hotdeploy setup root@web-1",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			spec, err := systemd.DecodeSetupSpec(cmd.InOrStdin())
			if err != nil {
				return err
			}
			report, err := systemd.Setup(cmd.Context(), spec, func(ctx context.Context) error { return makeWay(ctx, spec.WithDefaults().ConfigPath) })
			if err != nil && len(report.Changes) == 0 && report.NotReplaced == "" {
				return err
			}
			for _, line := range report.Lines() {
				fmt.Fprintln(cmd.OutOrStdout(), line)
			}
			return err
		},
	}
}

// makeWay lets the daemon of that configuration make way for the one that is installed.
func makeWay(ctx context.Context, configPath string) error {
	cfg, err := loadConfig(configPath, "")
	if err != nil {
		return err
	}
	return forSetup(replaceDaemon(ctx, cfg.RunDir, replaceLimit))
}

// forSetup says what an answer means: only who says that nothing has changed is taken at his word.
func forSetup(err error) error {
	var said *api.Error
	switch {
	case err == nil, errors.Is(err, api.ErrNotSent):
		return err
	case errors.Is(err, api.ErrNotFound):
		return systemd.ErrTooOld
	case errors.As(err, &said) && !errors.Is(err, api.ErrInternal): // with ErrInternal the old one may be about to end
		return err
	}
	return fmt.Errorf("%w: %w", systemd.ErrUnanswered, err)
}
