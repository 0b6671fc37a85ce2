package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/hotdeploy/hotdeploy/internal/api"
	"github.com/hotdeploy/hotdeploy/remote"
)

func (a *app) restartCommand() *cobra.Command {
	var daemon bool
	cmd := &cobra.Command{
		Use:   "restart [HOST]",
		Short: "Start the committed release anew, without a gap",
		Long: `Restart starts the committed release once more beside itself: connections finish in the old process, new ones come to the new one. With
--daemon it restarts the daemon's unit instead, so that a newly installed daemon runs. That ends the app: connections close.` + exitCodes,
		Example: `  hotdeploy restart web-1
  hotdeploy restart --daemon web-1     # connections close`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: a.completeHost,
		RunE: a.onHosts(func(ctx context.Context, h *host) error {
			if daemon {
				return h.restartDaemon(ctx)
			}
			res, err := h.d.Upgrade(ctx, api.UpgradeRequest{Kind: api.KindRestart})
			return h.upgraded(res, err)
		}),
	}
	cmd.Flags().BoolVar(&daemon, "daemon", false, "restart the daemon's unit; connections close")
	return cmd
}

func (h *host) restartDaemon(ctx context.Context) error {
	s, err := h.dial(ctx)
	if err != nil {
		return err
	}
	defer s.Close()
	h.say("restarting the daemon of %s: its connections close", h.service)
	if err := remote.RestartDaemon(ctx, s, h.service); err != nil {
		f := remote.Explain(h.name, err)
		f.Hint = "see why with  ssh " + h.name + " systemctl status " + h.service
		return f
	}
	_, st, err := h.begin(ctx)
	if err != nil {
		return err
	}
	h.answer.Status = &st
	h.tell("the daemon is %s; %s", st.Daemon.Version, st.Text)
	return nil
}
