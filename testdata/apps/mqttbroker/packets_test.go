package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/packets"

	"github.com/hotdeploy/hotdeploy/internal/api"
)

// talks are what clients have begun to say when their connections move, packet by packet. Each returns how it must go on. What is not
// as it must be ends it with a panic of type wrong.
var talks = map[string]func(addr string) (after func()){
	"a message at least once, not acknowledged": func(addr string) func() {
		s, p := call(addr, "s1"), call(addr, "p1")
		s.subscribe("once/#", 1)
		p.publish("once/a", 1, 5, "one")
		first := s.message("once/a", "one")
		return func() {
			p.publish("once/a", 1, 5, "two")
			if second := s.message("once/a", "two"); second.PacketID != first.PacketID+1 {
				fail("message %d follows message %d", second.PacketID, first.PacketID)
			}
			s.send(&packets.Puback{PacketID: first.PacketID, Properties: &packets.Properties{}})
			s.isThere()
		}
	},
	"a message exactly once from a client, halfway": func(addr string) func() {
		s, p := call(addr, "s2"), call(addr, "p2")
		s.subscribe("half/#", 0)
		m := &packets.Publish{Topic: "half/a", QoS: 2, PacketID: 7, Payload: []byte("one"), Properties: &packets.Properties{}}
		p.send(m)
		p.want(packets.PUBREC, 7, 0)
		s.message("half/a", "one")
		return func() {
			m.Duplicate = true
			p.send(m)
			p.want(packets.PUBREC, 7, packets.PubrecPacketIdentifierInUse)
			p.send(&packets.Pubrel{PacketID: 7, Properties: &packets.Properties{}})
			p.want(packets.PUBCOMP, 7, 0)
			p.publish("half/b", 0, 0, "two")
			s.message("half/b", "two")
		}
	},
	"a message exactly once to a client, before it says so": func(addr string) func() {
		s, p := call(addr, "s3"), call(addr, "p3")
		s.subscribe("told/#", 2)
		p.publish("told/a", 1, 3, "one")
		m := s.message("told/a", "one")
		return func() {
			s.send(&packets.Pubrec{PacketID: m.PacketID, Properties: &packets.Properties{}})
			s.want(packets.PUBREL, m.PacketID, 0)
			s.send(&packets.Pubcomp{PacketID: m.PacketID, Properties: &packets.Properties{}})
			s.isThere()
		}
	},
	"a message exactly once to a client, released": func(addr string) func() {
		s, p := call(addr, "s4"), call(addr, "p4")
		s.subscribe("freed/#", 2)
		p.publish("freed/a", 2, 3, "one")
		m := s.message("freed/a", "one")
		s.send(&packets.Pubrec{PacketID: m.PacketID, Properties: &packets.Properties{}})
		s.want(packets.PUBREL, m.PacketID, 0)
		return func() {
			s.send(&packets.Pubcomp{PacketID: m.PacketID, Properties: &packets.Properties{}})
			p.publish("freed/a", 2, 3, "two")
			if next := s.message("freed/a", "two"); next.PacketID != m.PacketID+1 {
				fail("message %d follows message %d", next.PacketID, m.PacketID)
			}
		}
	},
	"a topic alias of the client": func(addr string) func() {
		s, p := call(addr, "s5"), call(addr, "p5")
		s.subscribe("named/#", 0)
		alias := &packets.Properties{TopicAlias: new(uint16(4))}
		p.send(&packets.Publish{Topic: "named/a", Payload: []byte("one"), Properties: alias})
		s.message("named/a", "one")
		return func() {
			p.send(&packets.Publish{Payload: []byte("two"), Properties: alias})
			s.message("named/a", "two")
		}
	},
	"topic aliases of the broker": func(addr string) func() {
		s, p := call(addr, "s6", func(c *packets.Connect) { c.Properties.TopicAliasMaximum = new(uint16(10)) }), call(addr, "p6")
		s.subscribe("short/#", 0)
		p.publish("short/a", 0, 0, "one")
		s.aliased("short/a", 1, "one")
		p.publish("short/b", 0, 0, "two")
		s.aliased("short/b", 2, "two")
		return func() {
			p.publish("short/b", 0, 0, "three")
			s.aliased("", 2, "three")
			p.publish("short/c", 0, 0, "four")
			s.aliased("short/c", 3, "four")
		}
	},
	"a client that may get one message at a time": func(addr string) func() {
		s, p := call(addr, "s7", func(c *packets.Connect) { c.Properties.ReceiveMaximum = new(uint16(1)) }), call(addr, "p7")
		s.subscribe("single/#", 1)
		p.publish("single/a", 1, 1, "one")
		p.publish("single/a", 1, 2, "two")
		m := s.message("single/a", "one")
		return func() {
			s.isThere()
			s.send(&packets.Puback{PacketID: m.PacketID, Properties: &packets.Properties{}})
			s.message("single/a", "two")
		}
	},
	"a client whose name the broker has made": func(addr string) func() {
		s, p := call(addr, ""), call(addr, "p8")
		s.subscribe("nameless", 0)
		return func() {
			p.publish("nameless", 0, 0, "one")
			s.message("nameless", "one")
			call(addr, s.id) // whoever has this name now takes the session over
			s.want(packets.DISCONNECT, 0, packets.DisconnectSessionTakenOver)
		}
	},
	"half a message": func(addr string) func() {
		s, p := call(addr, "s9"), call(addr, "p9")
		s.subscribe("long", 0)
		text := []byte("\x30\x0f\x00\x04long\x00one, two")
		p.write(text[:9])
		return func() {
			p.write(text[9:])
			s.message("long", "one, two")
		}
	},
	"half a greeting": func(addr string) func() {
		r := dial(addr)
		text := []byte("\x10\x11\x00\x04MQTT\x05\x02\x00\x3c\x00\x00\x04late")
		r.write(text[:5])
		return func() {
			r.write(text[5:])
			r.want(packets.CONNACK, 0, 0)
			r.isThere()
		}
	},
	"a will that waits": func(addr string) func() {
		s := call(addr, "s10")
		s.subscribe("wills/d", 0)
		d := call(addr, "d", func(c *packets.Connect) {
			c.WillFlag, c.WillTopic, c.WillMessage = true, "wills/d", []byte("gone")
			c.WillProperties = &packets.Properties{WillDelayInterval: new(uint32(1))}
			c.Properties.SessionExpiryInterval = new(uint32(60))
		})
		d.isThere()
		d.conn.Close()
		return func() { s.message("wills/d", "gone") }
	},
	"a will that must still be told": func(addr string) func() {
		s := call(addr, "s11")
		s.subscribe("wills/e", 0)
		e := call(addr, "e", func(c *packets.Connect) {
			c.KeepAlive, c.WillFlag, c.WillTopic, c.WillMessage = 60, true, "wills/e", []byte("gone")
			c.WillProperties = &packets.Properties{}
		})
		return func() {
			e.isThere()
			e.conn.Close()
			s.message("wills/e", "gone")
		}
	},
}

