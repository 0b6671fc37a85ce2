package libtest

import (
	"bufio"
	"bytes"
	"compress/flate"
	"crypto/subtle"
	"encoding/binary"
	"errors"
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
	compress bool          // offers compression
	largest  int           // bytes of a message
	cut      int           // largest TCP write; 0: any
	stall    time.Duration // how long it does not read now and then
	pace     time.Duration // how long it waits between messages, at most
	quiet    bool          // sends no pings: what is not read holds their answers up
	buffer   int           // receive buffer; 0: the kernel's choice
	ahead    int           // messages on their way
	before   int           // ordinary requests on the same connection, before it becomes a WebSocket
	end      ending
}

// ending is how a client leaves.
type ending int

const (
	stays  ending = iota // to the end of the story
	closes               // with a close frame, right behind its last message
	asks                 // for a close frame from the server
	halves               // shuts down its writing side, and reads on
)

// patience is how long an answer may take before it counts as lost. Nothing is expected to take long.
const patience = 90 * time.Second

// text is what messages are cut out of: letters that compress a little.
var text = func() []byte {
	rng := rand.New(rand.NewPCG(7, 7))
	b := make([]byte, 9<<20)
	for i := 0; i < len(b); i += 16 {
		v := rng.Uint64()
		for k := range 16 {
			b[i+k] = 'a' + byte(v>>(4*k)&15)
		}
	}
	return b
}()

// client sends numbered messages and checks each answer.
type client struct {
	hostile
	patience time.Duration
	answer   func() // is called for each
	over     chan struct{}
	conn     *net.TCPConn
	in       *bufio.Reader
	rng      *rand.Rand // of the writing half
	deflate  bool       // agreed
	window   []byte
	tickets  chan ticket // messages on their way, in order
	answered uint64
	pings    uint64
	pongs    uint64
}

// ticket is a message on its way.
type ticket struct {
	n    uint64
	text []byte
	bye  bool
}

func dial(addr string, h hostile, rng *rand.Rand) (*client, error) {
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	c := &client{hostile: h, patience: patience, answer: func() {}, over: make(chan struct{}), conn: conn.(*net.TCPConn), in: bufio.NewReader(conn), rng: rng, tickets: make(chan ticket, max(1, h.ahead))}
	if h.buffer > 0 {
		c.conn.SetReadBuffer(h.buffer)
	}
	return c, nil
}

// open makes the connection a WebSocket.
func (c *client) open() error {
	for range c.before {
		if err := c.ask(); err != nil {
			return err
		}
	}
	req, err := http.NewRequest("GET", "http://"+c.conn.RemoteAddr().String()+"/ws", nil)
	if err != nil {
		return err
	}
	req.Header = http.Header{"Upgrade": {"websocket"}, "Connection": {"Upgrade"}, "Sec-Websocket-Version": {"13"}, "Sec-Websocket-Key": {"dGhlIHNhbXBsZSBub25jZQ=="}}
	if c.compress {
		req.Header.Set("Sec-WebSocket-Extensions", "permessage-deflate; client_max_window_bits")
	}
	var b bytes.Buffer
	req.Write(&b)
	if err := c.write(b.Bytes()); err != nil {
		return err
	}
	c.conn.SetReadDeadline(time.Now().Add(c.patience))
	res, err := http.ReadResponse(c.in, req)
	if err != nil {
		return fmt.Errorf("the upgrade: %w", err)
	}
	if res.StatusCode != 101 {
		return fmt.Errorf("the upgrade was answered with %s", res.Status)
	}
	c.deflate = strings.Contains(res.Header.Get("Sec-WebSocket-Extensions"), "permessage-deflate")
	return nil
}

