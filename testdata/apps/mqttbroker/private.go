package main

import (
	"bytes"
	"maps"
	"reflect"
	"sync/atomic"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"
)

// This file reaches for what mochi does not export. In a broker of your own these are plain fields. A version of mochi that names or types one of
// them otherwise makes the functions panic, at the first client and therefore in the first test.

// field returns the address of a field of the struct that owner points to.
func field[T any](owner any, name string) *T {
	f := reflect.ValueOf(owner).Elem().FieldByName(name)
	if !f.IsValid() || f.Type() != reflect.TypeFor[T]() {
		panic("mochi-mqtt has no " + reflect.TypeFor[T]().String() + " " + name + " any more")
	}
	return (*T)(f.Addr().UnsafePointer())
}

// unwritten is how many packets wait in cl's queue, or are just being written.
func unwritten(cl *mqtt.Client) int32 {
	return atomic.LoadInt32(field[int32](&cl.State, "outboundQty"))
}

// flush writes what mochi holds back for the next packet: it does when the last one of the queue could not be encoded.
func flush(cl *mqtt.Client) {
	cl.Lock()
	defer cl.Unlock()
	if held := field[*bytes.Buffer](&cl.Net, "outbuf"); *held != nil {
		(*held).WriteTo(cl.Net.Conn)
		*held = nil
	}
}

// packetID is the last one that the broker gave to a message for cl.
func packetID(cl *mqtt.Client) *uint32 { return field[uint32](&cl.State, "packetID") }

// disconnected is when cl left, in seconds since 1970; 0: it is here.
func disconnected(cl *mqtt.Client) *int64 { return field[int64](&cl.State, "disconnected") }

// quotas are how many more messages may be under way: from cl, and to it.
func quotas(cl *mqtt.Client) (receive, send *int32) {
	return field[int32](cl.State.Inflight, "receiveQuota"), field[int32](cl.State.Inflight, "sendQuota")
}

// inbound are the topic aliases that cl has given, outbound those that it was given.
func inbound(cl *mqtt.Client) map[uint16]string {
	a := cl.State.TopicAliases.Inbound
	a.RLock()
	defer a.RUnlock()
	return maps.Clone(*field[map[uint16]string](a, "internal"))
}

func outbound(cl *mqtt.Client) map[string]uint16 {
	a := cl.State.TopicAliases.Outbound
	a.RLock()
	defer a.RUnlock()
	return maps.Clone(*field[map[string]uint16](a, "internal"))
}

// delayedWills are those of clients that have been gone for less than their delay.
func delayedWills(s *mqtt.Server) *packets.Packets {
	loop := reflect.ValueOf(s).Elem().FieldByName("loop").Elem()
	return *(**packets.Packets)(loop.FieldByName("willDelayed").Addr().UnsafePointer())
}
