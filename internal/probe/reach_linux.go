package probe

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hotdeploy/hotdeploy/internal/sockets"
)

// How often the kernel is asked whether somebody has accepted, and how soon new connections follow those that went to others.
// Nobody is told of an accept, so there is nothing to wait for.
const (
	firstLook, lastLook   = time.Millisecond, 10 * time.Millisecond
	firstRetry, lastRetry = 5 * time.Millisecond, 50 * time.Millisecond
)

// bursts are how many connections are opened at once, one time after the other. Two processes that wait for the same socket
// do not take turns: an idle one may win every single connection, and only several at once give the other a chance.
var bursts = [...]int{1, 2, 4, 8}

// reach returns a connection that one of pids accepted and on which nobody has sent anything. The others that it took are closed.
func reach(ctx context.Context, s *sockets.Socket, pids func() []int) (net.Conn, error) {
	a := attempt{s: s, pids: pids}
	defer a.close()
	look, retry := firstLook, firstRetry
	for round := 0; ; {
		if len(a.waiting) == 0 {
			if err := a.open(ctx, bursts[round%len(bursts)]); err != nil {
				return nil, err
			}
			look = firstLook
			round++
		}
		c, err := a.look()
		if c != nil || err != nil {
			return c, err
		}
		pause := look
		if len(a.waiting) == 0 { // all went to others
			pause, retry = retry, min(2*retry, lastRetry)
		} else {
			look = min(2*look, lastLook)
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil, a.failure()
		}
	}
}

// attempt is the connections that were opened to reach one generation.
type attempt struct {
	s       *sockets.Socket
	pids    func() []int
	waiting []net.Conn // nobody has accepted them yet
	others  int        // went to somebody else
	lost    int        // were closed before it could be told who had accepted them
}

func (a *attempt) open(ctx context.Context, n int) error {
	for range n {
		c, err := a.s.Dial(ctx)
		switch {
		case err != nil && len(a.waiting) > 0: // a full queue: those that are in it will do
			return nil
		case err != nil && (ctx.Err() != nil || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded)):
			// a dial may notice it before ctx does
			return a.failure()
		case err != nil:
			return fmt.Errorf("connect: %w", err)
		}
		a.waiting = append(a.waiting, c)
	}
	return nil
}

func (a *attempt) close() {
	for _, c := range a.waiting {
		c.Close()
	}
}

// look asks the kernel about each waiting connection. The one that it returns is the caller's.
func (a *attempt) look() (ours net.Conn, err error) {
	all := a.waiting
	a.waiting = nil
	for i, c := range all {
		fate, err := a.fateOf(c)
		switch {
		case err != nil:
			a.waiting = append(a.waiting, all[i:]...)
			return nil, fmt.Errorf("who has accepted the connection: %w", err)
		case fate == acceptedByIt:
			a.waiting = append(a.waiting, all[i+1:]...)
			return c, nil
		case fate == stillWaiting:
			a.waiting = append(a.waiting, c)
			continue
		case fate == acceptedByOthers:
			a.others++
		case fate == closedAlready:
			a.lost++
		}
		c.Close()
	}
	return nil, nil
}

type fate int

const (
	stillWaiting fate = iota
	acceptedByIt
	acceptedByOthers
	closedAlready
)

func (a *attempt) fateOf(c net.Conn) (fate, error) {
	_, accepted, err := sockets.AcceptedBy(c, nil)
	switch {
	case err != nil:
		return 0, err
	case !accepted && ended(c):
		return closedAlready, nil
	case !accepted:
		return stillWaiting, nil
	}
	// Listing a generation's processes costs more than all the rest, so that comes last. Whoever accepted was there before.
	switch owner, accepted, err := sockets.AcceptedBy(c, a.pids()); {
	case err != nil:
		return 0, err
	case owner:
		return acceptedByIt, nil
	case accepted:
		return acceptedByOthers, nil
	}
	return closedAlready, nil
}

// ended tells whether the other side has closed c, without taking a byte from it.
func ended(c net.Conn) bool {
	raw, err := c.(syscall.Conn).SyscallConn()
	if err != nil {
		return true
	}
	var over bool
	raw.Control(func(fd uintptr) {
		var one [1]byte
		n, _, err := unix.Recvfrom(int(fd), one[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		over = (n == 0 && err == nil) || (err != nil && err != unix.EAGAIN && err != unix.EINTR)
	})
	return over
}

func (a *attempt) failure() error {
	switch {
	case a.others > 0:
		return fmt.Errorf("it accepted no connection on %s; other processes accepted %d", a.s.Addr, a.others)
	case a.lost > 0:
		return fmt.Errorf("connections on %s were closed at once, %d of them", a.s.Addr, a.lost)
	}
	return fmt.Errorf("it accepted no connection on %s", a.s.Addr)
}
