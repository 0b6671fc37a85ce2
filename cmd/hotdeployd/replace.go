package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os/user"
	"time"

	"github.com/spf13/cobra"

	"github.com/hotdeploy/hotdeploy/internal/api"
	"github.com/hotdeploy/hotdeploy/supervisor"
)

func replaceCommand() *cobra.Command {
	var path, service string
	cmd := &cobra.Command{
		Use:   "replace",
		Short: "Let the running daemon make way for the binary that is installed now",
		Long: `Replace starts the installed daemon beside the running one. It must prove that it can go on with everything that runs; then the old one
ends. The app and its connections notice nothing. If it cannot, nothing has changed, and the error tells why.

Exit status: 0 done, 1 nothing has changed.`,
		Example: "  sudo hotdeployd replace --service chat",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := daemonConfig(path, service, "", "")
			if err != nil {
				return err
			}
			if err := replaceDaemon(cmd.Context(), cfg.RunDir, replaceLimit); err != nil {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), "the daemon was replaced; the app runs on")
			return err
		},
	}
	cmd.Flags().StringVar(&path, "config", "", "the daemon's file (default /etc/hotdeploy/SERVICE.toml)")
	cmd.Flags().StringVar(&service, "service", "", "the service, if there is no file")
	return cmd
}

// replaceLimit is how long whoever asks waits for a daemon that answers other questions, but not this one.
const replaceLimit = 2 * supervisor.ReplaceWithin

func replaceDaemon(ctx context.Context, runDir string, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	client := api.NewClient(func(ctx context.Context) (net.Conn, error) {
		return supervisor.DialControl(ctx, supervisor.ControlSocket(runDir))
	})
	defer client.Close()
	by := "setup"
	if u, err := user.Current(); err == nil {
		by = u.Username
	}
	_, err := client.Replace(ctx, by)
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() != nil {
		return fmt.Errorf("the running daemon has not made way within %s, and may still do so: %w", limit, err)
	}
	return err
}
