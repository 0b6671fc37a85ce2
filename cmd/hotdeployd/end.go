package main

import (
	"log"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hotdeploy/hotdeploy/internal/config"
	"github.com/hotdeploy/hotdeploy/internal/release"
	"github.com/hotdeploy/hotdeploy/supervisor"
)

func endCommand() *cobra.Command {
	var path, service string
	var announce, await bool
	cmd := &cobra.Command{
		Use:   "end",
		Short: "End what a supervisor left behind",
		Long: `End is what the unit calls when it is stopped and when the daemon has ended: after a stop it ends every process of the app that is left,
in order; after a crash it leaves them alone, for the next daemon to go on with.

Exit status: 0 done, 1 if something is left.`,
		Example: "  hotdeployd end --config /etc/hotdeploy/chat.toml",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			logger := log.New(cmd.ErrOrStderr(), "hotdeployd: ", 0)
			cfg, err := daemonConfig(path, service, "", "")
			if err != nil { // a service whose file is broken must be stopped too
				if cfg = guessConfig(path, service); cfg == nil {
					return err
				}
				logger.Printf("%v; going by the usual places", err)
			}
			result, ofUnit := os.LookupEnv("SERVICE_RESULT")
			switch {
			case announce:
				return supervisor.Announce(*cfg)
			case await:
				return supervisor.Await(cmd.Context(), *cfg, logger)
			case ofUnit && result != supervisor.ResultSuccess && !supervisor.Announced(*cfg):
				logger.Printf("the supervisor ended (%s); what it ran goes on, for the next one", result)
				self, err := os.Executable()
				if err != nil {
					return err
				}
				return supervisor.LeaveBehind(cmd.Context(), *cfg, []string{self, "end", "--await", "--config", path, "--service", service})
			}
			return supervisor.End(cmd.Context(), *cfg, logger)
		},
	}
	cmd.Flags().StringVar(&path, "config", "", "the daemon's file (default /etc/hotdeploy/SERVICE.toml)")
	cmd.Flags().StringVar(&service, "service", "", "the service, if there is no file")
	cmd.Flags().BoolVar(&announce, "announce", false, "only note that the service is about to be stopped")
	cmd.Flags().BoolVar(&await, "await", false, "only if the unit is stopped before a daemon comes back")
	return cmd
}

// guessConfig is what setup would have written; nil if not even the service is known.
func guessConfig(path, service string) *config.Daemon {
	if service == "" {
		service = strings.TrimSuffix(filepath.Base(path), ".toml")
	}
	if release.CheckService(service) != nil {
		return nil
	}
	return config.NewDaemon(service)
}