// ask is an ordinary request.
func (c *client) ask() error {
	if err := c.write([]byte("GET /hello HTTP/1.1\r\nHost: a\r\n\r\n")); err != nil {
		return err
	}
	c.conn.SetReadDeadline(time.Now().Add(c.patience))
	res, err := http.ReadResponse(c.in, nil)
	if err != nil {
		return fmt.Errorf("an ordinary request: %w", err)
	}
	if b, err := io.ReadAll(res.Body); err != nil || !bytes.HasSuffix(b, []byte(" /hello")) {
		return fmt.Errorf("an ordinary request was answered with %q: %w", b, err)
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

// talk sends messages until stop is closed, waits for all answers, and leaves. It closes the connection.
func (c *client) talk(stop <-chan struct{}) error {
	defer c.conn.Close()
	written := make(chan error, 1)
	go func() { written <- c.speak(stop) }()
	err := c.listen()
	if err != nil {
		c.conn.Close()
		for range c.tickets { // the writing half may wait to put one there
		}
		<-written
		return fmt.Errorf("after %d answers: %w", c.answered, err)
	}
	if err := <-written; err != nil {
		return fmt.Errorf("write after %d answers: %w", c.answered, err)
	}
	if err := c.leave(); err != nil {
		return fmt.Errorf("at the end, after %d answers: %w", c.answered, err)
	}
	return nil
}

// batch is about how many bytes of messages are put together before they are sent.
const batch = 16 << 10

// speak is the writing half.
func (c *client) speak(stop <-chan struct{}) error {
	defer close(c.tickets)
	var b []byte
	left := -1 // messages, when it is known
	for n := uint64(0); left != 0; n++ {
		left = c.countdown(left, stop)
		if c.pace > 0 {
			time.Sleep(time.Duration(c.rng.Int64N(int64(c.pace))))
		}
		m := ticket{n: n, text: c.message(), bye: left == 0 && c.end == asks}
		select {
		case c.tickets <- m:
		default:
			if err := c.write(b); err != nil {
				return err
			}
			b = b[:0]
			c.tickets <- m
		}
		if b = c.frames(b, m); len(b) > batch {
			if err := c.write(b); err != nil {
				return err
			}
			b = b[:0]
		}
	}
	if c.end == closes {
		b = c.frame(b, 0x88, 3, 232)
	}
	if err := c.write(b); err != nil {
		return err
	}
	if c.end == halves {
		return c.conn.CloseWrite()
	}
	return nil
}

// countdown says how many messages are left: some, once stop is closed, so that the end falls anywhere.
func (c *client) countdown(left int, stop <-chan struct{}) int {
	if left > 0 {
		return left - 1
	}
	select {
	case <-stop:
		return c.rng.IntN(30)
	default:
		return -1
	}
}

// message chooses what a message says.
func (c *client) message() []byte {
	size := c.rng.IntN(200)
	if c.largest > 0 && c.rng.IntN(4) == 0 {
		size += c.rng.IntN(c.largest)
	}
	at := c.rng.IntN(len(text) - size)
	return text[at : at+size]
}

// frames appends the frames of a message: fragments, pings between them.
func (c *client) frames(b []byte, m ticket) []byte {
	p := binary.BigEndian.AppendUint64(nil, m.n)
	if m.bye {
		p = append(p, '!')
	}
	p = append(p, m.text...)
	first := byte(2)
	if c.deflate {
		first |= 0x40
		p = deflated(p)
	}
	for fragments := 1 + max(0, c.rng.IntN(6)-2); ; fragments-- {
		if c.rng.IntN(8) == 0 && !m.bye && !c.quiet {
			b = c.frame(b, 0x89, binary.BigEndian.AppendUint64(nil, c.pings)...)
			c.pings++
		}
		if fragments == 1 || len(p) == 0 {
			return c.frame(b, first|0x80, p...)
		}
		n := c.rng.IntN(len(p) + 1)
		b = c.frame(b, first, p[:n]...)
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

func (c *client) frame(b []byte, first byte, p ...byte) []byte {
	b = append(b, first)
	switch {
	case len(p) < 126:
		b = append(b, 0x80|byte(len(p)))
	case len(p) < 1<<16:
		b = binary.BigEndian.AppendUint16(append(b, 0x80|126), uint16(len(p)))
	default:
		b = binary.BigEndian.AppendUint64(append(b, 0x80|127), uint64(len(p)))
	}
	var key [4096]byte
	binary.BigEndian.PutUint32(key[:], c.rng.Uint32())
	for n := 4; n < min(len(key), len(p)); n *= 2 {
		copy(key[n:], key[:n])
	}
	b = append(b, key[:4]...)
	at := len(b)
	b = append(b, p...)
	for rest := b[at:]; len(rest) > 0; {
		rest = rest[subtle.XORBytes(rest, rest, key[:]):]
	}
	return b
}

// listen is the reading half: it checks every answer.
func (c *client) listen() error {
	rng := rand.New(rand.NewPCG(uint64(c.conn.LocalAddr().(*net.TCPAddr).Port), 2))
	var deadline time.Time
	for m := range c.tickets {
		if c.stall > 0 && rng.IntN(20) == 0 {
			time.Sleep(time.Duration(rng.Int64N(int64(c.stall))))
		}
		if now := time.Now(); deadline.Before(now.Add(c.patience)) {
			deadline = now.Add(c.patience + time.Second)
			c.conn.SetReadDeadline(deadline)
		}
		if err := c.check(m); err != nil {
			return err
		}
		c.answered++
		c.answer()
	}
	c.conn.SetReadDeadline(time.Now().Add(c.patience))
	return nil
}

// check reads the answer to m.
func (c *client) check(m ticket) error {
	got, err := c.read()
	if err != nil {
		return err
	}
	head := 16
	if m.bye {
		head++
	}
	if len(got) < head {
		return fmt.Errorf("an answer of %d bytes: %q", len(got), got)
	}
	count, n := binary.BigEndian.Uint64(got), binary.BigEndian.Uint64(got[8:])
	if n != m.n {
		return fmt.Errorf("message %d was answered where %d was due", n, m.n)
	}
	if count != m.n {
		return fmt.Errorf("message %d was number %d for the server", m.n, count)
	}
	if !bytes.Equal(got[head:], m.text) {
		return fmt.Errorf("message %d of %d bytes came back with %d, other from byte %d on", n, len(m.text), len(got)-head, differ(got[head:], m.text))
	}
	return nil
}

// differ returns where two texts part.
func differ(a, b []byte) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}

// closed is a close frame.
type closed struct{ body []byte }

func (c closed) Error() string { return fmt.Sprintf("closed by the server: %q", c.body) }

func (c closed) code() int {
	if len(c.body) < 2 {
		return 0
	}
	return int(binary.BigEndian.Uint16(c.body))
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
			return nil, closed{payload}
		case op == 10:
			if err := c.pong(payload); err != nil {
				return nil, err
			}
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
	if compressed {
		return c.inflate(p)
	}
	return p, nil
}

// pong checks the order of pongs. One may come twice: a ping in the middle of a message that is replayed is answered again.
func (c *client) pong(p []byte) error {
	if len(p) != 8 {
		return fmt.Errorf("a pong to no ping: %q", p)
	}
	n := binary.BigEndian.Uint64(p)
	if n > c.pongs {
		return fmt.Errorf("a pong to ping %d before that to %d", n, c.pongs)
	}
	if n == c.pongs {
		c.pongs++
	}
	return nil
}

func (c *client) inflate(p []byte) ([]byte, error) {
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

// leave waits for the end that this client has asked for, and checks that nothing is left over but pongs.
func (c *client) leave() error {
	var err error
	switch c.end {
	case closes:
		err = c.awaitClose(1000)
	case asks:
		err = c.awaitClose(4001)
		c.conn.Write(c.frame(nil, 0x88, 15, 161))
	case halves:
		err = c.awaitEnd()
	default:
		err = c.awaitPong()
	}
	if err == nil && c.pongs < c.pings {
		err = fmt.Errorf("%d pings were answered by %d pongs", c.pings, c.pongs)
	}
	return err
}

// awaitClose expects a close frame as the next thing.
func (c *client) awaitClose(code int) error {
	p, err := c.read()
	var end closed
	if !errors.As(err, &end) || end.code() != code {
		return fmt.Errorf("expected a close frame with %d: %.20q, %v", code, p, err)
	}
	return nil
}

// awaitEnd expects the end of the connection; libraries may say goodbye before.
func (c *client) awaitEnd() error {
	p, err := c.read()
	var end closed
	if errors.As(err, &end) {
		p, err = c.read()
	}
	if err != io.EOF {
		return fmt.Errorf("expected the end: %.20q, %v", p, err)
	}
	return nil
}

// awaitPong asks for a pong, which comes after everything else.
func (c *client) awaitPong() error {
	if err := c.write(c.frame(nil, 0x89, binary.BigEndian.AppendUint64(nil, c.pings)...)); err != nil {
		return err
	}
	for c.pings++; c.pongs < c.pings; {
		first, p, err := c.readFrame()
		if err != nil {
			return fmt.Errorf("wait for the last pong: %w", err)
		}
		if first&15 != 10 {
			return fmt.Errorf("left over: %x %.80q", first, p)
		}
		if err := c.pong(p); err != nil {
			return err
		}
	}
	return nil
}
