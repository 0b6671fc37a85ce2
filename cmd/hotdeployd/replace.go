package main

import (
	"context"
	"fmt"
	"net"
	"os/user"

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
			if err := replaceDaemon(cmd.Context(), cfg.RunDir); err != nil {
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

func replaceDaemon(ctx context.Context, runDir string) error {
	client := api.NewClient(func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", supervisor.ControlSocket(runDir))
	})
	defer client.Close()
	by := "setup"
	if u, err := user.Current(); err == nil {
		by = u.Username
	}
	_, err := client.Replace(ctx, by)
	return err
}
