package main

import (
	"fmt"
	"runtime"

	"github.com/spf13/cobra"

	"github.com/hotdeploy/hotdeploy/internal/version"
)

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "version [HOST]",
		Short:             "Print the version of this command, and of the daemon on a host",
		Long:              `Version prints the version of this command. With a host it prints that of the service's daemon there, too.` + readExitCodes,
		Example:           "  hotdeploy version\n  hotdeploy version web-1",
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: a.completeHost,
		RunE: runs(func(cmd *cobra.Command, args []string) error {
			a.answer.wanted, a.answer.Version = true, version.String()
			if !a.json {
				fmt.Fprintf(a.stdout, "hotdeploy %s (%s/%s)\n", version.String(), runtime.GOOS, runtime.GOARCH)
			}
			if len(args) == 0 {
				return nil
			}
			p, err := a.project()
			if err != nil {
				return err
			}
			hosts, err := a.hosts(p, args[0])
			if err != nil {
				return err
			}
			return a.each(hosts, func(h *host) error {
				_, st, err := h.begin(cmd.Context())
				if err != nil {
					return readOnly(err)
				}
				h.answer.Daemon = st.Daemon.Version
				h.tell("hotdeployd %s (%s/%s), up since %s", st.Daemon.Version, st.Daemon.OS, st.Daemon.Arch, st.Daemon.Started.Local().Format("2006-01-02 15:04:05"))
				return nil
			})
		}),
	}
}
