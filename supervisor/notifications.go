package supervisor

import (
	"context"
	"errors"
	"net"

	"github.com/hotdeploy/hotdeploy/systemd"
)

// maxEarly bounds the messages kept for a process that was started but not registered yet.
const maxEarly = 64

type earlyMessage struct {
	msg systemd.Message
	pid int
}

// readNotifications hands the apps' sd_notify messages to the loop. It ends when the socket is closed, not with s.ctx: an app
// that is told to stop may have much to say, and would wait for us to read it.
func (s *Supervisor) readNotifications() {
	for {
		msg, sender, err := s.notified.Recv(context.Background())
		switch {
		case errors.Is(err, systemd.ErrMalformed):
			s.logf("ignored a notification from pid %d: %v", sender.PID, err)
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil:
			s.logf("no notification arrives any more: %v", err)
			return
		default:
			s.do(func() { s.notification(msg, sender.PID) })
		}
	}
}

// notification believes a message only if its sender belongs to a generation. One that comes between a process's start and its
// registration waits for that.
func (s *Supervisor) notification(msg systemd.Message, pid int) {
	for _, g := range s.gens {
		if g.group.Contains(pid) {
			g.notified(msg)
			return
		}
	}
	if s.launching && len(s.early) < maxEarly {
		s.early = append(s.early, earlyMessage{msg, pid})
	}
}

// replayEarly is called when a generation has been registered.
func (s *Supervisor) replayEarly() {
	early := s.early
	s.early = nil
	for _, m := range early {
		s.notification(m.msg, m.pid)
	}
}

func (g *generation) notified(msg systemd.Message) {
	if msg.Status != "" {
		g.text = msg.Status
	}
	if msg.Ready && !g.saidReady {
		g.saidReady = true
		close(g.ready)
	}
	if msg.Extend > 0 {
		select { // the waiter needs only the newest
		case <-g.extend:
		default:
		}
		g.extend <- msg.Extend
	}
}
