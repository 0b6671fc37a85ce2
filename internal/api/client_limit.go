package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"
)

// How long a client waits. A daemon that is stuck must not hold whoever asks it.
const (
	answerWithin = 20 * time.Second // for what is answered at once
	aliveEvery   = 10 * time.Second // during what takes its time the daemon is asked something else
	missedBeats  = 4                // of a stream, and nobody is there any more
)

// BeatHeader tells, in an answer that is a stream of lines, after how many seconds without an event an empty line comes.
const BeatHeader = "Hotdeploy-Beat"

func silent(d time.Duration) error { return fmt.Errorf("%w: nothing came for %s", ErrSilent, d) }

// limit is for what is answered at once.
func (c *Client) limit(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, c.within, silent(c.within))
}

// attend is for what takes its time: the context ends when the daemon does not answer other questions either. Call stop when it is done.
func (c *Client) attend(ctx context.Context) (_ context.Context, stop func()) {
	return c.attendTo(ctx, nil, 1)
}

// attendTo asks only while nothing moves, since a question waits behind what the line has still to carry, and gives up after that many that
// were not answered.
func (c *Client) attendTo(ctx context.Context, moves func() bool, questions int) (_ context.Context, stop func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	done := make(chan struct{})
	go func() { // ends with ctx
		defer close(done)
		tick := time.NewTicker(c.every)
		defer tick.Stop()
		unanswered := 0
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			if moves != nil && moves() {
				unanswered = 0
				continue
			}
			if _, err := c.Status(ctx); !errors.Is(err, ErrSilent) {
				unanswered = 0
			} else if unanswered++; unanswered == questions {
				cancel(silent(time.Duration(questions) * c.within))
				return
			}
		}
	}()
	return ctx, func() { cancel(nil); <-done }
}

// causeOf is why a request failed: err, unless ctx was ended for want of an answer.
func causeOf(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); err != nil && errors.Is(cause, ErrSilent) {
		return cause
	}
	return err
}

// silenceOf is for how long nothing may come of a stream. A daemon that does not say how often it beats may be silent for ever.
func silenceOf(res *http.Response) time.Duration {
	const ever = 1 << 62
	seconds, err := strconv.Atoi(res.Header.Get(BeatHeader))
	if err != nil || seconds < 1 || seconds > 3600 {
		return ever
	}
	return missedBeats * time.Duration(seconds) * time.Second
}
