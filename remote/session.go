package remote

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"

	"golang.org/x/crypto/ssh"
)

// Session is a connection to a host. It may be used from several
// goroutines. [Session.Close] ends it, and so does a line that is lost.
type Session struct {
	host   Host
	client *ssh.Client
	hops   []*ssh.Client // on the way, the nearest first
	base   net.Conn
	alive  *aliveConn

	done chan struct{} // closed by end
	once sync.Once     // guards end
	err  error         // written before done is closed
}

func newSession(h Host, d *dialer) *Session {
	last := len(d.clients) - 1
	s := &Session{host: h, client: d.clients[last], hops: d.clients[:last], base: d.base, alive: d.last,
		done: make(chan struct{})}
	go func() { s.end(lineLost(s.client.Wait())) }()
	interval := d.opts.KeepAlive
	if interval == 0 {
		interval = defaultKeepAlive
		if h.KeepAlive > 0 {
			interval = min(interval, h.KeepAlive)
		}
	}
	tries := d.opts.KeepAliveMax
	if tries == 0 {
		tries = defaultKeepAliveMax
	}
	go s.watch(interval, tries)
	return s
}

// end ends the session, once, for the reason given. It cuts the base first:
// whatever is blocked on the line then comes back.
func (s *Session) end(err error) {
	s.once.Do(func() {
		s.err = err
		close(s.done)
		if tcp, ok := s.base.(*net.TCPConn); ok && errors.Is(err, ErrLineLost) {
			// Forget what was not acknowledged: a request that arrives when the line heals would be obeyed after we said that
			// it was not heard.
			tcp.SetLinger(0)
		}
		s.base.Close()
		s.client.Close()
		for _, hop := range slices.Backward(s.hops) {
			hop.Close()
		}
	})
}

// Host is whom we talk to.
func (s *Session) Host() Host { return s.host }

// Done is closed when the session has ended; Err then says why.
func (s *Session) Done() <-chan struct{} { return s.done }

// Err is nil while the line is up, ErrLineLost once it is lost, ErrClosed
// after Close.
func (s *Session) Err() error {
	select {
	case <-s.done:
		return s.err
	default:
		return nil
	}
}

// Close ends the session and what still goes on in it. It does not block on
// the line. Commands on the host lose their streams and are not killed.
func (s *Session) Close() error {
	s.end(ErrClosed)
	return nil
}

// lost tells whether err is about the line: it asks the host whether it is
// there, because a channel learns of its end before the session does. The
// result is err, or the ErrLineLost or ErrClosed that the session ended with.
func (s *Session) lost(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	answer := make(chan error, 1)
	go func() { // ends with the session at the latest
		_, _, askErr := s.client.SendRequest("keepalive@openssh.com", true, nil)
		answer <- askErr
	}()
	select {
	case askErr := <-answer:
		if askErr == nil && s.Err() == nil {
			return err
		}
	case <-s.done:
	case <-ctx.Done():
		return fmt.Errorf("%w (%w)", context.Cause(ctx), err)
	}
	<-s.done // close behind: nothing but the end of the line fails a request
	return s.err
}

// openChannel opens a channel. It ends with ctx; a channel that opens after
// that is closed.
func (s *Session) openChannel(ctx context.Context, kind string, extra []byte) (ssh.Channel, <-chan *ssh.Request, error) {
	type opened struct {
		ch       ssh.Channel
		requests <-chan *ssh.Request
		err      error
	}
	result := make(chan opened, 1)
	go func() {
		ch, requests, err := s.client.OpenChannel(kind, extra)
		result <- opened{ch, requests, err}
	}()
	select {
	case o := <-result:
		return o.ch, o.requests, o.err
	case <-s.done: // a channel opened in this very moment is forgotten by the library: no answer would come
		return nil, nil, s.err
	case <-ctx.Done():
		go func() {
			if o := <-result; o.err == nil {
				go ssh.DiscardRequests(o.requests)
				o.ch.Close()
			}
		}()
		return nil, nil, context.Cause(ctx)
	}
}
