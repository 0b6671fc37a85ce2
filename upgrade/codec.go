package upgrade

// codec follows both directions of one connection. It is called with the connection's lock held.
type codec interface {
	// in looks at bytes that were not delivered yet: n of them may be, and end says that a message ends there. n = 0
	// without end: it takes more bytes to tell, all of them are to be shown again. An error: not this protocol.
	in(b []byte) (n int, end bool, err error)

	// missing is how much of the message under way is known to be still to come.
	missing() int64

	// out looks at bytes about to be written and returns how many of them may be. told: the app knows that the connection
	// moves; what it says because of that is held back.
	out(b []byte, told bool) (n int)

	// replays says that an unfinished message may be delivered again, in the other process.
	replays() bool

	// stays is why the connection cannot move, ever; busy is why it cannot just now, when a Read with
	// room for size bytes waits; settled says that no message of ours is half written.
	stays() Reason
	busy(size int) bool
	settled() bool
}

// rawCodec understands nothing: the connection stays.
type rawCodec struct{ why Reason }

func (rawCodec) in(b []byte) (int, bool, error) { return len(b), true, nil }
func (rawCodec) missing() int64                 { return 0 }
func (rawCodec) out(b []byte, _ bool) int       { return len(b) }
func (rawCodec) replays() bool                  { return false }
func (c rawCodec) stays() Reason                { return c.why }
func (rawCodec) busy(int) bool                  { return true }
func (rawCodec) settled() bool                  { return true }

// plainCodec follows a protocol of messages without an opening.
type plainCodec struct{ framer Framer }

func (c *plainCodec) in(b []byte) (int, bool, error) { return c.framer.Next(b) }

func (c *plainCodec) missing() int64 {
	if f, ok := c.framer.(Sized); ok {
		return f.Missing()
	}
	return 0
}

func (*plainCodec) out(b []byte, _ bool) int { return len(b) }
func (*plainCodec) replays() bool            { return true }
func (*plainCodec) stays() Reason            { return "" }
func (*plainCodec) busy(int) bool            { return false }
func (*plainCodec) settled() bool            { return true }

// wsCodec follows a WebSocket once it is open.
type wsCodec struct {
	client, server wsFramer
	shake          handshake
	why            Reason
	held           bool // the app said goodbye because of the handoff
}

// in delivers the frames of compressed messages whole. A library that has got a part of one, when a Read fails, may pass it to the
// decompressor without unmasking it, and take what comes out for a message if by chance it looks complete (coder/websocket 1.8).
func (c *wsCodec) in(b []byte) (n int, end bool, err error) {
	for n < len(b) && !end && err == nil {
		if c.client.atFrame() && c.client.torn(b[n:]) {
			return n, false, nil
		}
		var k int
		k, end, err = c.client.frame(b[n:])
		n += k
		end = end && !c.client.open
	}
	return n, end, err
}

func (c *wsCodec) missing() int64 { return c.client.Missing() }

func (c *wsCodec) out(b []byte, told bool) (n int) {
	if c.held {
		return 0
	}
	for n < len(b) {
		// The opcode is in a frame's first byte, so this sees a close frame before any of it is written.
		if told && c.server.atFrame() && b[n]&0x0f == opClose {
			c.held = true
			return n
		}
		k, _, err := c.server.frame(b[n:])
		n += k
		if err != nil {
			c.why = ReasonUnknown
			return len(b)
		}
	}
	return n
}

func (*wsCodec) replays() bool { return true }

func (c *wsCodec) stays() Reason {
	if c.client.closing || c.server.closing {
		return ReasonClosing
	}
	return c.why
}

func (*wsCodec) busy(int) bool   { return false }
func (c *wsCodec) settled() bool { return c.server.settled() }

// mqttCodec follows an MQTT connection from its CONNECT on.
type mqttCodec struct {
	client, server mqttFramer
	opening        []byte // the CONNECT
	answer         []byte // the CONNACK as far as it was written
	connecting     bool   // the CONNECT is not complete
	acked          bool   // the CONNACK is complete
	held           bool
	why            Reason
}

func newMQTTCodec() codec { return &mqttCodec{connecting: true} }

func (c *mqttCodec) in(b []byte) (n int, end bool, err error) {
	fresh := c.client.atPacket()
	n, end, err = c.client.Next(b)
	if err != nil || n == 0 {
		return n, end, err
	}
	if c.connecting {
		err = c.connect(b[:n], end)
	} else if fresh {
		c.judge(c.client.kind())
	}
	return n, end, err
}

// connect keeps the client's first packet.
func (c *mqttCodec) connect(b []byte, end bool) error {
	if c.client.kind() != mqttConnect {
		return ErrFraming
	}
	if len(c.opening)+len(b) > MaxOpening {
		c.why, c.opening = ReasonOpening, nil
	}
	if c.why == "" {
		c.opening = append(c.opening, b...)
	}
	c.connecting = !end
	return nil
}

// judge notes packets after which the connection cannot move.
func (c *mqttCodec) judge(kind byte) {
	switch {
	case kind == mqttDisconnect:
		c.why = ReasonClosing
	case kind == mqttAuth && !c.acked:
		c.why = ReasonUnknown // the answer depends on more than the CONNECT
	}
}

func (c *mqttCodec) missing() int64 { return c.client.Missing() }

func (c *mqttCodec) out(b []byte, told bool) (n int) {
	if c.held {
		return 0
	}
	for n < len(b) {
		fresh := c.server.atPacket()
		if fresh && told && b[n]>>4 == mqttDisconnect {
			c.held = true
			return n
		}
		k, end, err := c.server.Next(b[n:])
		if err != nil {
			c.why = ReasonUnknown
			return len(b)
		}
		if fresh {
			c.judge(c.server.kind())
		}
		c.acknowledge(b[n:n+k], end)
		n += k
	}
	return n
}

// acknowledge keeps what is compared later: type, flags and code, the first four bytes of a CONNACK (its length fits in one byte, or the
// code lies further back and is found by connackCode).
func (c *mqttCodec) acknowledge(b []byte, end bool) {
	if c.acked || c.server.kind() != mqttConnack {
		return
	}
	c.answer = append(c.answer, b[:min(len(b), 8-len(c.answer))]...)
	c.acked = end
	if end && connackCode(c.answer) != 0 {
		c.why = ReasonClosing
	}
}

// connackCode finds the code in the first bytes of a CONNACK; -1 if there is none.
func connackCode(b []byte) int {
	i := 1
	for i < len(b) && i < 5 && b[i]&0x80 != 0 {
		i++
	}
	if i+2 >= len(b) {
		return -1
	}
	return int(b[i+2])
}

// A client that has not said all of its CONNECT may move: it says it over there.
func (c *mqttCodec) replays() bool { return c.acked || c.connecting }
func (c *mqttCodec) stays() Reason { return c.why }
func (c *mqttCodec) busy(int) bool { return !c.acked && !c.connecting }
func (c *mqttCodec) settled() bool { return c.server.atPacket() }
