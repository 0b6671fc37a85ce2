package load

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"sync"
	"time"

	"github.com/gorilla/websocket"
)

// state of a socket; it only ever goes forward.
type state int

const (
	opening state = iota // not connected, or its first echo is still due
	open
	settling // no more sending; the last echoes are due
	leaving  // we close it: its end is no news
	closed   // it ended before we wanted it to
	failed   // it never opened
)

// socket is one held WebSocket. Messages are sent by one goroutine at a time
// (the opener the first, the shared sender all others), read by its own.
type socket struct {
	id    int
	notes *notes
	conn  *websocket.Conn // set before the state is open

	first   chan struct{} // closed at the first echo, or when there will be none
	settled chan struct{} // closed when nothing is due any more
	ended   chan struct{} // closed when the reader is gone

	mu      sync.Mutex // protects what follows; notes.mu is taken under it
	state   state
	check   check
	sentAt  [window]time.Time // by message number modulo window
	slowest time.Duration     // from sending to echo
	skipped int64             // not sent since window messages were unanswered
	marks   []mark
}

func newSocket(id int, held Held, n *notes) *socket {
	return &socket{
		id: id, notes: n,
		check: newCheck(held, fmt.Sprintf("load/%d/", id)),
		first: make(chan struct{}), settled: make(chan struct{}), ended: make(chan struct{}),
	}
}

// open connects, sends the first message and waits for its echo. It must be
// called once; after an error the socket is failed or closed and was noted.
func (s *socket) open(ctx context.Context, d *websocket.Dialer, url string) error {
	conn, resp, err := d.DialContext(ctx, url, nil)
	if err != nil {
		if resp != nil {
			err = fmt.Errorf("%w: %s", err, resp.Status)
		}
		return s.neverOpened(err)
	}
	conn.SetReadLimit(64 << 10)
	s.conn = conn
	go s.read()
	s.send(opening)
	select {
	case <-s.first:
	case <-ctx.Done():
		conn.Close()
		<-s.ended
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state != opening {
		return fmt.Errorf("websocket %d: ended before its first echo", s.id)
	}
	s.state = open
	return nil
}

func (s *socket) neverOpened(err error) error {
	s.mu.Lock()
	s.state = failed
	s.marks = fire(s.marks, math.MaxInt64)
	s.mu.Unlock()
	close(s.ended)
	close(s.settled)
	err = fmt.Errorf("websocket %d: opening: %w", s.id, err)
	s.notes.add("%v", err)
	return err
}

// send sends the next message if the socket is in the state given. It does not
// block: window messages fit into the socket's buffers.
func (s *socket) send(in state) {
	now := time.Now()
	s.mu.Lock()
	if s.state != in {
		s.mu.Unlock()
		return
	}
	if s.check.outstanding() >= window {
		s.skipped++
		s.mu.Unlock()
		return
	}
	text := s.check.nextMessage()
	s.sentAt[s.check.sent%window] = now
	s.mu.Unlock()

	_ = s.conn.SetWriteDeadline(now.Add(10 * time.Second))
	if err := s.conn.WriteMessage(websocket.TextMessage, []byte(text)); err != nil {
		s.unsent(err)
	}
}

// unsent: a write failed. The reader learns of the end as well, but perhaps not
// of its cause: the kernel tells that once. Of a timeout it learns nothing.
func (s *socket) unsent(err error) {
	s.mu.Lock()
	wanted := s.state == leaving
	s.mu.Unlock()
	if !wanted {
		s.notes.add("websocket %d: sending: %v", s.id, err)
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		s.conn.Close()
	}
}

// read judges every frame until the connection ends.
func (s *socket) read() {
	defer close(s.ended)
	for {
		kind, frame, err := s.conn.ReadMessage()
		if err != nil {
			s.gone(err)
			return
		}
		s.received(kind, frame)
	}
}

func (s *socket) received(kind int, frame []byte) {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if kind != websocket.TextMessage {
		s.check.wrong++
		s.notes.add("websocket %d: a message of kind %d", s.id, kind)
		return
	}
	newest, problems := s.check.receive(frame)
	for _, p := range problems {
		s.notes.add("websocket %d: %s", s.id, p)
	}
	if newest > 0 {
		s.slowest = max(s.slowest, now.Sub(s.sentAt[newest%window]))
	}
	if newest == 1 {
		s.closeOnce(s.first)
	}
	if s.state == settling && s.check.outstanding() == 0 {
		s.closeOnce(s.settled)
	}
	s.marks = fire(s.marks, s.check.next)
}

// gone: the connection ended, by us or by them.
func (s *socket) gone(err error) {
	s.conn.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closeOnce(s.first)
	s.closeOnce(s.settled)
	s.marks = fire(s.marks, math.MaxInt64)
	if s.state == leaving {
		return
	}
	var frame *websocket.CloseError
	how := "connection ended"
	// 1006 is gorilla's own word for an end without a close frame.
	if errors.As(err, &frame) && frame.Code != websocket.CloseAbnormalClosure {
		how = "closed by the server"
	}
	s.notes.add("websocket %d: %s: %v", s.id, how, err)
	s.state = closed
}

// closeOnce needs s.mu.
func (s *socket) closeOnce(c chan struct{}) {
	select {
	case <-c:
	default:
		close(c)
	}
}

// settle ends the sending; settled is closed when the last echo is there.
func (s *socket) settle() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state != open {
		return
	}
	s.state = settling
	if s.check.outstanding() == 0 {
		s.closeOnce(s.settled)
	}
}

// leave says goodbye; the reader ends when the server has answered that.
func (s *socket) leave() {
	s.mu.Lock()
	gone := s.state == closed || s.state == failed
	if !gone {
		s.state = leaving
	}
	s.mu.Unlock()
	if gone {
		return
	}
	bye := websocket.FormatCloseMessage(websocket.CloseNormalClosure, "")
	if s.conn.WriteControl(websocket.CloseMessage, bye, time.Now().Add(time.Second)) != nil {
		s.conn.Close()
	}
}
