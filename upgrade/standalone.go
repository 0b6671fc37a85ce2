package upgrade

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/cloudflare/tableflip"
	"golang.org/x/sys/unix"

	ctl "github.com/hotdeploy/hotdeploy/upgrade/control"
)

// Standalone is what a process may want to say that runs alone: without hotdeployd, and without sockets from systemd. There SIGHUP makes a new process of
// the same command line (a relative one counts from the working directory), whatever binary is there by now, and everything moves to it.
//
// The process that was asked stays in charge until the new one has everything: it starts it, and accepts until it says Ready; gives it the connections; and only then
// lets go. If the new one cannot be started, ends, hangs or is stopped before that, the old one takes back what it has not confirmed, accepts again and says
// so in the log; the next SIGHUP tries again. What had moved in rolling mode before a crash has crashed with the new process; in barrier mode nothing has moved before
// all has. A SIGHUP that comes during an upgrade counts for after it, in whichever process then serves.
//
// What tableflip, which starts the new process, cannot do, and what happens then:
//
//   - There are never more than two: while the process before still drains (a long request, TLS, somebody who does not move), SIGHUP waits for its end and the log says so. SIGTERM to
//     the old one ends what it has left, spread over ten seconds.
//   - The pid changes. Whoever watches it needs PIDFile, or a unit with Type=notify (the old process sends MAINPID=), or KeepPID.
//   - Nobody watches the new process after it has everything, and there is no way back but another upgrade. That, and more, is what a supervisor is for.
//   - One Upgrader in a process: a second one moves nothing.
type Standalone struct {
	// UpgradeTimeout is how long a new process may take from its start until it has everything; 0: a minute. Then it is killed.
	UpgradeTimeout time.Duration
	// PIDFile names a file that always has the pid of the process that serves. It is written when an upgrade is complete.
	PIDFile string
	// KeepPID keeps the process that was started as the parent of those that serve, for those who watch it: runit, supervisord, a loop in a shell, an
	// init such as tini. It runs main as far as New, so call that first. It is done by itself in process 1 of a container, in a systemd unit without
	// Type=notify, and in a terminal that has no shell.
	KeepPID bool
}

// Why it is done like this. tableflip passes named descriptors to the process that it starts, and takes one byte back, Ready: from then on the old process can neither start another one
// nor be asked to, and its copies of the sockets are closed. So that byte must be the last thing that happens: our Ready sends a hello instead, the handoff follows, and the byte is the new
// process's answer to COMMIT. Until then a new process that ends is an error of tableflip.Upgrade, one that hangs is killed by its UpgradeTimeout, and both are an end of file on
// the handoff channel, which is all that the giver needs to take everything back.
//
// A descriptor that tableflip passes stays open in the old process, which would never see an end of file there. So what it passes is a meeting place, one socket pair for all generations:
// the new process makes the two channels that matter (control, and through it the handoff) after its start, and each process holds its own end only.

// standalone makes the new process where nobody else does.
type standalone struct {
	u           *Upgrader
	flip        *tableflip.Upgrader
	meet, knock *ctl.Conn // the meeting place: the old process reads meet, the new one writes knock
	front       *ctl.Conn // nil: our pid is the app's
	first       bool      // nobody hands anything to us
	terminal    bool      // there was one when we began
	hup         chan os.Signal
	heirs       chan *heir
	done        chan struct{} // closed when another process serves
	idle        chan struct{} // closed when run has ended
	ctx         context.Context
	cancel      context.CancelFunc
	committing  sync.Once

	mu   sync.Mutex     // protects used
	used map[string]int // how often an address was asked for
}

// The names of the ends of the meeting place, for tableflip. Both are handed on for ever.
const (
	meetName  = "hotdeploy-meet"
	knockName = "hotdeploy-knock"
)

// startAlone makes u's part. A second Upgrader of this process gets none.
func (u *Upgrader) startAlone() error {
	child := adoptedByTableflip()
	if !child && u.opt.needsFront() {
		return beFront()
	}
	flip, err := tableflip.New(tableflip.Options{UpgradeTimeout: u.opt.UpgradeTimeout, PIDFile: u.opt.PIDFile})
	if err != nil && !child {
		u.opt.Log("upgrade: SIGHUP makes no new process: %v", err)
		return nil
	}
	if err != nil {
		return fmt.Errorf("upgrade: %w", err)
	}
	os.Unsetenv(tableflipEnv) // it is about us, and not about processes that the app starts
	s := &standalone{u: u, flip: flip, hup: make(chan os.Signal, 1), heirs: make(chan *heir), done: make(chan struct{}), idle: make(chan struct{}), used: map[string]int{}}
	s.ctx, s.cancel = context.WithCancel(u.opt.ctx)
	if err := errors.Join(s.findPlace(), s.findFront()); err != nil {
		return fmt.Errorf("upgrade: %w", err)
	}
	u.alone, u.waiting = s, !s.first
	s.terminal = hasTerminal()
	noteNohup()
	if !s.first {
		failpoint("alone.new")
	}
	signal.Notify(s.hup, syscall.SIGHUP)
	return nil
}

