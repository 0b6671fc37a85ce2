package main

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/paho"
	paho3 "github.com/eclipse/paho.mqtt.golang"
)

// member is a client of either version, as its library is. Each has a will, and none connects again.
type member interface {
	publish(topic string, qos byte, retain bool, payload string) error // returns when it is acknowledged
	subscribe(filter string, qos byte) error
	leave()     // says goodbye
	vanish()    // does not
	kept() bool // the broker knew its session
}

// profile is how a client connects.
type profile struct {
	id      string
	version int  // of MQTT: 4 (3.1.1) or 5
	durable bool // the session outlives the connection
	slow    bool // acknowledges late
	aliases bool // version 5: takes topic aliases
	on      func(topic, payload string)
	trouble func(format string, args ...any)

	patience time.Duration // with the answer to a publish; 0: the usual, which is that with all others
}

const keepAlive = 10 // seconds

func join(t *testing.T, addr string, p profile) member {
	t.Helper()
	m, err := tryJoin(addr, p)
	if err != nil {
		t.Fatalf("client %s: %v", p.id, err)
	}
	t.Cleanup(m.leave)
	return m
}

func tryJoin(addr string, p profile) (member, error) {
	if p.on == nil {
		p.on = func(topic, _ string) { p.trouble("client %s got %s", p.id, topic) }
	}
	if p.patience == 0 {
		p.patience = patience
	}
	c, err := net.DialTimeout("tcp", addr, patience)
	if err != nil {
		return nil, err
	}
	if p.version == 5 {
		return join5(c, p)
	}
	return join3(c, p)
}

// member3 speaks MQTT 3.1.1.
type member3 struct {
	profile
	conn net.Conn
	c    paho3.Client
	had  bool
	gone atomic.Bool
	ends sync.Once
}

func join3(c net.Conn, p profile) (member, error) {
	m := &member3{profile: p, conn: c}
	o := paho3.NewClientOptions().AddBroker("tcp://unused").SetClientID(p.id).SetProtocolVersion(4).SetCleanSession(!p.durable)
	o.SetCustomOpenConnectionFn(func(*url.URL, paho3.ClientOptions) (net.Conn, error) { return c, nil })
	o.SetAutoReconnect(false).SetConnectRetry(false).SetKeepAlive(keepAlive * time.Second).SetPingTimeout(patience)
	o.SetWill("wills/"+p.id, "gone", 1, false)
	o.SetAutoAckDisabled(p.slow)
	o.SetConnectionLostHandler(func(_ paho3.Client, err error) {
		if !m.gone.Load() {
			p.trouble("client %s lost its connection: %v", p.id, err)
		}
	})
	var late chain
	o.SetDefaultPublishHandler(func(_ paho3.Client, msg paho3.Message) {
		p.on(msg.Topic(), string(msg.Payload()))
		if p.slow {
			late.after(msg.Ack)
		}
	})
	m.c = paho3.NewClient(o)
	token := m.c.Connect().(*paho3.ConnectToken)
	if err := settle(token, patience); err != nil {
		c.Close()
		return nil, err
	}
	m.had = token.SessionPresent()
	return m, nil
}

func settle(t paho3.Token, patience time.Duration) error {
	if !t.WaitTimeout(patience) {
		return context.DeadlineExceeded
	}
	return t.Error()
}

func (m *member3) publish(topic string, qos byte, retain bool, payload string) error {
	return settle(m.c.Publish(topic, qos, retain, payload), m.patience)
}

func (m *member3) subscribe(filter string, qos byte) error {
	return settle(m.c.Subscribe(filter, qos, nil), patience)
}

func (m *member3) leave() { m.ends.Do(func() { m.c.Disconnect(uint(patience.Milliseconds())) }) }
func (m *member3) vanish() {
	m.gone.Store(true)
	m.ends.Do(func() { m.conn.Close() })
}
func (m *member3) kept() bool { return m.had }

