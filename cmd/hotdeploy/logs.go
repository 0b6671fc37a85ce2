package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/hotdeploy/hotdeploy/internal/api"
	"github.com/hotdeploy/hotdeploy/remote"
)

func (a *app) logsCommand() *cobra.Command {
	var q api.LogQuery
	cmd := &cobra.Command{
		Use:   "logs [HOST]",
		Short: "Show the app's output",
		Long: `Logs shows what the service's generations wrote, and what the daemon said of them: from the host's journal, or from the daemon where there
is no journal. -f goes on with what comes, until ^C.` + readExitCodes,
		Example: `  hotdeploy logs web-1 -f
  hotdeploy logs web-1 --release 1.4.2 --lines 200`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: a.completeHost,
		RunE: runs(func(cmd *cobra.Command, args []string) error {
			p, err := a.project()
			if err != nil {
				return err
			}
			hosts, err := a.hosts(p, firstOf(args))
			if err != nil {
				return err
			}
			h, err := only(hosts)
			if err != nil {
				return err
			}
			err = a.one(h, func(h *host) error { return h.logs(cmd.Context(), q) })
			if q.Follow && cmd.Context().Err() != nil {
				return nil // ^C is how following ends
			}
			return err
		}),
	}
	cmd.Flags().BoolVarP(&q.Follow, "follow", "f", false, "go on with what comes")
	cmd.Flags().StringVar(&q.Release, "release", "", "only the output of this release")
	cmd.RegisterFlagCompletionFunc("release", a.completeVersion)
	cmd.Flags().IntVarP(&q.Lines, "lines", "n", 100, "how many lines of the past")
	return cmd
}

func (h *host) logs(ctx context.Context, q api.LogQuery) error {
	c, st, err := h.begin(ctx)
	line := h.d.Line()
	switch {
	case err == nil && !st.Daemon.Journal:
		return readOnly(c.Logs(ctx, q, h.stdout))
	case err != nil && line == nil:
		return err // not even SSH
	case err != nil:
		h.say("%v; what the journal has:", err) // a daemon that is down is a good reason to look
	}
	return remote.Logs(ctx, line.Session, remote.LogSource{Name: h.name, Service: h.service, Unit: st.Daemon.Unit}, q, h.stdout)
}
