package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/hotdeploy/hotdeploy/internal/api"
)

func (a *app) stopCommand() *cobra.Command {
	var now bool
	cmd := &cobra.Command{
		Use:   "stop [HOST]",
		Short: "Stop the service; the daemon stays",
		Long: `Stop ends every generation of the service: each is told to finish, and what has not ended after its time limit is killed. The service stays
stopped, also after a restart of the daemon, until it is started or a release is pushed.` + exitCodes,
		Example: `  hotdeploy stop web-1
  hotdeploy stop web-1 --now     # waits for no connection`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: a.completeHost,
		RunE: a.onHosts(func(ctx context.Context, h *host) error {
			c, _, err := h.begin(ctx)
			if err != nil {
				return err
			}
			st, err := c.Stop(ctx, api.StopRequest{By: by(), Now: now})
			return h.nowIs(st, err)
		}),
	}
	cmd.Flags().BoolVar(&now, "now", false, "do not wait for connections")
	return cmd
}

func (a *app) startCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "start [HOST]",
		Short:             "Start a stopped service",
		Long:              `Start starts the committed release of a service that was stopped.` + exitCodes,
		Example:           `  hotdeploy start web-1`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: a.completeHost,
		RunE: a.onHosts(func(ctx context.Context, h *host) error {
			c, _, err := h.begin(ctx)
			if err != nil {
				return err
			}
			st, err := c.Start(ctx, api.StopRequest{By: by()})
			return h.nowIs(st, err)
		}),
	}
}

// nowIs reports the status after a verb.
func (h *host) nowIs(st api.Status, err error) error {
	if err != nil {
		return err
	}
	h.answer.Status = &st
	h.tell("%s", st.Text)
	return nil
}
