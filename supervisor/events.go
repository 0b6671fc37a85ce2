package supervisor

import (
	"sync"
	"time"

	"github.com/hotdeploy/hotdeploy/internal/api"
)

// keptEvents is how many events a late reader may still get.
const keptEvents = 1024

// eventLog keeps the newest events and wakes whoever waits for more.
type eventLog struct {
	mu   sync.Mutex // protects the fields below; nothing blocks under it
	seq  uint64
	ring []api.Event
	more chan struct{} // closed and replaced at each event
}

func newEventLog() *eventLog { return &eventLog{more: make(chan struct{})} }

func (l *eventLog) add(e api.Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.seq++
	e.Seq, e.Time = l.seq, time.Now()
	if len(l.ring) == keptEvents {
		l.ring = append(l.ring[:0:0], l.ring[keptEvents/2:]...)
	}
	l.ring = append(l.ring, e)
	close(l.more)
	l.more = make(chan struct{})
}

// since returns the kept events after seq and a channel that is closed when there are more. A seq from the future belongs to
// an earlier daemon: it gets everything.
func (l *eventLog) since(seq uint64) ([]api.Event, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if seq > l.seq {
		seq = 0
	}
	for i, e := range l.ring {
		if e.Seq > seq {
			return append([]api.Event(nil), l.ring[i:]...), l.more
		}
	}
	return nil, l.more
}

func (l *eventLog) last() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.seq
}