// tableflipEnv tells a process that tableflip has started it, with pipes as descriptors 3 and 4.
const tableflipEnv = "TABLEFLIP_HAS_PARENT_7DIU3"

// adoptedByTableflip says whether we are that process, and not one that has only got its environment.
func adoptedByTableflip() bool {
	if os.Getenv(tableflipEnv) == "" {
		return false
	}
	for fd := 3; fd <= 4; fd++ {
		var st unix.Stat_t
		if unix.Fstat(fd, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFIFO {
			os.Unsetenv(tableflipEnv)
			return false
		}
	}
	unix.CloseOnExec(3)
	unix.CloseOnExec(4)
	if os.Getenv("WATCHDOG_PID") != "" {
		os.Setenv("WATCHDOG_PID", fmt.Sprint(os.Getpid()))
	}
	return true
}

// findPlace takes the meeting place over, or makes it.
func (s *standalone) findPlace() error {
	meet, err := s.flip.File(meetName)
	if err != nil {
		return err
	}
	knock, err := s.flip.File(knockName)
	if err != nil {
		return err
	}
	s.first = meet == nil || knock == nil // a process before us that used tableflip in another way hands nothing over
	if s.first {
		if meet, knock, err = ctl.Files(); err != nil {
			return err
		}
		err = errors.Join(s.flip.AddFile(meetName, meet), s.flip.AddFile(knockName, knock))
	}
	if err == nil {
		s.meet, err = ctl.NewConn(meet)
	}
	if err == nil {
		s.knock, err = ctl.NewConn(knock)
	}
	return err
}

// key is what tableflip knows a socket by: the address, and a number if there are several.
func (s *standalone) key(network, address string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.used[network+" "+address]++
	if n := s.used[network+" "+address]; n > 1 {
		return fmt.Sprintf("%s#%d", address, n)
	}
	return address
}

// listen finds the socket of the process before, or binds one.
func (s *standalone) listen(network, address string) (net.Listener, error) {
	key := s.key(network, address)
	ln, err := s.flip.Listener(network, key)
	if ln != nil || err != nil {
		return ln, err
	}
	if ln, err = net.Listen(network, address); err != nil {
		return nil, err
	}
	shared, ok := ln.(tableflip.Listener)
	if !ok {
		return ln, nil
	}
	if err := s.flip.AddListener(network, key, shared); err != nil {
		ln.Close()
		return nil, err
	}
	return ln, nil
}

func (s *standalone) listenPacket(network, address string) (net.PacketConn, error) {
	key := s.key(network, address)
	p, err := s.flip.PacketConn(network, key)
	if p != nil || err != nil {
		return p, err
	}
	if p, err = net.ListenPacket(network, address); err != nil {
		return nil, err
	}
	shared, ok := p.(tableflip.PacketConn)
	if !ok {
		return p, nil
	}
	if err := s.flip.AddPacketConn(network, key, shared); err != nil {
		p.Close()
		return nil, err
	}
	return p, nil
}

// succeeded is closed when another process serves.
func (s *standalone) succeeded() <-chan struct{} {
	if s == nil {
		return nil
	}
	return s.done
}

// halt makes no new process any more; one that is not complete is ended. follows: another process serves.
func (s *standalone) halt() (follows bool) {
	if s == nil {
		return false
	}
	s.cancel()
	waiting := false
	s.committing.Do(func() {
		waiting = !s.first
		close(s.idle)
	})
	if !waiting { // else Stop would unlink the paths of the process before us
		s.flip.Stop()
		<-s.flip.Exit() // by then the paths of unix sockets are gone
	}
	select {
	case <-s.done: // run goes on, to pass SIGHUP on
	case <-s.idle:
	}
	return !s.last()
}

// last says that nobody else has our sockets.
func (s *standalone) last() bool {
	if s == nil {
		return false
	}
	select {
	case <-s.done:
		return false
	default:
		return true
	}
}

// hurry ends what is left after the handoff when somebody asks for it. It ends with the process.
func (u *Upgrader) hurry() {
	select {
	case <-u.term:
		u.Stop(u.opt.ctx, hurryTime)
	case <-u.exit:
	}
}

// hurryTime is what the ends of connections are spread over.
const hurryTime = 10 * time.Second
