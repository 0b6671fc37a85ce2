package upgrade

import (
	"fmt"
	"net"
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
	record  *record
	answer  []byte      // of this app, as far as it has come
	verdict chan Reason // gets one value
	opened  bool        // the socket is ours as soon as the app has answered
}

// newAdopted makes a connection whose app is still to be told of it.
func newAdopted(s socket, l *listener, r *record) *conn {
	c := newConn(s, l)
	c.state, c.resumed = replaying, true
	c.replay = &replay{record: r, verdict: make(chan Reason, 1)}
	c.tail = slices.Clip(r.unsent)
	c.session = &session{version: r.stateVersion, state: r.state}
	switch c.codec.(type) {
	case *httpCodec:
		if len(r.opening) > 0 {
			c.codec = &wsCodec{shake: handshake{slices.Clone(r.opening), r.extensions, r.subprotocol}}
		}
	case *mqttCodec:
		if len(r.opening) == 0 {
			break // its CONNECT is still to come
		}
		c.codec = &mqttCodec{opening: slices.Clone(r.opening), answer: slices.Clone(r.answer), acked: true}
	}
	s.SetDeadline(time.Time{}) // what the connection before this one may have left
	c.in.add(r.opening)
	c.in.approve(len(r.opening), len(r.opening) > 0)
	return c
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
	r.answer = append(r.answer, p...)
	size, ok := c.judgeLocked(r.answer)
	switch {
	case !ok || size == 0 && len(r.answer) > MaxOpening:
		c.refuseLocked(ReasonRefused)
	case size > 0:
		return len(p), c.acceptAnswerLocked(r.answer[size:])
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
	r.verdict <- ""
	c.notifyLocked()
	if r.opened {
		c.enterLocked()
	}
}

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
	c.armLocked()
	c.sock.SetWriteDeadline(c.writeBy.time())
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
		c.replay.verdict <- why
	}
	c.state, c.replay = refused, nil
	c.in = inbox{}
	c.forgetLocked()
	c.stayLocked(ReasonClosed)
	c.sock.Close()
}

// verdict gets "" when the app has accepted, a reason when it has not.
func (c *conn) verdict() <-chan Reason {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.replay == nil {
		settled := make(chan Reason, 1)
		if settled <- ""; c.state == refused {
			<-settled
			settled <- ReasonRefused
		}
		return settled
	}
	return c.replay.verdict
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

// fdSocket is a connection made of a descriptor, in the cheapest way there is: a quarter of the price of net.FileConn.
type fdSocket struct {
	*os.File
	local, remote net.Addr
}

// newFDSocket takes fd over: with an error it is closed.
func newFDSocket(fd int) (*fdSocket, error) {
	local, remote, err := addresses(fd)
	if err == nil {
		err = unix.SetNonblock(fd, true)
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("adopt descriptor %d: %w", fd, err)
	}
	return &fdSocket{os.NewFile(uintptr(fd), "adopted"), local, remote}, nil
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

func (s *fdSocket) LocalAddr() net.Addr  { return s.local }
func (s *fdSocket) RemoteAddr() net.Addr { return s.remote }

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
