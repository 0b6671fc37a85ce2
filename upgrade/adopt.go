package upgrade

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// This file is the side that takes a connection. The order, for whoever has received it:
//
//	c, err := l.adopt(r, fd)    Accept returns it, the app reads the opening and answers
//	why := <-c.verdict()        "" : the app has accepted. Say so to the other side
//	c.open()                    when it has confirmed, or is dead: the connection is ours. Or c.abandon()

// replay is what an adopted connection needs until it runs.
type replay struct {
	record *record
	room   record // for the record, if it came with an OFFER
	answer []byte // of this app, as far as it has come
	opened bool   // the socket is ours as soon as the app has answered

	by      *taker      // hears the verdict, under this number
	number  uint32      //
	verdict chan Reason // gets it too, if somebody waits there
	judged  bool
}

// newAdopted makes a connection whose app is still to be told of it.
func newAdopted(c *conn, s socket, l *listener, p *replay) *conn {
	r := p.record
	c.sock, c.listener, c.codec = s, l, r.codec(l)
	c.state, c.resumed = replaying, true
	c.replay = p
	c.tail = slices.Clip(r.unsent)
	if r.stateVersion != 0 || len(r.state) > 0 {
		c.session = &session{version: r.stateVersion, state: r.state}
	}
	c.in.add(r.opening)
	c.in.approve(len(r.opening), len(r.opening) > 0)
	return c
}

// codec follows the connection from where it is.
func (r *record) codec(l *listener) codec {
	k := l.protocol.codec()
	switch k.(type) {
	case *httpCodec:
		if len(r.opening) > 0 {
			return &wsCodec{shake: handshake{r.opening, r.extensions, r.subprotocol}}
		}
	case *mqttCodec:
		if len(r.opening) == 0 {
			break // its CONNECT is still to come
		}
		return &mqttCodec{opening: r.opening, answer: r.answer, acked: true}
	}
	return k
}

// rehearseLocked is Read while the app is told the opening again.
func (c *conn) rehearseLocked() (wait bool, err error) {
	if len(c.in.kept()) > 0 {
		return false, nil
	}
	if len(c.opening()) == 0 {
		c.acceptLocked() // a server that reads is an answer
		return true, nil
	}
	return true, c.waitLocked()
}

// answerLocked is Write while the app has not answered. The answer is not for the client, who has had it.
func (c *conn) answerLocked(p []byte) (int, error) {
	r := c.replay
	if len(c.opening()) == 0 {
		c.refuseLocked(ReasonRefused) // it speaks first, or complains of something
		return len(p), nil
	}
	answer := p
	if len(r.answer) > 0 {
		answer = append(r.answer, p...)
	}
	size, ok := c.judgeLocked(answer)
	switch {
	case !ok || size == 0 && len(answer) > MaxOpening:
		c.refuseLocked(ReasonRefused)
	case size > 0:
		return len(p), c.acceptAnswerLocked(answer[size:])
	default:
		r.answer = append(r.answer, p...)
	}
	return len(p), nil
}

// judgeLocked compares an answer with the first one. size is its length, 0 if it is not complete.
func (c *conn) judgeLocked(b []byte) (size int, ok bool) {
	switch k := c.codec.(type) {
	case *wsCodec:
		return k.shake.judge(b)
	case *mqttCodec:
		return k.judgeAnswer(b)
	}
	return 0, false
}

// judgeAnswer looks for the CONNACK.
func (c *mqttCodec) judgeAnswer(b []byte) (size int, ok bool) {
	var f mqttFramer
	n, end, err := f.Next(b)
	if !end || err != nil {
		return 0, err == nil
	}
	return n, f.kind() == mqttConnack && connackCode(b[:n]) == connackCode(c.answer)
}

// judge looks for the 101, and passes over interim answers.
func (k *handshake) judge(b []byte) (size int, ok bool) {
	for {
		n := headEnd(b[size:], 0)
		if n == 0 {
			return 0, true
		}
		head := b[size : size+n]
		size += n
		h, err := parseResponse(head)
		if err != nil || h.status >= 200 {
			return 0, false
		}
		if h.status == 101 {
			return size, k.answeredBy(head)
		}
	}
}