// member5 speaks MQTT 5.
type member5 struct {
	profile
	conn net.Conn
	c    *paho.Client
	had  bool
	ends sync.Once

	mu    sync.Mutex // protects what follows
	gone  bool
	names map[uint16]string // topics by alias
}

func join5(c net.Conn, p profile) (member, error) {
	m := &member5{profile: p, conn: c, names: map[uint16]string{}}
	var late chain
	m.c = paho.NewClient(paho.ClientConfig{
		Conn: c, PacketTimeout: patience, EnableManualAcknowledgment: p.slow, SendAcksInterval: 20 * time.Millisecond,
		OnClientError:      func(err error) { m.lost(err) },
		OnServerDisconnect: func(d *paho.Disconnect) { m.lost(fmt.Errorf("DISCONNECT %d", d.ReasonCode)) },
		OnPublishReceived: []func(paho.PublishReceived) (bool, error){func(r paho.PublishReceived) (bool, error) {
			p.on(m.topic(r.Packet), string(r.Packet.Payload))
			if p.slow {
				late.after(func() { r.Client.Ack(r.Packet) })
			}
			return true, nil
		}},
	})
	connect := &paho.Connect{ClientID: p.id, KeepAlive: keepAlive, CleanStart: !p.durable, Properties: &paho.ConnectProperties{},
		WillMessage: &paho.WillMessage{Topic: "wills/" + p.id, Payload: []byte("gone"), QoS: 1}}
	if p.durable {
		connect.Properties.SessionExpiryInterval = paho.Uint32(3600)
	}
	if p.aliases {
		connect.Properties.TopicAliasMaximum = paho.Uint16(100)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	ack, err := m.c.Connect(ctx, connect)
	if err != nil {
		return nil, err
	}
	m.had = ack.SessionPresent
	return m, nil
}

func (m *member5) lost(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.gone {
		m.trouble("client %s lost its connection: %v", m.id, err)
	}
}

// topic resolves an alias, as the library leaves to us.
func (m *member5) topic(p *paho.Publish) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if p.Properties == nil || p.Properties.TopicAlias == nil {
		return p.Topic
	}
	alias := *p.Properties.TopicAlias
	if p.Topic != "" {
		m.names[alias] = p.Topic
	} else if m.names[alias] == "" {
		m.trouble("client %s got the unknown alias %d", m.id, alias)
	}
	return m.names[alias]
}

func (m *member5) publish(topic string, qos byte, retain bool, payload string) error {
	ctx, cancel := context.WithTimeout(context.Background(), m.patience)
	defer cancel()
	r, err := m.c.Publish(ctx, &paho.Publish{Topic: topic, QoS: qos, Retain: retain, Payload: []byte(payload)})
	if err == nil && qos > 0 && r.ReasonCode != 0 {
		return fmt.Errorf("reason %#x", r.ReasonCode)
	}
	return err
}

func (m *member5) subscribe(filter string, qos byte) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	_, err := m.c.Subscribe(ctx, &paho.Subscribe{Subscriptions: []paho.SubscribeOptions{{Topic: filter, QoS: qos}}})
	return err
}

func (m *member5) leave() {
	m.ends.Do(func() {
		m.end()
		m.c.Disconnect(&paho.Disconnect{})
	})
}

func (m *member5) vanish() {
	m.ends.Do(func() {
		m.end()
		m.conn.Close()
	})
}

func (m *member5) end() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.gone = true
}

func (m *member5) kept() bool { return m.had }

// chain does things late and in order.
type chain struct {
	mu   sync.Mutex
	last chan struct{}
}

// lateBy is how long a slow client holds its acknowledgements back.
const lateBy = 30 * time.Millisecond

func (c *chain) after(do func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	before, done := c.last, make(chan struct{})
	c.last = done
	time.AfterFunc(lateBy, func() {
		if before != nil {
			<-before
		}
		do()
		close(done)
	})
}
