package main

import (
	"bytes"
	"encoding/gob"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"
	"github.com/mochi-mqtt/server/v2/system"
)

// This file is what travels from broker to broker. It is gob: fields may come and go between releases, as long as none changes its meaning.

// stateVersion is what this release writes; upgrade.Options.States lists all that it reads.
const stateVersion = 1

// state is all that a broker knows beyond its sockets.
type state struct {
	Sessions []session
	Retained map[string]packets.Packet
	Wills    map[string]packets.Packet // that wait for their delay
	Info     system.Info               // the counters of $SYS
}

// session is what is known of one client, here or away.
type session struct {
	ID           string
	Listener     string
	Left         int64 // when it did; 0: it is connected
	Properties   mqtt.ClientProperties
	Filters      []packets.Subscription
	Inflight     []packets.Packet
	PacketID     uint32
	ReceiveQuota int32
	SendQuota    int32
	Inbound      map[uint16]string
	Outbound     map[string]uint16
}

// stateOf is called when nothing moves any more.
func stateOf(s *mqtt.Server) ([]byte, error) {
	st := state{Retained: map[string]packets.Packet{}, Wills: delayedWills(s).GetAll(), Info: *s.Info.Clone()}
	for _, cl := range s.Clients.GetAll() {
		if !cl.Net.Inline {
			st.Sessions = append(st.Sessions, sessionOf(cl))
		}
	}
	for topic, pk := range s.Topics.Retained.GetAll() {
		if !strings.HasPrefix(topic, mqtt.SysPrefix+"/") {
			st.Retained[topic] = pk
		}
	}
	var b bytes.Buffer
	err := gob.NewEncoder(&b).Encode(st)
	return b.Bytes(), err
}

func sessionOf(cl *mqtt.Client) session {
	receive, send := quotas(cl)
	s := session{
		ID: cl.ID, Listener: cl.Net.Listener, Left: cl.StopTime(), Properties: cl.Properties,
		Inflight: cl.State.Inflight.GetAll(false), PacketID: atomic.LoadUint32(packetID(cl)),
		ReceiveQuota: atomic.LoadInt32(receive), SendQuota: atomic.LoadInt32(send),
		Inbound: inbound(cl), Outbound: outbound(cl),
	}
	for _, sub := range cl.State.Subscriptions.GetAll() {
		s.Filters = append(s.Filters, sub)
	}
	return s
}

// load makes s, which has no connected client, know what b says and nothing else. Whoever was connected then is away now, and
// connected again as soon as its connection is here.
func (b *broker) load(raw []byte) error {
	var st state
	if err := gob.NewDecoder(bytes.NewReader(raw)).Decode(&st); err != nil {
		return fmt.Errorf("the state of the broker before: %w", err)
	}
	b.clear()
	for id, pk := range st.Wills {
		delayedWills(b.server).Add(id, pk)
	}
	for _, pk := range st.Retained {
		b.server.Topics.RetainMessage(pk)
	}
	for _, s := range st.Sessions {
		b.restore(s)
	}
	b.count(st.Info)
	return nil
}

// clear is for a broker that gets back what it has given.
func (b *broker) clear() {
	for id, cl := range b.server.Clients.GetAll() {
		if !cl.Net.Inline {
			b.drop(cl)
			delayedWills(b.server).Delete(id)
		}
	}
	for topic := range b.server.Topics.Retained.GetAll() {
		b.server.Topics.RetainMessage(packets.Packet{TopicName: topic}) // an empty one removes it
	}
}

// drop ends a session.
func (b *broker) drop(cl *mqtt.Client) {
	cl.ClearInflights()
	b.server.UnsubscribeClient(cl)
	b.server.Clients.Delete(cl.ID)
}

// restore makes a client that is away.
func (b *broker) restore(s session) {
	cl := b.server.NewClient(nil, s.Listener, s.ID, false)
	cl.Properties = s.Properties
	cl.Stop(packets.ErrServerShuttingDown)
	if s.Left != 0 {
		atomic.StoreInt64(disconnected(cl), s.Left)
	} else {
		b.keep(cl)
	}
	for _, sub := range s.Filters {
		b.server.Topics.Subscribe(s.ID, sub)
		cl.State.Subscriptions.Add(sub.Filter, sub)
	}
	if !broken("inflight") {
		for _, pk := range s.Inflight {
			cl.State.Inflight.Set(pk)
		}
	}
	cl.State.Inflight.ResetReceiveQuota(int32(b.server.Options.Capabilities.ReceiveMaximum))
	cl.State.Inflight.ResetSendQuota(int32(s.Properties.Props.ReceiveMaximum))
	receive, send := quotas(cl)
	*receive, *send = s.ReceiveQuota, s.SendQuota
	*packetID(cl) = s.PacketID
	restoreAliases(cl, s)
	b.server.Clients.Add(cl)
}

// restoreAliases numbers the topics as they were.
func restoreAliases(cl *mqtt.Client, s session) {
	for alias, topic := range s.Inbound {
		cl.State.TopicAliases.Inbound.Set(alias, topic)
	}
	cl.State.TopicAliases.Outbound = mqtt.NewOutboundTopicAliases(s.Properties.Props.TopicAliasMaximum)
	topics := make([]string, 0, len(s.Outbound))
	for topic := range s.Outbound {
		topics = append(topics, topic)
	}
	slices.SortFunc(topics, func(x, y string) int { return int(s.Outbound[x]) - int(s.Outbound[y]) })
	for _, topic := range topics {
		cl.State.TopicAliases.Outbound.Set(topic) // gives the numbers from 1 on, as it did the first time
	}
}

// count lets the counters of $SYS go on.
func (b *broker) count(i system.Info) {
	now := b.server.Info
	for _, c := range []struct {
		counter *int64
		value   int64
	}{
		{&now.Started, i.Started}, {&now.BytesReceived, i.BytesReceived}, {&now.BytesSent, i.BytesSent},
		{&now.ClientsMaximum, i.ClientsMaximum}, {&now.Retained, int64(b.server.Topics.Retained.Len())}, {&now.Inflight, i.Inflight}, {&now.InflightDropped, i.InflightDropped},
		{&now.MessagesReceived, i.MessagesReceived}, {&now.MessagesSent, i.MessagesSent}, {&now.MessagesDropped, i.MessagesDropped},
		{&now.PacketsReceived, i.PacketsReceived}, {&now.PacketsSent, i.PacketsSent}, {&now.Subscriptions, i.Subscriptions},
	} {
		atomic.StoreInt64(c.counter, c.value)
	}
}
