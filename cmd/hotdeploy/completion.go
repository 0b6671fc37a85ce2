package main

import (
	"context"
	"io"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/hotdeploy/hotdeploy/internal/api"
)

// completeWithin is how long a shell waits for what only the host knows. Then it offers nothing.
const completeWithin = 3 * time.Second

// completeHost offers targets and their hosts.
func (a *app) completeHost(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	p, err := a.project()
	if len(args) > 0 || err != nil || p == nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var list []string
	for name, t := range p.Targets {
		list = append(append(list, name), t.Hosts...)
	}
	slices.Sort(list)
	return slices.Compact(list), cobra.ShellCompDirectiveNoFileComp
}

// completeVersion offers the releases on the host that the words so far mean, the newest first.
func (a *app) completeVersion(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	return a.fromHost(cmd, firstOf(args), func(ctx context.Context, c *api.Client) (list []string) {
		releases, err := c.Releases(ctx)
		if err != nil {
			return nil
		}
		for _, r := range releases {
			list = append(list, cobra.CompletionWithDesc(r.Version, orDash(r.State)))
		}
		return list
	})
}

// completeGeneration offers hosts, and then the generations there that drain.
func (a *app) completeGeneration(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
	hosts, directive := a.completeHost(cmd, args, word)
	if len(args) > 1 {
		return nil, directive
	}
	generations, _ := a.fromHost(cmd, firstOf(args), func(ctx context.Context, c *api.Client) (list []string) {
		st, err := c.Status(ctx)
		if err != nil {
			return nil
		}
		for _, g := range st.Generations {
			if g.State == api.GenDraining {
				list = append(list, cobra.CompletionWithDesc(strconv.Itoa(g.Number), g.Release.Version+", "+count(max(g.Connections, 0), "connection")))
			}
		}
		return list
	})
	return append(generations, hosts...), directive | cobra.ShellCompDirectiveKeepOrder
}

// fromHost asks the one host that arg means, shortly and without a word: whoever presses tab wants no questions and no errors.
func (a *app) fromHost(cmd *cobra.Command, arg string, ask func(context.Context, *api.Client) []string) ([]string, cobra.ShellCompDirective) {
	const directive = cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveKeepOrder
	a.completing, a.stderr = true, io.Discard
	p, err := a.project()
	if err != nil {
		return nil, directive
	}
	hosts, err := a.hosts(p, arg)
	if err != nil || len(hosts) != 1 {
		return nil, directive
	}
	ctx, stop := context.WithTimeout(cmd.Context(), completeWithin)
	defer stop()
	defer hosts[0].d.Close()
	c, _, err := hosts[0].begin(ctx)
	if err != nil {
		return nil, directive
	}
	return ask(ctx, c), directive
}