// acceptAnswerLocked goes on after a good answer; rest is what the app wrote behind it.
func (c *conn) acceptAnswerLocked(rest []byte) error {
	c.acceptLocked()
	if len(rest) == 0 {
		return nil
	}
	c.codec.out(rest, false)
	_, err := c.sendLocked(rest)
	c.flushLocked()
	return err
}

// acceptLocked: the app has the connection, as far as it can tell.
func (c *conn) acceptLocked() {
	r := c.replay
	c.state, r.answer = answered, nil
	if r.by == nil || !r.by.barrier {
		c.reportLocked("")
	}
	c.notifyLocked()
	if r.opened {
		c.enterLocked()
	}
}

// reportLocked tells whoever has to know what the app said.
func (c *conn) reportLocked(why Reason) {
	r := c.replay
	if r.judged {
		return
	}
	r.judged = true
	if r.verdict != nil {
		r.verdict <- why
	}
	if r.by != nil {
		r.by.judged(r.number, c, why)
	}
}

// settledLocked: the app has accepted, and reads or will not. In barrier mode that is its verdict.
func (c *conn) settledLocked() { c.reportLocked("") }

// enterLocked: app and peer agree, the socket is ours.
func (c *conn) enterLocked() {
	kept, rest := c.replay.record.kept, c.replay.record.idle
	c.state, c.replay = running, nil
	if _, ok := c.codec.(*httpCodec); ok && len(kept) == 0 {
		c.idle = &idle{since: time.Now()}
		if rest > 0 {
			c.idle.by = c.idle.since.Add(rest)
		}
	}
	c.in.add(kept)
	if c.ending {
		c.ending = false
		c.endLocked()
		return
	}
	if c.readBy != 0 || c.idle != nil {
		c.armLocked()
	}
	if c.writeBy != 0 {
		c.sock.SetWriteDeadline(c.writeBy.time())
	}
	c.notifyLocked()
	c.flushLocked()
}

// endLocked is a Close that had to wait.
func (c *conn) endLocked() {
	if len(c.tail) > 0 {
		c.lingerLocked()
		return
	}
	c.closeLocked(ReasonClosed)
}

// refuseLocked gives an adopted connection up. It is the other side's, and the client hears nothing; if there is no
// other side any more, it ends.
func (c *conn) refuseLocked(why Reason) {
	if c.state != replaying && c.state != answered {
		return
	}
	if c.state == replaying {
		c.reportLocked(why)
	}
	c.state, c.replay = refused, nil
	c.in = inbox{}
	c.forgetLocked()
	c.stayLocked(ReasonClosed)
	c.sock.Close()
}

// verdict gets "" when the app has accepted, a reason when it has not. It gets it once.
func (c *conn) verdict() <-chan Reason {
	c.mu.Lock()
	defer c.mu.Unlock()
	verdict := make(chan Reason, 1)
	switch {
	case c.state == replaying:
		c.replay.verdict = verdict
	case c.state == refused:
		verdict <- ReasonRefused
	default:
		verdict <- ""
	}
	return verdict
}

// open makes the connection ours: the other side has confirmed or is dead. From here on, and not before, bytes flow.
func (c *conn) open() {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch c.state {
	case replaying:
		c.replay.opened = true
	case answered:
		c.enterLocked()
	}
}

// abandon gives the connection back: it stays with the other side.
func (c *conn) abandon() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.refuseLocked(ReasonRefused)
}

// arrival is all that an adopted connection is made of, in one piece.
type arrival struct {
	conn
	socket fdSocket
}

// tcpEnd is an address with its bytes.
type tcpEnd struct {
	net.TCPAddr
	ip [net.IPv6len]byte
}

func (e *tcpEnd) set(a netip.AddrPort) {
	e.Port, e.Zone = int(a.Port()), a.Addr().Zone()
	e.IP = e.ip[:copy(e.ip[:], a.Addr().AsSlice())]
}

