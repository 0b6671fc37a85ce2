package main

import (
	"errors"
	"fmt"
	"sync/atomic"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"
)

// hook is where mochi and the handoff meet. A client that has moved says CONNECT once more, as it did at first; it must find
// its session, whatever it said then.
type hook struct {
	mqtt.HookBase
	broker *broker
}

func (*hook) ID() string { return "handoff" }

func (*hook) Provides(b byte) bool {
	switch b {
	case mqtt.OnPacketRead, mqtt.OnConnect, mqtt.OnConnectAuthenticate, mqtt.OnACLCheck, mqtt.OnSessionEstablish, mqtt.OnSessionEstablished:
		return true
	}
	return false
}

// OnPacketRead sees the CONNECT before anybody acts on it: a resumed one is to have the name that the client was given, and not to wipe the session.
func (h *hook) OnPacketRead(cl *mqtt.Client, pk packets.Packet) (packets.Packet, error) {
	c := connOf(cl)
	if c == nil || pk.FixedHeader.Type != packets.Connect || c.client.Load() != nil {
		return pk, nil
	}
	c.client.Store(cl)
	if c.id != "" {
		c.clean = pk.Connect.Clean
		pk.Connect.Clean, pk.Connect.ClientIdentifier = false, c.id
	}
	return pk, nil
}

var errNoSession = errors.New("a connection came without its session")

// OnConnect refuses a connection that lacks its session: it goes back where it came from.
func (h *hook) OnConnect(cl *mqtt.Client, _ packets.Packet) error {
	c := connOf(cl)
	if c == nil || c.id == "" || broken("state") || broken("barrier") {
		return nil
	}
	if _, ok := h.broker.server.Clients.Get(c.id); !ok {
		return fmt.Errorf("%w: %s", errNoSession, c.id)
	}
	return nil
}

// OnConnectAuthenticate lets everybody in. In a broker that asks for passwords a resumed connection has given its own once, and what is in
// the CONNECT may have expired.
func (h *hook) OnConnectAuthenticate(*mqtt.Client, packets.Packet) bool { return true }

func (h *hook) OnACLCheck(*mqtt.Client, string, bool) bool { return true }

// OnSessionEstablish comes before mochi looks for the session. Messages under way are taken out of it: they are on the wire already, and mochi
// would send them again.
func (h *hook) OnSessionEstablish(cl *mqtt.Client, _ packets.Packet) {
	c := connOf(cl)
	if c == nil || c.id == "" {
		return
	}
	cl.Properties.Clean = c.clean
	existing, ok := h.broker.server.Clients.Get(c.id)
	if c.found = ok; !ok {
		return
	}
	cl.State.TopicAliases = existing.State.TopicAliases
	atomic.StoreUint32(packetID(cl), atomic.LoadUint32(packetID(existing)))
	receive, send := quotas(existing)
	c.receive, c.send = atomic.LoadInt32(receive), atomic.LoadInt32(send)
	if broken("twice") {
		return
	}
	for _, pk := range existing.State.Inflight.GetAll(false) {
		existing.State.Inflight.Delete(pk.PacketID)
		c.inflight = append(c.inflight, pk)
	}
}

// OnSessionEstablished comes before the client's first read. From here on everything is as it was in the other process.
func (h *hook) OnSessionEstablished(cl *mqtt.Client, _ packets.Packet) {
	c := connOf(cl)
	if c == nil {
		return
	}
	if c.found {
		for _, pk := range c.inflight {
			cl.State.Inflight.Set(pk)
		}
		receive, send := quotas(cl)
		atomic.StoreInt32(receive, c.receive)
		atomic.StoreInt32(send, c.send)
		c.inflight = nil
	}
	id := []byte(cl.ID)
	c.session.Save(stateVersion, func() ([]byte, error) { return id, nil })
	if h.broker.alone.Load() {
		c.cut()
	}
}

// connOf returns nil for a client that has no connection of ours.
func connOf(cl *mqtt.Client) *conn {
	c, _ := cl.Net.Conn.(*conn)
	return c
}
