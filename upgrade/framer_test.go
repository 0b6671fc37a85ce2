package upgrade

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"testing"
)

// ends feeds data to a framer in pieces cut at random, and returns where messages ended.
func ends(f interface {
	Next([]byte) (int, bool, error)
}, data []byte, rng *rand.Rand) (list []int, err error) {
	for at := 0; at < len(data); {
		piece := data[at : at+1+rng.IntN(min(len(data)-at, 1+rng.IntN(40)))]
		for len(piece) > 0 {
			n, end, err := f.Next(piece)
			if err != nil {
				return list, err
			}
			at += n
			if end {
				list = append(list, at)
			} else if n != len(piece) {
				panic("took less than it was given without an end")
			}
			piece = piece[n:]
		}
	}
	return list, nil
}

// compare checks a framer against a slow one, which is given all of the data from the start of a message on and returns the message's length: 0 if
// it is not complete, -1 if it is wrong.
func compare(t *testing.T, data []byte, seed uint64, f interface {
	Next([]byte) (int, bool, error)
}, slow func([]byte) int) {
	t.Helper()
	got, err := ends(f, data, rand.New(rand.NewPCG(seed, 0)))
	var want []int
	at := 0
	for at < len(data) {
		n := slow(data[at:])
		if n <= 0 {
			if n < 0 != (err != nil) {
				t.Fatalf("after %v: the reference says %d, we say %v", want, n, err)
			}
			break
		}
		at += n
		want = append(want, at)
	}
	if !slices.Equal(got, want) {
		t.Fatalf("messages end at %v, the reference says %v", got, want)
	}
}

func slowLine(b []byte) int {
	if len(b) > 0 && b[0] == tlsHandshake {
		return -1
	}
	return bytes.IndexByte(b, '\n') + 1
}

func FuzzLines(f *testing.F) {
	f.Add([]byte("one\ntwo\r\n\n\nthree"), uint64(1))
	f.Fuzz(func(t *testing.T, data []byte, seed uint64) {
		compare(t, data, seed, &heldFramer{codec: newLineCodec()}, slowLine)
	})
}

// slowLength returns the reference for a prefix.
func slowLength(p Prefix) func([]byte) int {
	return func(b []byte) int {
		w := p.width()
		if len(b) < w {
			return 0
		}
		head := slices.Clone(b[:w])
		if p.Order == binary.LittleEndian {
			slices.Reverse(head)
		}
		n := uint64(0)
		for _, c := range head {
			n = n*256 + uint64(c)
		}
		if p.Whole && n < uint64(w) || n >= 1<<63 && !p.Whole || p.Whole && n-uint64(w) >= 1<<63 {
			return -1
		}
		if p.Whole {
			n -= uint64(w)
		}
		if n > uint64(len(b)-w) {
			return 0
		}
		return w + int(n)
	}
}

func FuzzLengthPrefixed(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x03abc\x00\x00\x00\x00\x00\x00\x00\x01z\x00\x00"), uint64(1), byte(2), false, false)
	f.Add([]byte("\x05\x00abc\x02\x00\x03\x00x"), uint64(1), byte(1), true, true)
	f.Add([]byte("\xff\xff\xff\xff\xff\xff\xff\xff"), uint64(1), byte(3), true, true)
	f.Fuzz(func(t *testing.T, data []byte, seed uint64, width byte, little, whole bool) {
		p := Prefix{Width: 1 << (width % 4), Whole: whole}
		if little {
			p.Order = binary.LittleEndian
		}
		compare(t, data, seed, &lengthFramer{Prefix: p}, slowLength(p))
	})
}

// slowFrame returns the length of the frame at the start of b.
func slowFrame(b []byte) (n int, op byte, fin bool) {
	if len(b) < 2 {
		return 0, 0, false
	}
	head, size := 2, uint64(b[1]&127)
	if size == 126 {
		head += 2
	} else if size == 127 {
		head += 8
	}
	if b[1] >= 128 {
		head += 4
	}
	if len(b) < head {
		return 0, 0, false
	}
	switch size {
	case 126:
		size = uint64(b[2])<<8 | uint64(b[3])
	case 127:
		size = binary.BigEndian.Uint64(b[2:])
	}
	if size >= 1<<63 {
		return -1, 0, false
	}
	if size > uint64(len(b)-head) {
		return 0, 0, false
	}
	return head + int(size), b[0] & 15, b[0] >= 128
}

