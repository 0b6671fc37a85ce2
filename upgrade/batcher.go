package upgrade

import (
	"context"
	"slices"
	"sync"
	"time"
)

// batcher collects what many goroutines have for one that wants much at a time. Things wait for others to go along with, but not for long.
type batcher[T any] struct {
	wake chan struct{} // has room for one

	mu       sync.Mutex // protects what follows; may be taken with any other lock held
	list     []T
	expected int // so many more will come, sooner or later
	over     bool
}

const (
	batchEnough = 64
	batchTime   = 500 * time.Microsecond
)

func (b *batcher[T]) init() { b.wake = make(chan struct{}, 1) }

// expect says that n more will come.
func (b *batcher[T]) expect(n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.expected += n
}

// add says false if nobody takes anything any more.
func (b *batcher[T]) add(x T) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.over {
		return false
	}
	b.list = append(b.list, x)
	b.expected--
	if n := len(b.list); n == 1 || n == batchEnough || b.expected == 0 {
		select {
		case b.wake <- struct{}{}:
		default:
		}
	}
	return true
}

// next waits and returns what there is; nil: ctx has ended. The room is used again.
func (b *batcher[T]) next(ctx context.Context, room []T) []T {
	var late <-chan time.Time
	for {
		select {
		case <-b.wake:
		case <-late:
			return b.take(room)
		case <-ctx.Done():
			return nil
		}
		b.mu.Lock()
		n, ready := len(b.list), len(b.list) >= batchEnough || b.expected <= 0
		b.mu.Unlock()
		if n > 0 && ready {
			return b.take(room)
		}
		if n > 0 && late == nil {
			timer := time.NewTimer(batchTime)
			defer timer.Stop()
			late = timer.C
		}
	}
}

func (b *batcher[T]) take(room []T) []T {
	b.mu.Lock()
	defer b.mu.Unlock()
	list := b.list
	clear(room)
	b.list = room[:0]
	return list
}

// end returns what is left: nobody takes anything any more.
func (b *batcher[T]) end() []T {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.over = true
	return slices.Clip(b.list)
}
