package main

import (
	"context"
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/hotdeploy/hotdeploy/internal/api"
)

func (a *app) releasesCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "releases [HOST]",
		Short:             "List the releases on a host",
		Long:              `Releases lists the complete releases on the host, with what they are there for. Any of them can be rolled back to.` + readExitCodes,
		Example:           `  hotdeploy releases web-1`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: a.completeHost,
		RunE: a.onHosts(func(ctx context.Context, h *host) error {
			c, _, err := h.begin(ctx)
			if err != nil {
				return readOnly(err)
			}
			list, err := c.Releases(ctx)
			if err != nil {
				return readOnly(err)
			}
			h.answer.Releases = list
			if !h.json {
				h.printReleases(list)
			}
			return nil
		}),
	}
}

func (h *host) printReleases(list []api.ReleaseInfo) {
	if len(list) == 0 {
		h.tell("no release yet")
		return
	}
	fmt.Fprintf(h.stdout, "%s: %s of %s\n", h.name, count(len(list), "release"), h.service)
	w := tabwriter.NewWriter(h.stdout, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "RELEASE\tSTATE\tSIZE\tFILES\tARRIVED\tCOMMITTED\tDIGEST")
	for _, r := range list {
		committed := "-"
		if r.Committed != nil {
			committed = r.Committed.Local().Format(time.DateTime)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\t%s\t%.12s\n", r.Version, orDash(r.State), size(r.Bytes), r.Files,
			r.Completed.Local().Format(time.DateTime), committed, r.Digest)
	}
	w.Flush()
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
