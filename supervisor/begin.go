package supervisor

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/hotdeploy/hotdeploy/internal/api"
	"github.com/hotdeploy/hotdeploy/internal/release"
	"github.com/hotdeploy/hotdeploy/supervisor/store"
)

// upgrade is one upgrade in flight. Its goroutine walks through the phases; the loop owns the record that others see.
type upgrade struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	done   chan struct{} // closed when it has ended and s.busy is free again
	phased time.Time     // when the current phase began; used by its goroutine alone
	number int           // of the generation that it starts; likewise
	moves  bool          // it has the turn to move connections; likewise

	// owned by the loop; its goroutine, which alone changes the first three, may read them
	failed    time.Time   // when it failed, if it did
	failure   *api.Error  // and why
	gave      *generation // who gave its connections to the new one
	record    api.Upgrade
	committed bool
	text      string         // what came of the current phase
	back      *api.PhaseTime // the handing back, after a failure
}

// Why an upgrade does not begin or go on, apart from what is in package api.
var (
	errCancelled = errors.New("cancelled")
	errNotWanted = errors.New("the supervisor need not start anything")
)

// begin makes an upgrade the one in flight, or says who is at it. A restart after a crash gives way to an operator's wish.
// It waits while old releases are being removed: the one that is asked for could be among them.
func (s *Supervisor) begin(req api.UpgradeRequest) (*upgrade, error) {
	for {
		var joined *upgrade
		var wait <-chan struct{}
		var want release.Ref
		var err error
		s.do(func() {
			if joined, wait, err = s.mayBegin(req); err == nil {
				want, err = s.wanted(req)
			}
		})
		switch {
		case wait != nil:
			<-wait
			continue
		case joined != nil || err != nil:
			return joined, err
		}
		rel, err := s.load(want) // a manifest may be large, so not on the loop
		if err != nil {
			return nil, err
		}
		var u *upgrade
		s.do(func() { u = s.tryBegin(req, rel) })
		if u != nil {
			return u, nil
		}
	}
}

// mayBegin tells whether req may begin now. If not, there is an error, or one in flight that does what is asked for, or
// something to wait for before it is asked again. On the loop.
func (s *Supervisor) mayBegin(req api.UpgradeRequest) (joined *upgrade, wait <-chan struct{}, err error) {
	start := req.Kind == api.KindStart
	automatic := start || req.Kind == api.KindAutoRollback
	b := s.busy
	switch {
	case s.ctx.Err() != nil:
		return nil, nil, api.ErrStopping.With("the supervisor is stopping")
	case s.stopping != nil:
		return nil, nil, s.isBusy(s.stopping.text())
	case automatic && (!s.running() || s.serving != nil):
		return nil, nil, errNotWanted
	case b != nil && start && b.record.Kind == api.KindStart:
		return b, nil, nil
	case b != nil && b.record.Kind == api.KindStart:
		if !b.committed { // else it is as good as over
			b.cancel(errCancelled)
		}
		return nil, b.done, nil
	case b != nil:
		return nil, nil, s.isBusy(fmt.Sprintf("%s is at it: %s of %s since %s, now in phase %s", b.record.By, b.record.Kind,
			b.record.To.Version, b.record.Started.Format(time.TimeOnly), b.record.Phase))
	case s.pruning != nil && !automatic: // the committed and the previous release are never removed
		return nil, s.pruning, nil
	}
	return nil, nil, nil
}

func (s *Supervisor) isBusy(why string) error {
	e := api.ErrBusy.With(why)
	e.State, e.Hint = s.servingText(), "wait for it, or watch it: hotdeploy status --watch"
	return e
}

// wanted is the release that a request means; without a digest any of that version. On the loop.
func (s *Supervisor) wanted(req api.UpgradeRequest) (release.Ref, error) {
	if req.Version != "" {
		return release.Ref{Version: req.Version, Digest: req.Digest}, nil
	}
	ref := s.state.Committed
	if req.Kind == api.KindRollback {
		ref = s.state.Previous
	}
	if ref == nil {
		e := api.ErrNotFound.With("there is no release to go to")
		e.State, e.Hint = s.servingText(), "see what is there: hotdeploy releases"
		return release.Ref{}, e
	}
	return *ref, nil
}

func (s *Supervisor) load(want release.Ref) (*store.Release, error) {
	rel, err := s.store.Release(want.Version)
	if err != nil {
		return nil, err
	}
	if want.Digest != "" && want.Digest != rel.Digest {
		return nil, api.ErrConflict.With(fmt.Sprintf("release %s on this host has digest %.12s, not %.12s", want.Version, rel.Digest, want.Digest))
	}
	return rel, nil
}

// tryBegin begins unless something has changed since mayBegin and wanted were asked; then it returns nil. On the loop.
func (s *Supervisor) tryBegin(req api.UpgradeRequest, rel *store.Release) *upgrade {
	joined, wait, err := s.mayBegin(req)
	if joined != nil || wait != nil || err != nil {
		return nil
	}
	if want, err := s.wanted(req); err != nil || want.Version != rel.Version {
		return nil
	}
	u := &upgrade{done: make(chan struct{})}
	u.ctx, u.cancel = context.WithCancelCause(s.ctx)
	u.record = api.Upgrade{ID: newID(), Kind: req.Kind, By: req.By, To: rel.Ref, Started: time.Now(), Phase: api.PhaseVerify}
	if s.serving != nil {
		from := s.serving.rel.Ref
		u.record.From = &from
	}
	s.keeper.stopWaiting()
	s.busy = u
	s.background(func() { s.perform(u, rel) })
	return u
}

func newID() string { return strings.ToLower(rand.Text()[:10]) }