// tell runs all talks over one handoff and returns what was wrong.
func tell(t *testing.T, d *daemon, handoff func() api.Upgrade) (faults []error) {
	t.Helper()
	after := map[string]func(){}
	try := func(name string, do func()) {
		defer func() {
			switch w := recover().(type) {
			case nil:
			case wrong:
				faults = append(faults, fmt.Errorf("%s: %w", name, w))
			default:
				panic(w)
			}
		}()
		do()
	}
	for name, begin := range talks {
		try(name, func() { after[name] = begin(d.addr) })
	}
	u := handoff()
	if h := u.Handoff; h == nil || h.Refused > 0 || h.Error != "" {
		t.Fatalf("%s, %v: the handoff was %+v", u.Outcome, u.Error, h)
	}
	for name, next := range after {
		try(name, next)
	}
	return faults
}

func TestBroker_WhatHasBegun_GoesOn(t *testing.T) {
	for name, change := range map[string]bool{"in the next release": true, "where it was, after a rollback": false} {
		t.Run(name, func(t *testing.T) {
			d := newDaemon(t)
			d.push()
			faults := tell(t, d, func() api.Upgrade {
				if change {
					return d.push()
				}
				u := d.push(unhealthy)
				if u.HandedBack == nil || u.HandedBack.Moved != u.Handoff.Moved {
					t.Errorf("back: %+v", u.HandedBack)
				}
				return u
			})
			for _, err := range faults {
				t.Error(err)
			}
		})
	}
}

// The talks are tried too.
func TestBroker_WhatHasBegunAndIsLost_IsFound(t *testing.T) {
	d := newDaemon(t)
	d.broken = "inflight"
	d.push()
	usual := answerTime
	t.Cleanup(func() { answerTime = usual })
	faults := tell(t, d, func() api.Upgrade {
		u := d.push()
		answerTime = 5 * time.Second // for what will not come
		return u
	})
	if len(faults) < 3 {
		t.Errorf("messages under way were lost, and this was found: %v", faults)
	}
}

