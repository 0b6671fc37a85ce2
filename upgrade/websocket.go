package upgrade

import (
	"encoding/binary"
	"fmt"
	"math"
)

const (
	opContinuation = 0
	opClose        = 8
	opControl      = 8    // opcodes from here on are control frames
	rsv1           = 0x40 // on a message's first frame: it is compressed
)

// wsFramer follows WebSocket frames (RFC 6455, section 5). A message of it is a whole message: all its fragments and the control frames
// between them. A control frame outside of a message is one by itself. It serves both directions, masked or not.
type wsFramer struct {
	head    [14]byte
	have    uint8
	need    uint8 // length of the header as far as known; 2 at first
	open    bool  // fragments of a message are still to come
	closing bool  // a close frame was seen
	packed  bool  // the message under way is compressed
	left    uint64
}

func (f *wsFramer) Next(b []byte) (n int, end bool, err error) {
	for n < len(b) {
		used, done, err := f.frame(b[n:])
		n += used
		if err != nil {
			return n, false, err
		}
		if !done {
			return n, false, nil
		}
		if !f.open {
			return n, true, nil
		}
	}
	return n, false, nil
}

// frame takes the bytes of one frame. done: it ended with the last of the n bytes.
func (f *wsFramer) frame(b []byte) (n int, done bool, err error) {
	if f.have == 0 && len(b) > 1 && len(b) >= int(headerLength(b[1])) { // all at once, as most come
		n = int(headerLength(b[1]))
		f.have, f.need = uint8(n), uint8(n)
		copy(f.head[:], b[:n])
		if err := f.measure(); err != nil {
			return n, false, err
		}
	} else if f.have == 0 || f.have < f.need {
		if n, err = f.header(b); err != nil || f.have < f.need {
			return n, false, err
		}
	}
	if rest := uint64(len(b) - n); rest < f.left {
		f.left -= rest
		return len(b), false, nil
	}
	n += int(f.left)
	f.left, f.have, f.need = 0, 0, 0
	return n, true, nil
}

// header takes bytes of a header that comes in pieces.
func (f *wsFramer) header(b []byte) (n int, err error) {
	if f.need == 0 {
		f.need = 2
	}
	for f.have < f.need && n < len(b) {
		k := copy(f.head[f.have:f.need], b[n:])
		n += k
		f.have += uint8(k)
		if f.have == f.need && f.need == 2 {
			f.need = headerLength(f.head[1])
		}
		if f.have == f.need {
			return n, f.measure()
		}
	}
	return n, nil
}

// headerLength tells the length of a frame's header from its second byte.
func headerLength(second byte) uint8 {
	n := uint8(2)
	switch second & 0x7f {
	case 126:
		n += 2
	case 127:
		n += 8
	}
	if second&0x80 != 0 {
		n += 4
	}
	return n
}

// measure reads the complete header.
func (f *wsFramer) measure() error {
	switch length := f.head[1] & 0x7f; length {
	case 126:
		f.left = uint64(binary.BigEndian.Uint16(f.head[2:]))
	case 127:
		f.left = binary.BigEndian.Uint64(f.head[2:])
	default:
		f.left = uint64(length)
	}
	if f.left > math.MaxInt64 {
		return fmt.Errorf("%w: a frame of %d bytes", ErrFraming, f.left)
	}
	switch op := f.head[0] & 0x0f; {
	case op == opClose:
		f.closing = true
	case op < opControl:
		f.open = f.head[0]&0x80 == 0
		f.packed = f.head[0]&rsv1 != 0 || op == opContinuation && f.packed
	}
	return nil
}

// torn says that b, at the start of a frame, holds only a part of it, and that the frame belongs to a compressed message that can be kept.
func (f *wsFramer) torn(b []byte) bool {
	packed := b[0]&rsv1 != 0
	if f.open {
		packed = f.packed
	}
	if !packed || b[0]&0x0f >= opControl {
		return false
	}
	if len(b) < 2 || len(b) < int(headerLength(b[1])) {
		return true
	}
	next := wsFramer{}
	n := int(headerLength(b[1]))
	if _, _, err := next.frame(b[:n]); err != nil {
		return false
	}
	return next.left > uint64(len(b)-n) && next.left < MaxKept-uint64(n)
}

// atFrame says that the next byte is the first of a frame.
func (f *wsFramer) atFrame() bool { return f.have == 0 }

// settled says that the next byte is the first of a message.
func (f *wsFramer) settled() bool { return f.have == 0 && !f.open }

// Missing implements Sized.
func (f *wsFramer) Missing() int64 {
	if f.have < f.need || f.have == 0 {
		return 1
	}
	return int64(f.left)
}
