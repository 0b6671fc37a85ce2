package supervisor

import (
	"sync"
	"time"
)

// seldom logs what others can make happen as often as they like: once in a while, with how often it was not told in between.
type seldom struct {
	to    func(string, ...any)
	every time.Duration

	mu     sync.Mutex // protects the fields below
	told   time.Time
	untold int
}

func (l *seldom) logf(format string, args ...any) {
	if more, tell := l.count(); !tell {
		return
	} else if more > 0 {
		format, args = format+" (and %d times something like it before)", append(args, more)
	}
	l.to(format, args...)
}

// count tells whether this one is to be told, and how many were not before it.
func (l *seldom) count() (untold int, tell bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if now := time.Now(); now.Sub(l.told) >= l.every {
		untold, l.untold, l.told = l.untold, 0, now
		return untold, true
	}
	l.untold++
	return 0, false
}
