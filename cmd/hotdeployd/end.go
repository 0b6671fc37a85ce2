package main

import (
	"fmt"
	"log"
	"os"
	"os/exec"
	"syscall"

	"github.com/spf13/cobra"

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
			cfg, err := daemonConfig(path, service, "", "")
			if err != nil {
				return err
			}
			logger := log.New(cmd.ErrOrStderr(), "hotdeployd: ", 0)
			result, ofUnit := os.LookupEnv("SERVICE_RESULT")
			switch {
			case announce:
				return supervisor.Announce(*cfg)
			case await:
				return supervisor.Await(cmd.Context(), *cfg, logger)
			case ofUnit && result != supervisor.ResultSuccess && !supervisor.Announced(*cfg):
				logger.Printf("the supervisor ended (%s); what it ran goes on, for the next one", result)
				return leaveBehind(path, service)
			}
			return supervisor.End(cmd.Context(), *cfg, logger)
		},
	}
	cmd.Flags().StringVar(&path, "config", "", "the daemon's file (default /etc/hotdeploy/SERVICE.toml)")
	cmd.Flags().StringVar(&service, "service", "", "the service, if there is no file")
	cmd.Flags().BoolVar(&announce, "announce", false, "only note that the service is about to be stopped")
	cmd.Flags().BoolVar(&await, "await", false, "only if no daemon comes back")
	return cmd
}

// leaveBehind starts a process that waits for the next daemon when we have ended.
func leaveBehind(path, service string) error {
	cmd := exec.Command("/proc/self/exe", "end", "--await", "--config", path, "--service", service)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("wait for the next daemon: %w", err)
	}
	return cmd.Process.Release()
}
