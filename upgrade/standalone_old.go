package upgrade

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	ctl "github.com/hotdeploy/hotdeploy/upgrade/control"
)

// This file is the process that is to be followed by another one.

const (
	// aloneHandoff is how long everything may take to move.
	aloneHandoff = 30 * time.Second
	// commitTime is how long the new process may take to say that it serves.
	commitTime = 5 * time.Second
	// drainNote is after how long a SIGHUP that must wait for the process before us is worth a line.
	drainNote = time.Second
)

// heir is a new process that is ready to take.
type heir struct {
	*ctl.Conn
	proc *os.Process
}

// greet lets in who knocks, as long as we are the one to ask. What an earlier new process has left behind there is recognised by its being dead.
func (s *standalone) greet() {
	for {
		m, f, err := s.meet.Receive()
		if errors.Is(err, ctl.ErrMessage) {
			continue
		}
		if err != nil {
			return
		}
		if f == nil || m.Type != ctl.Hello {
			continue
		}
		h, err := newHeir(f)
		if err != nil {
			s.u.opt.Log("upgrade: %v", err)
			continue
		}
		select {
		case s.heirs <- h:
		case <-s.done:
			h.Close()
			return
		}
	}
}

// newHeir asks the kernel who has made the channel, whatever the message says.
func newHeir(f *os.File) (*heir, error) {
	var cred *unix.Ucred
	raw, err := f.SyscallConn()
	if err == nil {
		var inner error
		err = raw.Control(func(fd uintptr) { cred, inner = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
		err = errors.Join(err, inner)
	}
	if err == nil && int(cred.Pid) == os.Getpid() {
		err = errors.New("our own knocking, from when the process before us died")
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	p, err := os.FindProcess(int(cred.Pid)) // a pidfd: it stays this process
	if err != nil {
		f.Close()
		return nil, err
	}
	c, err := ctl.NewConn(f)
	return &heir{c, p}, err
}

// run makes new processes when SIGHUP says so. When one has followed us it passes SIGHUP on to it. It ends with halt.
func (s *standalone) run() {
	defer close(s.idle)
	go s.greet()
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-s.hup:
		}
		if s.terminal && !hasTerminal() {
			s.hangUp()
			continue
		}
		if !s.awaitParent() {
			return
		}
		if h := s.upgrade(); h != nil {
			s.passOn(h)
			return
		}
	}
}

// awaitParent waits for the end of the process before us: tableflip makes no third one.
func (s *standalone) awaitParent() bool {
	gone := make(chan struct{})
	go func() {
		s.flip.WaitForParent(s.ctx)
		close(gone)
	}()
	select {
	case <-gone:
	case <-time.After(drainNote):
		s.u.opt.Log("upgrade: waiting until the process before this one (pid %d) has nothing left; SIGTERM to it ends what it has", os.Getppid())
		<-gone
	}
	return s.ctx.Err() == nil
}

// upgrade makes one new process. nil: it has failed, and we go on.
func (s *standalone) upgrade() *heir {
	notify(reloading())
	h, given, err := s.follow()
	if err != nil {
		s.takeBack()
		s.u.opt.Log("upgrade failed: %s; pid %d goes on with what it has (%d connections); ended with the new process: %d", oneLine(err), os.Getpid(), len(s.u.conns()), given.Moved)
		notify(fmt.Sprintf("READY=1\nSTATUS=upgrade failed, the old process goes on: %s", oneLine(err)))
		return nil
	}
	s.announce(h.pid())
	s.u.opt.Log("upgrade: pid %d follows pid %d: %s", h.pid(), os.Getpid(), givenText(given))
	return h
}

// follow lets tableflip make the process, and gives it everything.
func (s *standalone) follow() (h *heir, given ctl.Message, err error) {
	result := make(chan error, 1)
	go func() { result <- s.flipUpgrade() }()
	for {
		select {
		case err := <-result: // without an error: of a release that uses tableflip by itself, and takes the listeners only
			if given.PeerHangs {
				err = fmt.Errorf("%w: %s", err, given.Error)
			}
			return &heir{}, given, err
		case h := <-s.heirs:
			if given, err = s.bequeath(h); err == nil {
				return h, given, h.settle(result)
			}
			s.takeBack() // it is dead or dying: its end, or that of the one we wait for, is yet to come
			h.Close()
		}
	}
}

// takeBack goes on as if nothing had been, and returns when every connection that is still ours is.
func (s *standalone) takeBack() {
	s.u.mu.Lock()
	g := s.u.giver
	s.u.giver = nil
	s.u.mu.Unlock()
	s.u.accept()
	if g != nil {
		g.end()
	}
}

// flipUpgrade is tableflip's Upgrade when the process before us has ended. tableflip tells us of that a moment before it tells itself.
func (s *standalone) flipUpgrade() error {
	for {
		err := s.flip.Upgrade()
		if err == nil || err.Error() != "parent hasn't exited" {
			return err
		}
		runtime.Gosched()
	}
}

// bequeath moves everything to h and tells it to serve. With an error it is no good.
func (s *standalone) bequeath(h *heir) (given ctl.Message, err error) {
	gives, takes, err := ctl.HandoffPair()
	if err != nil {
		h.proc.Kill()
		return given, err
	}
	m := ctl.Message{Type: ctl.Take, TimeoutMS: aloneHandoff.Milliseconds()}
	err = h.Send(m, takes, controlTime)
	takes.Close()
	if err != nil {
		gives.Close()
		return given, err
	}
	ctx, done := s.u.beginGiving(m)
	defer done()
	given = s.u.handOver(ctx, gives)
	if given.PeerHangs {
		h.proc.Kill()
		return given, errors.New(given.Error)
	}
	failpoint("alone.given")
	return given, h.Send(ctl.Message{Type: ctl.Commit}, nil, controlTime)
}

// settle waits until tableflip says that the process serves, or that it does not.
func (h *heir) settle(result <-chan error) error {
	late := time.AfterFunc(commitTime, func() { h.proc.Kill() })
	defer late.Stop()
	return <-result
}

func (h *heir) pid() int {
	if h.proc == nil {
		return 0
	}
	return h.proc.Pid
}

// passOn tells the process that follows of every SIGHUP that still comes here. It ends with the process.
func (s *standalone) passOn(h *heir) {
	close(s.done)
	s.meet.Close()
	if h.Conn == nil {
		return
	}
	for range s.hup {
		if err := h.Send(ctl.Message{Type: ctl.Upgrade}, nil, controlTime); err != nil {
			s.u.opt.Log("upgrade: %v", err)
		}
	}
}

// givenText is what came of the handoff.
func givenText(m ctl.Message) string {
	text := fmt.Sprintf("moved %d", m.Moved)
	for _, why := range slices.Sorted(maps.Keys(m.Kept)) {
		text += fmt.Sprintf(", kept %d (%s)", m.Kept[why], why)
	}
	if m.Error != "" {
		text += ", " + m.Error
	}
	return text
}

// reloading is what systemd wants to hear at the beginning of a reload.
func reloading() string {
	var t unix.Timespec
	unix.ClockGettime(unix.CLOCK_MONOTONIC, &t)
	return fmt.Sprintf("RELOADING=1\nMONOTONIC_USEC=%d", t.Nano()/1000)
}

// oneLine makes an error fit for a status.
func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }
