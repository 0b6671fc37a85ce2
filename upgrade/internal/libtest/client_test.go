package libtest

import (
	"bufio"
	"bytes"
	"compress/flate"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"time"
)

// hostile says what a client does to its server.
type hostile struct {
	path     string
	compress bool
	largest  int           // bytes of a message
	cut      int           // largest TCP write; 0: any
	stall    time.Duration // how long it does not read now and then
	buffer   int           // receive buffer, 0: the kernel's choice
	ahead    int           // messages on their way
}

// client sends numbered messages and checks each answer.
type client struct {
	hostile
	conn     net.Conn
	in       *bufio.Reader
	rng      *rand.Rand
	deflate  bool // agreed
	window   []byte
	tickets  chan []byte // messages on their way, in order
	messages int
	pings    int
	pongs    int
}

func dial(addr string, h hostile, seed uint64) (*client, error) {
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	if h.buffer > 0 {
		conn.(*net.TCPConn).SetReadBuffer(h.buffer)
	}
	conn.(*net.TCPConn).SetNoDelay(true)
	c := &client{hostile: h, conn: conn, in: bufio.NewReader(conn), rng: rand.New(rand.NewPCG(seed, 1)), tickets: make(chan []byte, max(1, h.ahead))}
	if err := c.handshake(addr); err != nil {
		conn.Close()
		return nil, err
	}
	return c, nil
}

func (c *client) handshake(addr string) error {
	req, _ := http.NewRequest("GET", "http://"+addr+c.path, nil)
	req.Header = http.Header{"Upgrade": {"websocket"}, "Connection": {"Upgrade"}, "Sec-Websocket-Version": {"13"}, "Sec-Websocket-Key": {"dGhlIHNhbXBsZSBub25jZQ=="}}
	if c.compress {
		req.Header.Set("Sec-WebSocket-Extensions", "permessage-deflate; client_max_window_bits")
	}
	var b bytes.Buffer
	req.Write(&b)
	if err := c.write(b.Bytes()); err != nil {
		return err
	}
	res, err := http.ReadResponse(c.in, req)
	if err != nil {
		return err
	}
	if res.StatusCode != 101 {
		return fmt.Errorf("the upgrade was answered with %s", res.Status)
	}
	agreed := res.Header.Get("Sec-WebSocket-Extensions")
	if c.deflate = strings.Contains(agreed, "permessage-deflate"); c.compress && !c.deflate {
		return fmt.Errorf("no compression agreed: %q", agreed)
	}
	return nil
}

// write sends b in pieces.
func (c *client) write(b []byte) error {
	for len(b) > 0 {
		n := len(b)
		if c.cut > 0 {
			n = min(n, 1+c.rng.IntN(c.cut))
		}
		if _, err := c.conn.Write(b[:n]); err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// talk sends messages until stop is closed and then waits for all answers.
func (c *client) talk(stop <-chan struct{}) error {
	written := make(chan error, 1)
	go func() { written <- c.speak(stop) }()
	if err := c.listen(); err != nil {
		c.conn.Close()
		for range c.tickets { // the writing half may wait to put one there
		}
		<-written
		return err
	}
	if err := <-written; err != nil {
		return fmt.Errorf("write after %d messages: %w", c.messages, err)
	}
	return c.quiet()
}

// speak is the writing half.
func (c *client) speak(stop <-chan struct{}) error {
	defer close(c.tickets)
	for n := uint64(0); ; n++ {
		select {
		case <-stop:
			return nil
		default:
		}
		p := c.message(n)
		c.tickets <- p
		if err := c.write(c.frames(p)); err != nil {
			return err
		}
	}
}

// message makes message n: its number and letters that compress a little.
func (c *client) message(n uint64) []byte {
	size := 8 + c.rng.IntN(200)
	if c.rng.IntN(4) == 0 {
		size += c.rng.IntN(c.largest)
	}
	p := make([]byte, size)
	binary.BigEndian.PutUint64(p, n)
	for i := 8; i < size; i += 8 {
		v := c.rng.Uint64()
		for k := i; k < min(i+8, size); k++ {
			p[k] = 'a' + byte(v&15)
			v >>= 8
		}
	}
	return p
}

// frames makes the frames of a message: fragments, pings between them.
func (c *client) frames(p []byte) []byte {
	var b []byte
	first := byte(2)
	if c.deflate {
		first |= 0x40
		p = deflated(p)
	}
	for fragments := 1 + c.rng.IntN(4); ; fragments-- {
		if c.rng.IntN(8) == 0 {
			b = c.frame(b, 0x89, []byte("are you there"))
			c.pings++
		}
		if fragments == 1 || len(p) == 0 {
			return c.frame(b, first|0x80, p)
		}
		n := c.rng.IntN(len(p) + 1)
		b = c.frame(b, first, p[:n])
		first, p = 0, p[n:]
	}
}

func deflated(p []byte) []byte {
	var b bytes.Buffer
	w, _ := flate.NewWriter(&b, 3)
	w.Write(p)
	w.Flush()
	return bytes.TrimSuffix(b.Bytes(), []byte{0, 0, 0xff, 0xff})
}

func (c *client) frame(b []byte, first byte, p []byte) []byte {
	b = append(b, first)
	switch {
	case len(p) < 126:
		b = append(b, 0x80|byte(len(p)))
	case len(p) < 1<<16 && c.rng.IntN(2) == 0:
		b = binary.BigEndian.AppendUint16(append(b, 0x80|126), uint16(len(p)))
	case len(p) < 1<<16:
		b = binary.BigEndian.AppendUint16(append(b, 0x80|126), uint16(len(p)))
	default:
		b = binary.BigEndian.AppendUint64(append(b, 0x80|127), uint64(len(p)))
	}
	mask := [4]byte{byte(c.rng.Uint32()), byte(c.rng.Uint32()), 7, 9}
	b = append(b, mask[:]...)
	for i, v := range p {
		b = append(b, v^mask[i&3])
	}
	return b
}

// listen is the reading half: it checks every answer.
func (c *client) listen() error {
	rng := rand.New(rand.NewPCG(uint64(c.conn.LocalAddr().(*net.TCPAddr).Port), 2))
	for p := range c.tickets {
		if c.stall > 0 && rng.IntN(20) == 0 {
			time.Sleep(time.Duration(rng.Int64N(int64(c.stall))))
		}
		got, err := c.read()
		if err != nil {
			return fmt.Errorf("after %d messages: %w", c.messages, err)
		}
		if len(got) < 8 || !bytes.Equal(got[8:], p) {
			return fmt.Errorf("answer %d, of %d bytes, is to another message: want %d bytes, they differ from byte %d on; %.20q", c.messages, len(got), len(p), differ(got, p), got)
		}
		if n := binary.BigEndian.Uint64(got); n != uint64(c.messages) {
			return fmt.Errorf("message %d was number %d for the server", c.messages, n)
		}
		c.messages++
	}
	return nil
}

// differ returns where an answer stops being the message.
func differ(got, p []byte) int {
	for i := range p {
		if i+8 >= len(got) || got[i+8] != p[i] {
			return i
		}
	}
	return len(p)
}

// read returns the next message.
func (c *client) read() ([]byte, error) {
	var p []byte
	compressed := false
	for {
		first, payload, err := c.readFrame()
		if err != nil {
			return nil, err
		}
		switch op := first & 15; {
		case op == 8:
			return nil, fmt.Errorf("closed by the server: %q", payload)
		case op == 10:
			c.pongs++
			continue
		case op > 8:
			continue
		case op != 0:
			compressed = first&0x40 != 0
		}
		p = append(p, payload...)
		if first&0x80 != 0 {
			break
		}
	}
	if !compressed {
		return p, nil
	}
	r := flate.NewReaderDict(io.MultiReader(bytes.NewReader(p), strings.NewReader("\x00\x00\xff\xff\x01\x00\x00\xff\xff")), c.window)
	p, err := io.ReadAll(r)
	c.window = append(c.window, p...)
	c.window = c.window[max(0, len(c.window)-32<<10):]
	return p, err
}

func (c *client) readFrame() (first byte, p []byte, err error) {
	var head [8]byte
	if _, err := io.ReadFull(c.in, head[:2]); err != nil {
		return 0, nil, err
	}
	first = head[0]
	size := uint64(head[1])
	switch {
	case size > 127 || first&0x30 != 0 || first&15 > 10:
		return 0, nil, fmt.Errorf("no frame: %x", head[:2])
	case size == 126:
		_, err = io.ReadFull(c.in, head[:2])
		size = uint64(binary.BigEndian.Uint16(head[:]))
	case size == 127:
		_, err = io.ReadFull(c.in, head[:8])
		size = binary.BigEndian.Uint64(head[:])
	}
	if err != nil || size > 64<<20 {
		return 0, nil, fmt.Errorf("a frame of %d bytes: %w", size, err)
	}
	p = make([]byte, size)
	_, err = io.ReadFull(c.in, p)
	return first, p, err
}

// quiet checks that nothing is left over but pongs.
func (c *client) quiet() error {
	if err := c.write(c.frame(nil, 0x89, []byte("last"))); err != nil {
		return err
	}
	for {
		first, p, err := c.readFrame()
		if err != nil {
			return fmt.Errorf("wait for the last pong: %w", err)
		}
		if first&15 != 10 {
			return fmt.Errorf("left over: %x %.80q", first, p)
		}
		if string(p) == "last" {
			return nil
		}
		c.pongs++
	}
}
