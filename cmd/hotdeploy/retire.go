package main

import (
	"fmt"
	"strconv"

	"github.com/spf13/cobra"
)

func (a *app) retireCommand() *cobra.Command {
	var atOnce bool
	cmd := &cobra.Command{
		Use:   "retire [HOST] GENERATION",
		Short: "End one draining generation",
		Long: `Retire ends an old generation that still has connections: what the serving release can have moves there, and the others are closed, spread over the
time that the release allows for that, or with --now all at once. The numbers are in the status.` + exitCodes,
		Example: `  hotdeploy retire web-1 7
  hotdeploy retire web-1 7 --now`,
		Args:              cobra.RangeArgs(1, 2),
		ValidArgsFunction: a.completeGeneration,
		RunE: runs(func(cmd *cobra.Command, args []string) error {
			n, err := strconv.Atoi(args[len(args)-1])
			if err != nil || n < 1 {
				return &usageError{fmt.Errorf("%q is not the number of a generation", args[len(args)-1]), "see the numbers with  hotdeploy status"}
			}
			p, err := a.project()
			if err != nil {
				return err
			}
			hosts, err := a.hosts(p, firstOf(args[:len(args)-1]))
			if err != nil {
				return err
			}
			h, err := only(hosts)
			if err != nil {
				return err
			}
			return a.each([]*host{h}, func(h *host) error { return h.retire(cmd, n, atOnce) })
		}),
	}
	cmd.Flags().BoolVar(&atOnce, "now", false, "close its connections all at once")
	return cmd
}

func (h *host) retire(cmd *cobra.Command, n int, atOnce bool) error {
	c, _, err := h.begin(cmd.Context())
	if err != nil {
		return err
	}
	if err := c.Retire(cmd.Context(), n, atOnce); err != nil {
		return err
	}
	h.answer.Generation = n
	h.tell("generation %d is ending", n)
	return nil
}
