package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hotdeploy/hotdeploy/internal/api"
)

func (a *app) historyCommand() *cobra.Command {
	var n int
	cmd := &cobra.Command{
		Use:   "history [HOST]",
		Short: "List what was deployed, by whom, and how it ended",
		Long: `History lists the upgrades of a host that have ended, the newest first: pushes, rollbacks, restarts, and starts that failed. CONNECTIONS tells of those
that moved to another generation, and why others stayed.` + readExitCodes,
		Example: `  hotdeploy history web-1
  hotdeploy history web-1 -n 100 --json`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: a.completeHost,
		RunE: a.onHosts(func(ctx context.Context, h *host) error {
			c, _, err := h.begin(ctx)
			if err != nil {
				return readOnly(err)
			}
			list, err := c.History(ctx, n)
			if err != nil {
				return readOnly(err)
			}
			h.answer.History = list
			if !h.json {
				h.printHistory(list)
			}
			return nil
		}),
	}
	cmd.Flags().IntVarP(&n, "number", "n", 20, "how many")
	return cmd
}

func (h *host) printHistory(list []api.Upgrade) {
	if len(list) == 0 {
		h.tell("nothing was deployed yet")
		return
	}
	fmt.Fprintf(h.stdout, "%s: %s\n", h.name, h.service)
	printUpgrades(h.stdout, list)
}

func printUpgrades(w io.Writer, list []api.Upgrade) {
	t := newTable(w, "BEGAN", "WHAT", "RELEASE", "BY", "TOOK", "OUTCOME", "CONNECTIONS")
	for _, up := range list {
		took := "-"
		if up.Finished != nil {
			took = fmt.Sprintf("%.1fs", up.Finished.Sub(up.Started).Seconds())
		}
		outcome := string(up.Outcome)
		if up.Error != nil {
			outcome += ": " + strings.Join(strings.Fields(up.Error.Message), " ")
		}
		t.row(up.Started.Local().Format(time.DateTime), up.Kind, up.To.Version, up.By, took, outcome, orDash(movesOf(&up)))
	}
	t.end()
}
