package main

import (
	"context"
	"sync"
	"time"

	"github.com/hotdeploy/hotdeploy/internal/api"
	"github.com/hotdeploy/hotdeploy/internal/release"
	"github.com/hotdeploy/hotdeploy/remote"
)

// takeBackTimeout is for what a daemon answers at once, unless the line is dead.
const takeBackTimeout = 5 * time.Second

// pushOrTakeBack is push, and leaves nothing of a release behind for which no upgrade began.
func (h *host) pushOrTakeBack(ctx context.Context, rel *release.Packed, delivered bool) error {
	err := h.push(ctx, rel)
	if err == nil || !h.notBegun(err) {
		return err
	}
	if left := h.discard(rel); left != nil && delivered {
		h.sayItStays(left)
	}
	return err
}

// takeBack is for hosts whose turn never came, because another host failed before: what was brought there goes. It closes their lines.
func (a *app) takeBack(hosts []*host, failed map[*host]error, rel *release.Packed) {
	errs := make([]error, len(hosts))
	var wg sync.WaitGroup
	for i, h := range hosts {
		wg.Go(func() {
			errs[i] = h.discard(rel)
			h.d.Close()
		})
	}
	wg.Wait()
	for i, h := range hosts {
		switch {
		case failed[h] != nil:
			f := remote.Explain(h.name, failed[h])
			h.answer.Error = newAnswerError(f.Error(), f.State, f.Hint, f)
			h.say("nothing was changed; the release did not arrive: %v", failed[h])
		case errs[i] != nil:
			h.sayItStays(errs[i])
		default:
			h.say("nothing was changed: the upgrade to %s was not begun", rel.Manifest.Version)
		}
	}
}

// discard does not end with the verb's context, which ^C may have ended. A second ^C ends it.
func (h *host) discard(rel *release.Packed) error {
	ctx, stop := context.WithTimeout(h.leave, takeBackTimeout)
	defer stop()
	return h.d.Discard(ctx, rel.Digest)
}

func (h *host) sayItStays(err error) {
	h.say("what is serving was not changed, but the release that was uploaded may stay on the host: %v", err)
}

// notBegun tells whether a push failed before the host was asked for the upgrade.
func (h *host) notBegun(err error) bool {
	return h.answer.Upgrade == nil && remote.Explain(h.name, err).Outcome == api.NothingChanged
}
