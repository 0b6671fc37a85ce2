package supervisor

import (
	"context"
	"errors"
	"net"
	"time"

	"github.com/hotdeploy/hotdeploy/systemd"
)

// Limits of the notify socket, of all apps together. Who sends more waits for room in the queue, as with any datagram socket: it is
// not lost, and costs the supervisor no more than this.
const (
	notifyBurst = 256
	notifyEvery = time.Millisecond
)

// readNotifications hands the apps' sd_notify messages to the loop. It ends when the socket is closed, not with s.ctx: an app
// that is told to stop may have much to say, and would wait for us to read it.
func (s *Supervisor) readNotifications() {
	nonsense := &seldom{to: s.logf, every: time.Minute}
	var next time.Time // when the next message is due by notifyEvery
	for {
		err := s.notified.Handle(context.Background(), func(msg systemd.Message, sender systemd.Sender, err error) {
			if err != nil {
				nonsense.logf("ignored a notification from pid %d: %v", sender.PID, err)
				return
			}
			s.do(func() { s.notification(msg, sender.PID) })
		})
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // the machine has no memory for it, or the like: the apps' words wait
			nonsense.logf("read the apps' notifications: %v", err)
			time.Sleep(time.Second)
		}
		now := time.Now()
		if next = next.Add(notifyEvery); next.Before(now.Add(-notifyBurst * notifyEvery)) {
			next = now.Add(-notifyBurst * notifyEvery)
		}
		time.Sleep(next.Sub(now)) // paces; nobody is waited for
	}
}

// notification believes a message only if its sender belongs to a generation.
func (s *Supervisor) notification(msg systemd.Message, pid int) {
	if g := s.generationOf(pid); g != nil {
		g.notified(msg)
	}
}

// generationOf is the one that pid belongs to, or nil. On the loop.
func (s *Supervisor) generationOf(pid int) *generation {
	for _, g := range s.gens {
		if g.group.Contains(pid) {
			return g
		}
	}
	return nil
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