// slowMessage adds frames until one ends a message and none is open.
func slowMessage(b []byte) int {
	open := false
	for at := 0; ; {
		n, op, fin := slowFrame(b[at:])
		if n <= 0 {
			return n
		}
		at += n
		if op < 8 {
			open = !fin
		}
		if !open {
			return at
		}
	}
}

func FuzzWebSocket(f *testing.F) {
	f.Add([]byte("\x81\x85maskhello\x01\x03abc\x89\x00\x80\x00\x88\x02\x03\xe8"), uint64(1))
	f.Add([]byte("\x82\x7e\x00\x05hello\x82\x7f\x00\x00\x00\x00\x00\x00\x00\x02hi\x82\x7f\xff"), uint64(2))
	f.Add([]byte("\x82\xff\xff\x00\x00\x00\x00\x00\x00\x00mask"), uint64(2))
	f.Fuzz(func(t *testing.T, data []byte, seed uint64) { compare(t, data, seed, &wsFramer{}, slowMessage) })
}

// slowPacket is one MQTT packet.
func slowPacket(b []byte) int {
	if len(b) > 0 && b[0] < 16 {
		return -1
	}
	size := 0
	for i := 1; i < len(b); i++ {
		if i == 5 {
			return -1
		}
		size += int(b[i]&127) << (7 * (i - 1))
		if i == 4 && b[i] >= 128 {
			return -1
		}
		if b[i] < 128 {
			if 1+i+size > len(b) {
				return 0
			}
			return 1 + i + size
		}
	}
	return 0
}

func FuzzMQTT(f *testing.F) {
	f.Add([]byte("\x10\x02ab\xc0\x00\x30\x81\x00x\xe0\x00"), uint64(1))
	f.Add([]byte("\x30\xff\xff\xff\xff\x01"), uint64(1))
	f.Fuzz(func(t *testing.T, data []byte, seed uint64) { compare(t, data, seed, &mqttFramer{}, slowPacket) })
}

func TestFramers_DoNotAllocate(t *testing.T) {
	frame := append([]byte("\x82\x7e\x00\x64"), make([]byte, 100)...)
	ws, mqtt, length := &wsFramer{}, &mqttFramer{}, &lengthFramer{}
	body, lines := bodyFramer{}, &lineCodec{}
	n := testing.AllocsPerRun(100, func() {
		ws.Next(frame)
		mqtt.Next([]byte{0x30, 2, 1, 1})
		length.Next([]byte{0, 0, 0, 1, 7})
		lines.in([]byte("hello\n"))
		body = bodyFramer{step: chunkSize}
		body.Next([]byte("3\r\nabc\r\n0\r\n\r\n"))
	})
	if n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// heldFramer is a codec that is shown again what it holds, as a connection does.
type heldFramer struct {
	codec
	held []byte
}

func (f *heldFramer) Next(b []byte) (int, bool, error) {
	before := len(f.held)
	all := append(f.held, b...)
	used := 0
	for used < len(all) {
		n, end, err := f.in(all[used:])
		used += n
		if end || err != nil {
			f.held = nil
			return used - before, end, err
		}
		if n == 0 {
			break
		}
	}
	f.held = append([]byte(nil), all[used:]...)
	return len(b), false, nil
}

// FuzzWebSocketCodec: holding the frames of compressed messages back does not move a boundary.
func FuzzWebSocketCodec(f *testing.F) {
	f.Add([]byte("\x41\x85maskhello\x00\x03abc\x89\x00\x80\x7e\x00\x03xyz\x81\x01a\xc1\x01a"), uint64(1))
	f.Fuzz(func(t *testing.T, data []byte, seed uint64) {
		compare(t, data, seed, &heldFramer{codec: &wsCodec{}}, slowMessage)
	})
}
