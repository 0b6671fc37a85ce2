package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/hotdeploy/hotdeploy/internal/api"
	"github.com/hotdeploy/hotdeploy/internal/library"
)

func (a *app) releasesCommand() *cobra.Command {
	var local bool
	onHosts := a.onHosts(a.listReleases)
	cmd := &cobra.Command{
		Use:   "releases [HOST]",
		Short: "List the releases on a host, or those kept on this side",
		Long: `Releases lists the complete releases on the host, with what they are there for. Any of them can be rolled back to.

With --local it lists those that are kept on this side, see --store: the next push computes a delta from one of them. They are removed
when they were not used for 60 days, or beyond 5 GB.` + readExitCodes,
		Example: `  hotdeploy releases web-1
  hotdeploy releases --local`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: a.completeHost,
		RunE: func(cmd *cobra.Command, args []string) error {
			if !local {
				return onHosts(cmd, args)
			}
			if len(args) > 0 {
				return &usageError{errors.New("--local is about this side: leave out HOST"), ""}
			}
			return runs(func(cmd *cobra.Command, _ []string) error { return a.listLocal(cmd.Context()) })(cmd, args)
		},
	}
	cmd.Flags().BoolVar(&local, "local", false, "list what is kept on this side")
	return cmd
}

func (a *app) listReleases(ctx context.Context, h *host) error {
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
}

func (a *app) listLocal(ctx context.Context) error {
	l, err := a.library(ctx)
	if err != nil {
		return err
	}
	list := []library.Info{}
	if l != nil {
		defer l.Close()
		if list, err = l.List(); err != nil {
			return err
		}
	}
	a.answer.wanted, a.answer.Local = true, &list
	if a.json {
		return nil
	}
	t := newTable(a.stdout, "SERVICE", "RELEASE", "SIZE", "FILES", "USED", "DIGEST")
	for _, r := range list {
		t.row(r.Service, r.Version, size(r.Bytes), r.Files, r.Used.Local().Format(time.DateTime), shortened(r.Digest))
	}
	t.end()
	return nil
}

func (h *host) printReleases(list []api.ReleaseInfo) {
	if len(list) == 0 {
		h.tell("no release yet")
		return
	}
	fmt.Fprintf(h.stdout, "%s: %s of %s\n", h.name, count(len(list), "release"), h.service)
	t := newTable(h.stdout, "RELEASE", "STATE", "SIZE", "FILES", "ARRIVED", "COMMITTED", "DIGEST")
	for _, r := range list {
		committed := "-"
		if r.Committed != nil {
			committed = r.Committed.Local().Format(time.DateTime)
		}
		t.row(r.Version, orDash(r.State), size(r.Bytes), r.Files, r.Completed.Local().Format(time.DateTime), committed, shortened(r.Digest))
	}
	t.end()
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
