package supervisor

import (
	"context"
	"errors"
	"net"

	"github.com/hotdeploy/hotdeploy/systemd"
)

// readNotifications hands the apps' sd_notify messages to the loop. It ends when the socket is closed, not with s.ctx: an app
// that is told to stop may have much to say, and would wait for us to read it.
func (s *Supervisor) readNotifications() {
	for {
		err := s.notified.Handle(context.Background(), func(msg systemd.Message, sender systemd.Sender, err error) {
			if err != nil {
				s.logf("ignored a notification from pid %d: %v", sender.PID, err)
				return
			}
			s.do(func() { s.notification(msg, sender.PID) })
		})
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			s.logf("no notification arrives any more: %v", err)
			return
		}
	}
}

// notification believes a message only if its sender belongs to a generation.
func (s *Supervisor) notification(msg systemd.Message, pid int) {
	for _, g := range s.gens {
		if g.group.Contains(pid) {
			g.notified(msg)
			return
		}
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
