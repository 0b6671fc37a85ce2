package load

import (
	"context"
	"time"
)

// minTick bounds how often a pacer wakes: what falls due meanwhile goes out
// together, which keeps a thousand senders cheap.
const minTick = 2 * time.Millisecond

// pace calls due with how many events have fallen due since it was called last,
// one event each time every passes, until ctx ends. late is how much later than
// planned the pacer woke: the machine's own delay, not the server's.
func pace(ctx context.Context, every time.Duration, due func(n int, late time.Duration)) {
	began := time.Now()
	tick := time.NewTicker(max(every, minTick))
	defer tick.Stop()
	done := 0
	for {
		select {
		case <-ctx.Done():
			return
		case planned := <-tick.C:
			now := time.Now()
			n := int(now.Sub(began)/every) - done
			done += n
			due(n, now.Sub(planned))
		}
	}
}
