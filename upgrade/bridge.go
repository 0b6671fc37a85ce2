package upgrade

import (
	"context"
	"net"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/hotdeploy/hotdeploy/upgrade/internal/bridge"
)

func init() {
	bridge.Listen = func(l net.Listener, name, protocol string) net.Listener {
		kinds := map[string]Protocol{"http": HTTP(), "mqtt": MQTT(), "lines": Lines()}
		return newListener(l.(socketListener), name, kinds[protocol])
	}
	bridge.Conns = func(l net.Listener) int { return len(l.(*listener).conns()) }
	bridge.Move = func(ctx context.Context, from, to net.Listener, fail func(int) bridge.Step) (int, map[string]int) {
		m := mover{to: to.(*listener), fail: fail, stayed: map[string]int{}}
		m.all(ctx, from.(*listener))
		return m.moved, m.stayed
	}
}

// mover carries connections between two listeners of one process, in the order in which two processes do it.
type mover struct {
	to     *listener
	fail   func(int) bridge.Step
	mu     sync.Mutex // protects what follows
	moved  int
	stayed map[string]int
}

func (m *mover) all(ctx context.Context, from *listener) {
	from.pause()
	var all sync.WaitGroup
	for i, c := range from.conns() {
		o := c.begin()
		all.Go(func() { m.count(m.one(ctx, o, m.step(i))) })
	}
	all.Wait()
	from.proceed()
}

func (m *mover) step(i int) bridge.Step {
	if m.fail == nil {
		return bridge.None
	}
	return m.fail(i)
}

func (m *mover) count(why Reason) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if why == "" {
		m.moved++
	} else {
		m.stayed[string(why)]++
	}
}

func (m *mover) one(ctx context.Context, o *offer, step bridge.Step) Reason {
	c := o.conn
	r, why := o.seal(ctx)
	if why != "" {
		return why
	}
	if step == bridge.Sent {
		c.resume(r)
		return "sent"
	}
	r, next, err := m.send(c, r)
	if err != nil {
		c.resume(r)
		return Reason(err.Error())
	}
	select {
	case why = <-next.verdict():
	case <-ctx.Done():
		why = ReasonStuck
	}
	if why != "" || step == bridge.Accepted {
		next.abandon()
		c.resume(r)
		return max(why, "accepted")
	}
	c.confirm()
	next.open()
	return ""
}

// send passes the record through its encoding and the descriptor through a copy.
func (m *mover) send(c *conn, r *record) (*record, *conn, error) {
	copied, err := parseRecord(r.append(nil))
	if err != nil {
		return r, nil, err
	}
	fd := -1
	if err := c.control(func(s uintptr) { fd, err = unix.FcntlInt(s, unix.F_DUPFD_CLOEXEC, 0) }); err != nil {
		return r, nil, err
	}
	if err != nil {
		return r, nil, err
	}
	next, err := m.to.adopt(copied, fd)
	return r, next, err
}
