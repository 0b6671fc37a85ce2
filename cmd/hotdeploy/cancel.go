package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/hotdeploy/hotdeploy/internal/api"
	"github.com/hotdeploy/hotdeploy/remote"
)

func (a *app) cancelCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "cancel [HOST]",
		Short: "Take back the upgrade in flight, whoever asked for it",
		Long: `Cancel ends the upgrade that is in flight on a host, as ^C does for one's own: what it started is ended, connections that have moved go back, and the old
release serves on. It takes effect at once, in any phase before the commit.` + exitCodes,
		Example:           `  hotdeploy cancel web-1`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: a.completeHost,
		RunE:              a.onHosts(func(ctx context.Context, h *host) error { return h.cancel(ctx) }),
	}
}

func (h *host) cancel(ctx context.Context) error {
	c, st, err := h.begin(ctx)
	if err != nil {
		return err
	}
	if st.Upgrade == nil {
		return &remote.Failure{Outcome: api.NothingChanged, Err: api.ErrNotFound.With("no upgrade is in flight"), State: remote.Serving(st),
			Hint: "see how the last one ended:  hotdeploy status " + h.name}
	}
	up, err := c.Cancel(ctx, st.Upgrade.ID)
	if err != nil {
		return err
	}
	h.answer.Upgrade = &up
	if up.Outcome == api.Done || !errors.Is(up.Error, api.ErrCancelled) { // it ended by itself first
		how := string(up.Outcome)
		if up.Error != nil {
			how += ": " + up.Error.Message
		}
		return &remote.Failure{Outcome: api.NothingChanged, Err: fmt.Errorf("too late to cancel the %s of %s: %s", up.Kind, up.To.Version, how),
			State: remote.Serving(h.now(ctx, c, st)), Hint: "to go back, type  hotdeploy rollback " + h.name}
	}
	h.tell("%s of %s by %s is cancelled, in phase %s; %s", up.Kind, up.To.Version, up.By, up.Phase, remote.Serving(h.now(ctx, c, st)))
	return nil
}

// now is the status after what was done, or the one before if it cannot be had.
func (h *host) now(ctx context.Context, c *api.Client, before api.Status) api.Status {
	st, err := c.Status(ctx)
	if err != nil {
		return before
	}
	h.answer.Status = &st
	return st
}
