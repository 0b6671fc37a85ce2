package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/hotdeploy/hotdeploy/internal/api"
)

func (a *app) rollbackCommand() *cobra.Command {
	var to string
	cmd := &cobra.Command{
		Use:   "rollback [HOST]",
		Short: "Go back to the release before, or to a version",
		Long: `Rollback makes a release serve that is on the host already: the one that was committed before, or the version given. It is an
upgrade like any other: connections finish where they are, and a release that fails is taken back.` + exitCodes,
		Example: `  hotdeploy rollback web-1
  hotdeploy rollback web-1 --to 1.4.1`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: a.completeHost,
		RunE: a.onHosts(func(ctx context.Context, h *host) error {
			res, err := h.d.Upgrade(ctx, api.UpgradeRequest{Kind: api.KindRollback, Version: to})
			return h.upgraded(res, err)
		}),
	}
	cmd.Flags().StringVar(&to, "to", "", "the version (default: the one before)")
	cmd.RegisterFlagCompletionFunc("to", a.completeVersion)
	return cmd
}