// makeAdopted makes a connection of a record and its descriptor, which is ours from here on, also with an error.
func (l *listener) makeAdopted(p *replay, fd int) (*conn, error) {
	r := p.record
	if r.listener != l.name || r.protocol != l.protocol.name {
		unix.Close(fd)
		return nil, fmt.Errorf("adopt a connection of listener %q (%s) at listener %q (%s)", r.listener, r.protocol, l.name, l.protocol.name)
	}
	a := &arrival{}
	if err := a.socket.init(fd, r); err != nil {
		return nil, err
	}
	return newAdopted(&a.conn, &a.socket, l, p), nil
}

// fdSocket is a connection made of a descriptor, in the cheapest way there is: a quarter of the price of net.FileConn.
type fdSocket struct {
	*os.File
	local, remote tcpEnd
	other         *[2]net.Addr // instead of these, if it is no TCP
}

// init takes fd over: with an error it is closed. The record may know the addresses.
func (s *fdSocket) init(fd int, r *record) (err error) {
	if r.local.IsValid() && r.remote.IsValid() {
		s.local.set(r.local)
		s.remote.set(r.remote)
	} else {
		s.other = &[2]net.Addr{}
		s.other[0], s.other[1], err = addresses(fd)
	}
	if err != nil {
		unix.Close(fd)
		return fmt.Errorf("adopt descriptor %d: %w", fd, err)
	}
	s.File = os.NewFile(uintptr(fd), "adopted")
	if s.File.SetDeadline(time.Time{}) == nil {
		return nil
	}
	// The side before has left it blocking, so it is in no poller: that is decided when the file is made.
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	s.File.Close()
	if err == nil {
		err = unix.SetNonblock(dup, true)
		s.File = os.NewFile(uintptr(dup), "adopted")
	}
	return err
}

func addresses(fd int) (local, remote net.Addr, err error) {
	l, err := unix.Getsockname(fd)
	if err != nil {
		return nil, nil, os.NewSyscallError("getsockname", err)
	}
	r, err := unix.Getpeername(fd)
	if err == unix.ENOTCONN {
		r, err = nil, nil // reset meanwhile: the app is to see that
	}
	if err != nil {
		return nil, nil, os.NewSyscallError("getpeername", err)
	}
	return address(l), address(r), nil
}

func address(sa unix.Sockaddr) net.Addr {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return &net.TCPAddr{IP: slices.Clone(sa.Addr[:]), Port: sa.Port}
	case *unix.SockaddrInet6:
		return &net.TCPAddr{IP: slices.Clone(sa.Addr[:]), Port: sa.Port, Zone: zone(sa.ZoneId)}
	case *unix.SockaddrUnix:
		return &net.UnixAddr{Name: sa.Name, Net: "unix"}
	}
	return &net.TCPAddr{}
}

func zone(index uint32) string {
	if index == 0 {
		return ""
	}
	if i, err := net.InterfaceByIndex(int(index)); err == nil {
		return i.Name
	}
	return fmt.Sprint(index)
}

func (s *fdSocket) LocalAddr() net.Addr {
	if s.other != nil {
		return s.other[0]
	}
	return &s.local.TCPAddr
}

func (s *fdSocket) RemoteAddr() net.Addr {
	if s.other != nil {
		return s.other[1]
	}
	return &s.remote.TCPAddr
}

func (s *fdSocket) Read(p []byte) (int, error) {
	n, err := s.File.Read(p)
	return n, s.wrap("read", err)
}

func (s *fdSocket) Write(p []byte) (int, error) {
	n, err := s.File.Write(p)
	return n, s.wrap("write", err)
}

func (s *fdSocket) Close() error { return s.wrap("close", s.File.Close()) }

// wrap makes an error of package os look like one of package net: libraries tell them apart.
func (s *fdSocket) wrap(op string, err error) error {
	pe, ok := err.(*os.PathError)
	if !ok {
		return err
	}
	err = pe.Err
	if errno, ok := err.(unix.Errno); ok {
		err = os.NewSyscallError(op, errno)
	} else if err == os.ErrClosed || strings.Contains(err.Error(), "closed") {
		err = net.ErrClosed
	}
	return opError(op, s, err)
}
