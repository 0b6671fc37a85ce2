package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"

	"github.com/hotdeploy/hotdeploy/internal/api"
	"github.com/hotdeploy/hotdeploy/internal/spool"
)

// Rebuilding begins while the bundle arrives, so that little is left to do at its end, and what is of no use is noticed before all of
// it has arrived. Whatever else goes wrong, Rebuild does it again when all is there, and explains. One bundle is rebuilt at a time, for the sake of memory; Rebuild need not wait for one that
// may never arrive.

var errGivesWay = fmt.Errorf("%w: another bundle has", errCut)

// early is one rebuilding that goes on while its bundle arrives; nil: there is none.
type early struct {
	store *Store
	parts *parts
	stop  context.CancelCauseFunc
	done  chan struct{} // closed at its end; then err is set
	err   error
}

func (s *Store) beginEarly(ctx context.Context, u *upload, arriving *spool.Spool) *early {
	select {
	case s.rebuilding <- struct{}{}:
	default:
		return nil
	}
	e := &early{store: s, parts: s.newParts(u.parts), done: make(chan struct{})}
	ctx, e.stop = context.WithCancelCause(ctx)
	s.setEarly(e)
	go func() {
		defer close(e.done)
		defer s.rebuilding.give()
		defer s.setEarly(nil)
		e.err = gently(func() error {
			return s.apply(ctx, io.NewSectionReader(arriving.ReaderAt(ctx), 0, math.MaxInt64/4), u.manifest, e.parts)
		})
	}()
	return e
}

// refused tells why what has arrived so far is of no use; nil: as far as is known it is.
func (e *early) refused() error {
	if e == nil {
		return nil
	}
	select {
	case <-e.done:
		if errors.Is(e.err, api.ErrBundle) {
			return e.err
		}
	default:
	}
	return nil
}

// useful is a writer that ends when what it gets is of no use.
type useful struct {
	e *early
	w io.Writer
}

func (u useful) Write(b []byte) (int, error) {
	if err := u.e.refused(); err != nil {
		return 0, err
	}
	return u.w.Write(b)
}

// finish waits for the end if the bundle has arrived, and tells whether all parts are there.
func (e *early) finish(ctx context.Context, arrived bool) (built bool) {
	if e == nil {
		return false
	}
	if !arrived {
		e.stop(errCut)
	}
	<-e.done // it ends with ctx
	e.stop(errCut)
	defer e.parts.drop()
	if !arrived || e.err != nil || e.store.building.take(ctx) != nil {
		return false
	}
	defer e.store.building.give()
	return e.parts.commit() == nil
}

func (s *Store) setEarly(e *early) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.early = e
}

// takeRebuilding takes the turn away from a bundle that is still arriving.
func (s *Store) takeRebuilding(ctx context.Context) error {
	s.mu.Lock()
	if s.early != nil {
		s.early.stop(errGivesWay)
	}
	s.mu.Unlock()
	return s.rebuilding.take(ctx)
}
