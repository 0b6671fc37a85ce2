package upgrade

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
)

// Framer finds where the messages of one client end. Each connection has its own, so it may keep state; it is never called by
// two goroutines at a time, it must not keep b or block, and after a message has ended it must be as good as new.
type Framer interface {
	// Next is given the bytes that follow those it was given before. It says how many of them belong to the message
	// under way, and whether it ends with them. Only where a message ends may n be less than len(b). After an error the
	// connection goes on, but it can no longer move.
	Next(b []byte) (n int, end bool, err error)
}

// Sized is what a Framer may implement if it knows from a message's start how long it will be. It saves copying.
type Sized interface {
	// Missing returns how many bytes of the message under way are still to come, as far as that is known; 0 means that it is not.
	Missing() int64
}

// ErrFraming is what a [Framer] says of bytes that are not its protocol, or wraps. They are delivered all the same: it is the app that answers them.
var ErrFraming = errors.New("not the protocol of this listener")

// Prefix describes how a length is written before each message.
type Prefix struct {
	Width int              // bytes of the length: 1, 2, 4 or 8; 0 means 4
	Order binary.ByteOrder // nil means big endian
	Whole bool             // the length counts its own bytes too, not only what follows
}

func (p Prefix) check() error {
	switch p.Width {
	case 0, 1, 2, 4, 8:
		return nil
	}
	return fmt.Errorf("a length prefix of %d bytes: it must be 1, 2, 4 or 8", p.Width)
}

func (p Prefix) width() int {
	if p.Width == 0 {
		return 4
	}
	return p.Width
}

// lengthFramer follows messages that start with their length.
type lengthFramer struct {
	Prefix
	head [8]byte
	have int
	left uint64
}

func (f *lengthFramer) Next(b []byte) (int, bool, error) {
	n := 0
	if w := f.width(); f.have < w {
		n = copy(f.head[f.have:w], b)
		f.have += n
		if f.have < w {
			return n, false, nil
		}
		if err := f.measure(); err != nil {
			return n, false, err
		}
	}
	if rest := uint64(len(b) - n); rest < f.left {
		f.left -= rest
		return len(b), false, nil
	}
	n += int(f.left)
	f.left, f.have = 0, 0
	return n, true, nil
}

// measure sets left from the complete prefix.
func (f *lengthFramer) measure() error {
	f.left = f.decode()
	if f.Whole {
		if f.left < uint64(f.width()) {
			return fmt.Errorf("%w: a length of %d is less than its own bytes", ErrFraming, f.left)
		}
		f.left -= uint64(f.width())
	}
	if f.left > math.MaxInt64 {
		return fmt.Errorf("%w: a message of %d bytes", ErrFraming, f.left)
	}
	return nil
}

func (f *lengthFramer) decode() uint64 {
	var order binary.ByteOrder = binary.BigEndian
	if f.Order != nil {
		order = f.Order
	}
	switch f.width() {
	case 1:
		return uint64(f.head[0])
	case 2:
		return uint64(order.Uint16(f.head[:2]))
	case 4:
		return uint64(order.Uint32(f.head[:4]))
	}
	return order.Uint64(f.head[:8])
}

// Missing implements Sized.
func (f *lengthFramer) Missing() int64 {
	if f.have < f.width() {
		return int64(f.width() - f.have)
	}
	return int64(f.left)
}
