package remote

import (
	"fmt"
	"net"
	"sync/atomic"
	"time"
)

// aliveConn counts signs of life.
type aliveConn struct {
	net.Conn
	reads atomic.Uint64
}

func (c *aliveConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 {
		c.reads.Add(1)
	}
	return n, err
}

// watch ends the session when the line is dead: when nothing at all comes
// for max intervals in a row although an answer is due. Anything that comes
// is a sign of life, since the answer itself may wait behind an upload on a
// slow line. It counts intervals and not time, so that a machine that was
// asleep gets its chance to answer.
func (s *Session) watch(interval time.Duration, max int) {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	var silent int
	var seen uint64
	answered := make(chan struct{}, 1)
	asking := false
	for {
		select {
		case <-s.done:
			return
		case <-answered:
			asking = false
			continue
		case <-tick.C:
		}
		if now := s.alive.reads.Load(); now != seen {
			seen, silent = now, 0
			continue
		}
		if asking {
			silent++
		}
		if silent >= max {
			s.end(lineLost(fmt.Errorf("no answer from %s for %v", s.host, time.Duration(silent)*interval)))
			return
		}
		if !asking {
			asking = true
			go s.ping(answered) // may block on the line; ends with the session
		}
	}
}

// ping asks for an answer of any kind; servers refuse, and that is one.
func (s *Session) ping(answered chan<- struct{}) {
	if _, _, err := s.client.SendRequest("keepalive@openssh.com", true, nil); err == nil {
		answered <- struct{}{}
	}
}
