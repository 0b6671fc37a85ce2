package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"os"
	"sync/atomic"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"

	"github.com/hotdeploy/hotdeploy/upgrade"
)

// broker is mochi-mqtt and what it takes to move it.
type broker struct {
	server   *mqtt.Server
	listener *listener
	alone    atomic.Bool // the others have moved: who is still here must come again
}

func newBroker(s *mqtt.Server) *broker { return &broker{server: s} }

// options is the broker's part in upgrades.
func (b *broker) options() upgrade.Options {
	patience, _ := time.ParseDuration(os.Getenv("MQTTBROKER_PATIENCE"))
	o := upgrade.Options{
		States: []uint32{stateVersion}, Mode: upgrade.Barrier, Patience: patience,
		OnPark: b.park, OnFreeze: b.freeze, Freezes: stateVersion, OnThaw: b.thaw, OnRollback: b.rollback,
		Log: func(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) },
	}
	if broken("barrier") {
		o.Mode, o.OnPark, o.OnFreeze, o.Freezes, o.OnThaw = upgrade.Rolling, nil, nil, 0, nil
	}
	return o
}

// serve starts the broker on ln, which is the broker's from now on.
func (b *broker) serve(ln net.Listener) error {
	b.listener = newListener(b, ln)
	if err := b.server.AddHook(&hook{broker: b}, nil); err != nil {
		return err
	}
	if err := b.server.AddListener(b.listener); err != nil {
		return err
	}
	return b.server.Serve()
}

// How long a client may take to read what is on its way to it, and one that was connected may take to follow.
const (
	drainTime   = time.Second
	absenceTime = time.Minute
)

// park empties the queues. Nothing comes in any more, and every packet that came has been dealt with. Who does not read what
// is written to him cannot come along, and is disconnected like anybody who is too slow.
func (b *broker) park(ctx context.Context) error {
	limited, cancel := context.WithTimeout(ctx, drainTime)
	defer cancel()
	for _, c := range b.listener.all() {
		if b.drain(limited, c) != nil {
			c.disconnect()
		}
	}
	for _, c := range b.listener.all() { // what the wills of the slow ones have added
		if err := b.drain(ctx, c); err != nil {
			return err
		}
	}
	return nil
}

// drain waits until everything for c is written, as far as it is connected. Nothing tells, so it looks.
func (b *broker) drain(ctx context.Context, c *conn) error {
	cl := c.client.Load()
	if cl == nil {
		return nil
	}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for unwritten(cl) > 0 && !cl.Closed() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("client %s does not read: %w", cl.ID, ctx.Err())
		}
	}
	if !cl.Closed() { // else a write that nobody ends may still hold the client's lock
		flush(cl)
	}
	return nil
}

func (b *broker) freeze(context.Context) (uint32, []byte, error) {
	raw, err := stateOf(b.server)
	return stateVersion, raw, err
}

// thaw comes before the first connection.
func (b *broker) thaw(_ context.Context, version uint32, raw []byte) error {
	if version != stateVersion {
		return fmt.Errorf("state of version %d", version)
	}
	b.alone.Store(false)
	switch {
	case broken("state"):
		return nil
	case broken("thaw"):
		return errors.New("told not to")
	}
	return b.load(raw)
}

// rollback is called when not all have moved. If none has, each comes back as a connection that was resumed. If others have, this
// broker is no place for those who are left: nobody hears them here. They lose their connection, and find their session in the other broker.
func (b *broker) rollback(_ context.Context, moved int) {
	if moved == 0 {
		return
	}
	b.alone.Store(true)
	for _, c := range b.listener.all() {
		c.cut()
	}
}

// keep is called for a client whose connection goes to another process, or comes from one. To mochi it looks like one that has vanished: its will
// must not be told, and its session must not end, until it turns out that it has.
func (b *broker) keep(cl *mqtt.Client) {
	atomic.StoreUint32(&cl.Properties.Will.Flag, 0)
	ends := cl.Properties.ProtocolVersion < 5 && cl.Properties.Clean
	cl.Properties.Clean = false
	if props := &cl.Properties.Props; cl.Properties.ProtocolVersion == 5 && props.SessionExpiryInterval == 0 {
		ends = true
		props.SessionExpiryInterval, props.SessionExpiryIntervalFlag = math.MaxUint32, true
	}
	if ends {
		time.AfterFunc(absenceTime, func() { b.forget(cl) })
	}
}

// forget ends the session of a client that has not come after all.
func (b *broker) forget(cl *mqtt.Client) {
	if now, ok := b.server.Clients.Get(cl.ID); ok && now == cl {
		b.drop(cl)
	}
}
