package main

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/spf13/cobra"

	"github.com/hotdeploy/hotdeploy/internal/api"
	"github.com/hotdeploy/hotdeploy/internal/config"
	"github.com/hotdeploy/hotdeploy/internal/release"
	"github.com/hotdeploy/hotdeploy/remote"
)

func (a *app) pushCommand() *cobra.Command {
	var version, dir string
	cmd := &cobra.Command{
		Use:   "push [HOST]",
		Short: "Bring a release to a host and make it serve",
		Long: `Push packs the project (or takes a packed release), sends the host what it lacks, and has the release started beside the one that
serves. The new one is watched for a while; if it fails, the old one goes on as if nothing had been.

^C cancels: the outcome tells on which side of the switch it was caught. A second ^C leaves the upgrade to go on by itself.` + exitCodes,
		Example: `  hotdeploy push web-1
  hotdeploy push production --version 1.4.2
  hotdeploy push web-1 --release .hotdeploy/chat-1.4.2`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: a.completeHost,
		RunE: runs(func(cmd *cobra.Command, args []string) error {
			if dir != "" && version != "" {
				return &usageError{errors.New("a packed release has its version: leave out --version"), ""}
			}
			return a.push(cmd.Context(), firstOf(args), version, dir)
		}),
	}
	cmd.Flags().StringVar(&version, "version", "", "the release's version (default: what git says)")
	cmd.Flags().StringVar(&dir, "release", "", "a release that hotdeploy pack wrote")
	return cmd
}

func (a *app) push(ctx context.Context, arg, version, dir string) error {
	p, err := a.project()
	if err != nil {
		return err
	}
	var rel *release.Packed
	var packErr error
	if dir != "" {
		if rel, packErr = release.Load(ctx, dir); packErr == nil && a.service == "" && p == nil {
			a.service = rel.Manifest.Service
		}
	} else {
		rel, packErr = a.pack(ctx, p, version)
	}
	hosts, err := a.hosts(p, arg)
	if err != nil {
		return err
	}
	if packErr != nil {
		return a.each(hosts, func(h *host) error { return h.notPacked(ctx, packErr) })
	}
	return a.pushTo(ctx, hosts, rel)
}

// pushTo brings a release to all hosts at the same time and then makes it serve on one after another.
func (a *app) pushTo(ctx context.Context, hosts []*host, rel *release.Packed) error {
	l, err := a.library(ctx)
	if err != nil {
		hosts[0].say("warning: %v; what is sent is compressed only", err)
	}
	if l != nil {
		defer l.Close()
	}
	bundler := remote.NewBundler(ctx, rel, l)
	defer bundler.Close()
	bundler.Guess()
	keep := newKeeper(l, rel)
	for _, h := range hosts {
		h.d.Bundler = bundler
		h.d.Report.Transfer = func(t remote.Transfer) {
			if h.told.transfer(t); t.Ended {
				keep.begin(ctx)
			}
		}
	}
	failed := a.deliver(ctx, hosts, rel)
	turn := 0
	err = a.each(hosts, func(h *host) error {
		turn++
		if failed[h] != nil {
			h.discard(rel) // it may be there all the same: only the answer was lost
			return failed[h]
		}
		return h.pushOrTakeBack(ctx, rel, len(hosts) > 1)
	})
	if err == nil {
		keep.begin(ctx)
	} else {
		a.takeBack(hosts[turn:], failed, rel)
	}
	if kept := keep.end(); kept != nil && err == nil {
		hosts[0].say("warning: %v", kept)
	}
	return err
}