// wrong is what a talk panics with.
type wrong struct{ error }

func fail(format string, args ...any) { panic(wrong{fmt.Errorf(format, args...)}) }

// raw is a client of MQTT 5 that says and hears single packets.
type raw struct {
	conn net.Conn
	id   string
}

func dial(addr string) *raw {
	conn, err := net.DialTimeout("tcp", addr, patience)
	if err != nil {
		fail("%w", err)
	}
	return &raw{conn: conn}
}

// call connects. The connection ends with the process of the broker.
func call(addr, id string, changes ...func(*packets.Connect)) *raw {
	r := dial(addr)
	r.id = id
	c := packets.NewControlPacket(packets.CONNECT).Content.(*packets.Connect)
	c.ClientID, c.CleanStart, c.KeepAlive = id, true, 60
	for _, change := range changes {
		change(c)
	}
	r.send(c)
	if ack := r.want(packets.CONNACK, 0, 0).(*packets.Connack); ack.Properties.AssignedClientID != "" {
		r.id = ack.Properties.AssignedClientID
	}
	return r
}

func (r *raw) send(p packets.Packet) {
	if _, err := p.WriteTo(r.conn); err != nil {
		fail("%w", err)
	}
}

func (r *raw) write(b []byte) {
	if _, err := r.conn.Write(b); err != nil {
		fail("%w", err)
	}
}

// next is what the broker says next.
func (r *raw) next() *packets.ControlPacket {
	r.conn.SetReadDeadline(time.Now().Add(answerTime))
	p, err := packets.ReadPacket(r.conn)
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		fail("no answer")
	case errors.Is(err, io.EOF):
		fail("the connection was closed")
	case err != nil:
		fail("%w", err)
	}
	return p
}

// answerTime is how long a broker may take that is about to answer.
var answerTime = 30 * time.Second

// want is the next packet, which must be this one.
func (r *raw) want(kind byte, id uint16, reason byte) packets.Packet {
	p := r.next()
	got := byte(0)
	switch c := p.Content.(type) {
	case *packets.Connack:
		got = c.ReasonCode
	case *packets.Puback:
		got = c.ReasonCode
	case *packets.Pubrec:
		got = c.ReasonCode
	case *packets.Pubrel:
		got = c.ReasonCode
	case *packets.Pubcomp:
		got = c.ReasonCode
	case *packets.Disconnect:
		got = c.ReasonCode
	}
	if p.Type != kind || p.PacketID() != id || got != reason {
		fail("got %s %d with reason %#x; wanted packet type %d, %d with reason %#x", p.PacketType(), p.PacketID(), got, kind, id, reason)
	}
	return p.Content
}

func (r *raw) subscribe(filter string, qos byte) {
	r.send(&packets.Subscribe{PacketID: 99, Properties: &packets.Properties{}, Subscriptions: []packets.SubOptions{{Topic: filter, QoS: qos}}})
	r.want(packets.SUBACK, 99, 0)
}

// publish returns when it is acknowledged.
func (r *raw) publish(topic string, qos byte, id uint16, text string) {
	r.send(&packets.Publish{Topic: topic, QoS: qos, PacketID: id, Payload: []byte(text), Properties: &packets.Properties{}})
	switch qos {
	case 1:
		r.want(packets.PUBACK, id, 0)
	case 2:
		r.want(packets.PUBREC, id, 0)
		r.send(&packets.Pubrel{PacketID: id, Properties: &packets.Properties{}})
		r.want(packets.PUBCOMP, id, 0)
	}
}

// message is the next packet, which must be this message, for the first time.
func (r *raw) message(topic, text string) *packets.Publish {
	p := r.next()
	m, ok := p.Content.(*packets.Publish)
	if !ok || m.Topic != topic || string(m.Payload) != text || m.Duplicate {
		fail("got %s; wanted %q of %s", p, text, topic)
	}
	return m
}

func (r *raw) aliased(topic string, alias uint16, text string) {
	m := r.message(topic, text)
	if m.Properties.TopicAlias == nil || *m.Properties.TopicAlias != alias {
		fail("got %s; wanted the alias %d", m, alias)
	}
}

// isThere: the broker answers, and has nothing else to say.
func (r *raw) isThere() {
	r.send(&packets.Pingreq{})
	r.want(packets.PINGRESP, 0, 0)
}
