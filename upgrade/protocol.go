package upgrade

// Protocol says what the clients of a listener speak.
type Protocol struct {
	name  string
	codec func() codec
}

// HTTP is HTTP/1.1 and the WebSockets that it opens: the default. Requests in flight are waited for.
func HTTP() Protocol { return Protocol{"http", newHTTPCodec} }

// MQTT is MQTT 3.1.1 and 5.
func MQTT() Protocol { return Protocol{"mqtt", newMQTTCodec} }

// Lines are messages that end with a line feed. The app gets a line when it is complete (one that is longer than [MaxKept]: in pieces).
func Lines() Protocol { return Protocol{"lines", newLineCodec} }

// LengthPrefixed are messages that start with their length.
func LengthPrefixed(p Prefix) (Protocol, error) {
	if err := p.check(); err != nil {
		return Protocol{}, err
	}
	return Protocol{"length-prefixed", func() codec { return &plainCodec{&lengthFramer{Prefix: p}} }}, nil
}

// Framed is a protocol of one's own. The name is what both releases must agree on; framer is called for each connection.
func Framed(name string, framer func() Framer) Protocol {
	return Protocol{"framed:" + name, func() codec { return &plainCodec{framer()} }}
}

// None is a protocol that is not followed: its connections stay where they are.
func None() Protocol {
	return Protocol{"none", func() codec { return rawCodec{ReasonUnknown} }}
}