// deliver brings a release to several hosts at the same time. What went wrong matters when it is a host's turn.
func (a *app) deliver(ctx context.Context, hosts []*host, rel *release.Packed) map[*host]error {
	if len(hosts) == 1 {
		return nil // push does it
	}
	errs := make([]error, len(hosts))
	for i, h := range hosts { // one after another: somebody may have to type a passphrase
		_, _, errs[i] = h.begin(ctx)
	}
	var wg sync.WaitGroup
	for i, h := range hosts {
		if errs[i] == nil {
			wg.Go(func() {
				errs[i] = h.d.Deliver(ctx, rel)
				h.told.finish() // its bar is not to wait for its turn, which may never come
			})
		}
	}
	wg.Wait()
	failed := map[*host]error{}
	for i, h := range hosts {
		failed[h] = errs[i]
	}
	return failed
}

// notPacked tells, besides what is wrong with the project, what goes on serving.
func (h *host) notPacked(ctx context.Context, err error) error {
	var usage *usageError
	if errors.As(err, &usage) || ctx.Err() != nil {
		return err
	}
	f := &remote.Failure{Outcome: api.NothingChanged, Err: err, State: "nothing was sent", Hint: "correct it, and push again"}
	if _, st, err := h.begin(ctx); err == nil {
		f.State = remote.Serving(st) + "; nothing was sent"
	}
	return f
}

func (h *host) push(ctx context.Context, rel *release.Packed) error {
	m := rel.Manifest
	h.say("pushing %s %s (%s, %s)", m.Service, m.Version, count(len(m.Files), "file"), size(rel.TotalBytes()))
	res, err := h.d.Push(ctx, rel)
	return h.upgraded(res, err)
}

// upgraded reports how a push, a rollback or a restart ended.
func (h *host) upgraded(res remote.Result, err error) error {
	h.told.finish()
	h.answer.Already, h.answer.Status, h.answer.SentBytes = res.Already, res.Status, res.Transfer.Done-res.Transfer.Resumed
	if res.Upgrade.ID != "" {
		h.answer.Upgrade = &res.Upgrade
	}
	if err != nil {
		f := remote.Explain(h.name, err)
		if f.Hint == "" && !errors.Is(f, api.ErrCancelled) {
			f.Hint = "correct it, and push again"
		}
		return f
	}
	if res.Already {
		h.tell("%s is already serving", res.Status.Committed.Version)
		return nil
	}
	h.tell("%s", closing(res))
	return nil
}

// closing is what a done upgrade means to those who are connected.
func closing(res remote.Result) string {
	text := fmt.Sprintf("%s is serving (generation %d)", res.Upgrade.To.Version, res.Upgrade.Generation)
	if h := res.Upgrade.Handoff; h != nil && h.Moved > 0 {
		text += ", " + count(h.Moved, "connection") + " moved"
	}
	if res.Status == nil {
		return text
	}
	older, connections, known := 0, 0, true
	for _, g := range res.Status.Generations {
		if g.State != api.GenDraining {
			continue
		}
		older++
		connections += max(g.Connections, 0)
		known = known && g.Connections >= 0
	}
	switch {
	case older == 0, known && connections == 0:
		return text
	case !known:
		return fmt.Sprintf("%s, connections finish in %s", text, count(older, "older generation"))
	case connections == 1:
		return text + ", 1 connection finishes in " + count(older, "older generation")
	}
	return fmt.Sprintf("%s, %d connections finish in %s", text, connections, count(older, "older generation"))
}

// pack packs the project in memory: its files stay where they are.
func (a *app) pack(ctx context.Context, p *config.Project, version string) (*release.Packed, error) {
	if p == nil {
		return nil, &usageError{fmt.Errorf("%w: there is nothing to pack", config.ErrNoProject), "go to the app's project, or push a packed release with  --release DIR"}
	}
	if version == "" {
		var err error
		if version, err = release.GitVersion(ctx, p.Dir); err != nil {
			return nil, &usageError{err, "give a version with  --version V"}
		}
	}
	return release.Pack(ctx, release.PackOptions{Dir: p.Dir, Service: p.Service, Version: version,
		Files: p.Pack.Files, Exclude: p.Pack.Exclude, Spec: p.Spec})
}
