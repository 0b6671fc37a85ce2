package remote

import (
	"sync"
	"time"
)

// patience is a clock that runs out unless it is paused: the other side has
// so long to answer, the operator has all the time in the world.
type patience struct {
	limit time.Duration
	out   func()

	mu     sync.Mutex // protects what follows
	timer  *time.Timer
	paused int
	over   bool
}

// newPatience starts the clock; out is called once, from a goroutine of its
// own, if it runs out before stop.
func newPatience(limit time.Duration, out func()) *patience {
	p := &patience{limit: limit, out: out}
	p.timer = time.AfterFunc(limit, p.expire)
	return p
}

func (p *patience) expire() {
	p.mu.Lock()
	if p.paused > 0 || p.over {
		p.mu.Unlock()
		return
	}
	p.over = true
	p.mu.Unlock()
	p.out()
}

func (p *patience) pause() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.paused++
	p.timer.Stop()
}

// resume gives the whole time anew.
func (p *patience) resume() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.paused--; p.paused == 0 && !p.over {
		p.timer.Reset(p.limit)
	}
}

// stop ends the clock and tells whether it had run out.
func (p *patience) stop() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.timer.Stop()
	ranOut := p.over
	p.over = true
	return ranOut
}
