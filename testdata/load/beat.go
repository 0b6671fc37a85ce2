package load

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// mark is somebody waiting for progress beyond a point.
type mark struct {
	beyond int64
	done   chan struct{}
}

// fire tells the marks that at is beyond theirs, and returns the others.
func fire(marks []mark, at int64) []mark {
	left := marks[:0]
	for _, m := range marks {
		if at > m.beyond {
			close(m.done)
		} else {
			left = append(left, m)
		}
	}
	return left
}

// errStopped: no more progress will come.
var errStopped = errors.New("load: stopped")

// Beat waits until everything has shown once more that it works: each open
// WebSocket had an echo of a message that was sent after the call, and a new
// connection made after the call has ended, well or not. What went wrong
// meanwhile is in the report; an error here means that the wait was cut short.
func (l *Load) Beat(ctx context.Context) error {
	var marks []mark
	for _, s := range l.sockets {
		marks = append(marks, s.mark())
	}
	if l.opts.NewConnsPerSecond > 0 {
		marks = append(marks, l.requests.mark())
	}
	for i, m := range marks {
		select {
		case <-m.done:
		case <-l.ctx.Done():
			return errStopped
		case <-ctx.Done():
			return fmt.Errorf("load: waiting for a sign of life, %d of %d had theirs: %w", i, len(marks), context.Cause(ctx))
		}
	}
	return nil
}

// mark is done at the echo of a message sent from now on, or at the end.
func (s *socket) mark() mark {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := mark{beyond: s.check.sent + 1, done: make(chan struct{})}
	if s.state != open && s.state != opening {
		close(m.done)
		return m
	}
	s.marks = append(s.marks, m)
	return m
}

// mark is done when a request ends that began from now on.
func (r *requests) mark() mark {
	r.mu.Lock()
	defer r.mu.Unlock()
	m := mark{beyond: int64(time.Since(r.began)), done: make(chan struct{})}
	r.marks = append(r.marks, m)
	return m
}
