package upgrade

// Protocol says what the clients of a listener speak: how to tell where a message of theirs ends, since that is where connections move. It is an
// option of [Upgrader.Listen], and must be the same in both releases.
type Protocol struct {
	name  string
	codec func() codec
}

// HTTP is HTTP/1.1 and the WebSockets that it opens: the default. Connections move while no request is in flight, and WebSockets at any time, in
// the middle of a fragmented message too. Compression (permessage-deflate) is negotiated without context takeover, whatever the library would like.
func HTTP() Protocol { return Protocol{"http", newHTTPCodec} }

// MQTT is MQTT 3.1.1 and 5. The client's CONNECT is said again in the next release, and the CONNACK to it is not sent. Sessions and messages in flight
// are the broker's to save: see [Barrier].
func MQTT() Protocol { return Protocol{"mqtt", newMQTTCodec} }

// Lines are messages that end with a line feed. The app gets a line when it is complete (one that is longer than [MaxKept]: in pieces).
func Lines() Protocol { return Protocol{"lines", newLineCodec} }

// LengthPrefixed are messages that start with their length. TLS on such a listener is not recognised: it must be [None].
func LengthPrefixed(p Prefix) (Protocol, error) {
	if err := p.check(); err != nil {
		return Protocol{}, err
	}
	return Protocol{"length-prefixed", func() codec { return &plainCodec{&lengthFramer{Prefix: p}} }}, nil
}

// Framed is a protocol of one's own. The name is what both releases must agree on; framer is called for each connection, and again for one
// that has moved. Nothing is said again in the next release but the start of a message that was not complete: what a client said at the start, such as a
// login, belongs into the session's state. The handler must not take the start of a message for all of it when a Read fails, as
// bufio.Scanner does with many a split function; io.ReadFull does not.
func Framed(name string, framer func() Framer) Protocol {
	return Protocol{"framed:" + name, func() codec { return &plainCodec{framer()} }}
}

// None is a protocol that is not followed: its connections stay where they are until they end.
func None() Protocol {
	return Protocol{"none", func() codec { return rawCodec{ReasonUnknown} }}
}
