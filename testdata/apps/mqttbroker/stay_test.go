package main

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/packets"

	"github.com/hotdeploy/hotdeploy/internal/api"
)

// A client whose CONNECT is longer than the SDK keeps cannot move. The others have: it loses its connection, quietly, and finds its session where they are.
func TestBroker_WhoCannotMove_FindsItsSessionInTheNextRelease(t *testing.T) {
	defer func() {
		if w, ok := recover().(wrong); ok {
			t.Error(w)
		}
	}()
	d := newDaemon(t)
	d.push()
	durable := func(c *packets.Connect) { c.CleanStart, c.Properties.SessionExpiryInterval = false, new(uint32(60)) }
	large := func(c *packets.Connect) {
		c.WillFlag, c.WillTopic, c.WillMessage, c.WillProperties = true, "news", bytes.Repeat([]byte("x"), 65535), &packets.Properties{}
	}
	s, p := call(d.addr, "large", durable, large), call(d.addr, "small")
	s.subscribe("news", 1)
	p.subscribe("news", 1)
	u := d.push()
	if u.Outcome != api.Done || u.Handoff.Moved != 1 || u.Handoff.Kept["opening too long"] != 1 {
		t.Fatalf("%s: %v, %+v", u.Outcome, u.Error, u.Handoff)
	}
	s.conn.SetReadDeadline(time.Now().Add(patience))
	if _, err := s.conn.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("the connection that stayed: %v", err)
	}
	p.send(&packets.Publish{Topic: "news", QoS: 1, PacketID: 1, Payload: []byte("one"), Properties: &packets.Properties{}})
	p.want(packets.PUBACK, 1, 0)
	p.message("news", "one") // and no will before it
	again := dial(d.addr)
	c := packets.NewControlPacket(packets.CONNECT).Content.(*packets.Connect)
	c.ClientID, c.KeepAlive = "large", 60
	durable(c)
	again.send(c)
	if ack := again.want(packets.CONNACK, 0, 0).(*packets.Connack); !ack.SessionPresent {
		t.Error("its session is gone")
	}
	if m := again.next().Content.(*packets.Publish); string(m.Payload) != "one" {
		t.Errorf("it got %s", m)
	}
}
