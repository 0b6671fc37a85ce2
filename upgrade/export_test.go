package upgrade

import (
	"context"
	"net"
	"time"

	ctl "github.com/hotdeploy/hotdeploy/upgrade/control"
)

// Side is what the examples need to have two releases in one process: one of them, without a supervisor.
type Side struct {
	Options  Options
	Listener net.Listener
}

// ListenFor is Listen for a listener of the kernel.
func ListenFor(base net.Listener, p Protocol) net.Listener {
	return newListener(base.(socketListener), "example", p)
}

// Deploy has one side give all its connections to the other, by PROTOCOL.md, and returns why some stayed.
func Deploy(ctx context.Context, old, next Side) (kept map[Reason]int, err error) {
	var ends [2]*channel
	x, y, err := ctl.HandoffPair()
	if err != nil {
		return nil, err
	}
	if ends[0], err = newChannel(x); err != nil {
		return nil, err
	}
	if ends[1], err = newChannel(y); err != nil {
		return nil, err
	}
	by, _ := ctx.Deadline()
	taken := make(chan error, 1)
	go func() { taken <- next.take(ends[1], by) }()
	g, err := newGiver(ends[0], old.hello(), old.Options.withDefaults(), by)
	if err != nil {
		return nil, err
	}
	g.all(ctx, []*listener{old.Listener.(*listener)})
	g.end()
	return g.tally.kept, <-taken
}

func (s Side) take(ch *channel, by time.Time) error {
	_, err := take(ch, s.hello(), s.Options.withDefaults(), []*listener{s.Listener.(*listener)}, by)
	return err
}

func (s Side) hello() hello {
	u := Upgrader{opt: s.Options.withDefaults(), listeners: []*listener{s.Listener.(*listener)}}
	return u.hello()
}
