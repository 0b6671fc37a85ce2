package supervisor

import (
	"context"
	"slices"
	"sync"
)

// followers are those who wait for more of a stream.
type followers struct {
	mu  sync.Mutex // protects all; nothing blocks under it
	all []*context.CancelFunc
}

// join ends the oldest if there are too many. The context ends with ctx, or when it is this one's turn to go; call leave when it has gone.
func (f *followers) join(ctx context.Context) (_ context.Context, leave func()) {
	ctx, cancel := context.WithCancel(ctx)
	mine := &cancel
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.all = append(f.all, mine); len(f.all) > maxStreams {
		(*f.all[0])()
		f.all = f.all[1:]
	}
	return ctx, func() {
		cancel()
		f.mu.Lock()
		defer f.mu.Unlock()
		f.all = slices.DeleteFunc(f.all, func(other *context.CancelFunc) bool { return other == mine })
	}
}
