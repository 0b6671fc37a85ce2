package supervisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cloudflare/tableflip"
	"golang.org/x/sys/unix"

	"github.com/hotdeploy/hotdeploy/internal/api"
	"github.com/hotdeploy/hotdeploy/internal/failpoint"
)

// This file is how a supervisor makes way for another one, of a newer binary, while everything runs on. tableflip starts it; all descriptors
// go to it over one channel, since tableflip keeps what it is given for ever.
//
//	old                                     new
//	takes no more commands
//	descriptors ─────────────────────────►  adopts them, by the ledger, and changes nothing
//	            ◄─────────────────────────  "proved", or why not: it exits, and nothing has changed
//	tells systemd who is the main process
//	"go" ────────────────────────────────►  waits for the end of the old one, and acts
//	exits, and leaves everything as it is
//
// If the old one dies before its "go" the new one exits too: systemd starts another one, which goes on by the fd store.
// If the new one dies after its proof the old one leaves all the same, with an error, and systemd starts another one. At any other end of the new one the
// old one goes on.

// ReplaceWithin is how long a new supervisor usually has to prove that it can go on.
const ReplaceWithin = 30 * time.Second

// linkName is what tableflip calls the new one's end of the channel.
const linkName = "hotdeploy"

// The names of what only a successor gets.
const (
	apiName  = "control.api"
	lockName = "state.lock"
)

// Flip is the means by which a supervisor is replaced, one for a process.
type Flip struct {
	upg    *tableflip.Upgrader
	ours   *os.File // where a new one is sent descriptors, and reports
	theirs *os.File // its end, to be drained after a failure
	parent *os.File // the end that an older one gave us
	within time.Duration
	lost   []string       // by the older one already, in its words
	gone   atomic.Bool    // a newer one was told to go on
	stops  chan os.Signal // has one if this process was told to stop
}

// NewFlip must be called before anything opens a descriptor. A new supervisor that has proved nothing within that time is killed.
func NewFlip(within time.Duration) (*Flip, error) {
	upg, err := tableflip.New(tableflip.Options{UpgradeTimeout: within})
	if err != nil {
		return nil, err
	}
	f := &Flip{upg: upg, within: within, stops: make(chan os.Signal, 1)}
	signal.Notify(f.stops, unix.SIGTERM, unix.SIGINT)
	if f.parent, err = upg.Fds.File(linkName); err != nil {
		return nil, err
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, os.NewSyscallError("socketpair", err)
	}
	f.ours, f.theirs = os.NewFile(uintptr(fds[0]), "link"), os.NewFile(uintptr(fds[1]), "link")
	return f, upg.Fds.AddFile(linkName, f.theirs)
}

// toldToStop also sees a SIGTERM that has not reached its channel yet: signals that wait are passed on in the order of their numbers, so when the
// SIGWINCH that this process sends itself has come, so has what was sent before.
func (f *Flip) toldToStop() bool {
	last := make(chan os.Signal, 1)
	signal.Notify(last, unix.SIGWINCH)
	if err := unix.Kill(os.Getpid(), unix.SIGWINCH); err == nil {
		<-last
	}
	return len(f.stops) > 0
}

// Follows tells whether an older supervisor started this one.
func (f *Flip) Follows() bool { return f.upg.HasParent() }

// linkMessage is one packet of the channel.
type linkMessage struct {
	Names  []string `json:"names,omitempty"` // of the descriptors that come with it
	Last   bool     `json:"last,omitempty"`  // no more of them
	Lost   []string `json:"lost,omitempty"`  // of what the older supervisor had not either, in its words
	Proved int      `json:"proved,omitempty"`
	Error  string   `json:"error,omitempty"`
	Go     bool     `json:"go,omitempty"`
}

const (
	maxLinkMessage = 64 << 10
	maxLinkFDs     = 100 // with one message
)

func send(to *os.File, m linkMessage, fds []int) error {
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	to.SetWriteDeadline(time.Now().Add(sendTimeout))
	raw, err := to.SyscallConn()
	if err != nil {
		return err
	}
	var sendErr error
	if err := raw.Write(func(fd uintptr) bool {
		sendErr = unix.Sendmsg(int(fd), b, unix.UnixRights(fds...), nil, unix.MSG_NOSIGNAL)
		return sendErr != unix.EAGAIN
	}); err != nil {
		return err
	}
	return os.NewSyscallError("sendmsg", sendErr)
}

// receive returns io errors as they are; files are the caller's, also with an error.
func receive(from *os.File, by time.Time) (m linkMessage, files []*os.File, err error) {
	from.SetReadDeadline(by)
	raw, err := from.SyscallConn()
	if err != nil {
		return m, nil, err
	}
	b, oob := make([]byte, maxLinkMessage), make([]byte, unix.CmsgSpace(4*maxLinkFDs))
	n, k := 0, 0
	var recvErr error
	if err := raw.Read(func(fd uintptr) bool {
		n, k, _, _, recvErr = unix.Recvmsg(int(fd), b, oob, unix.MSG_CMSG_CLOEXEC)
		return recvErr != unix.EAGAIN
	}); err != nil {
		return m, nil, err
	}
	if recvErr != nil {
		return m, nil, os.NewSyscallError("recvmsg", recvErr)
	}
	messages, _ := unix.ParseSocketControlMessage(oob[:k])
	for i := range messages {
		fds, _ := unix.ParseUnixRights(&messages[i])
		for j, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), strconv.Itoa(j)))
		}
	}
	if n == 0 {
		return m, files, errors.New("the other supervisor has ended")
	}
	return m, files, json.Unmarshal(b[:n], &m)
}

// Inherit is what the older supervisor passes on.
func (f *Flip) Inherit() (stored []*os.File, err error) {
	for by := time.Now().Add(f.within); ; {
		m, files, err := receive(f.parent, by)
		if err != nil || len(files) != len(m.Names) {
			return nil, errors.Join(errors.New("take over descriptors"), err)
		}
		for i, file := range files {
			named, err := dupConn(file, m.Names[i])
			file.Close()
			if err != nil {
				return nil, err
			}
			stored = append(stored, named)
		}
		f.lost = append(f.lost, m.Lost...)
		if m.Last {
			return stored, nil
		}
	}
}

// Refuse tells the older supervisor why this one cannot go on.
func (f *Flip) Refuse(why error) { send(f.parent, linkMessage{Error: clip(why.Error())}, nil) }

// TakeOver returns when this supervisor is alone, and may act. With an error it must exit: nothing has changed, or systemd starts another.
func (f *Flip) TakeOver(ctx context.Context, s *Supervisor) error {
	had := func(line string) bool { return slices.Contains(f.lost, clip(line)) }
	if lines := slices.DeleteFunc(slices.Clone(s.legacy.lines), had); len(lines) > 0 {
		err := fmt.Errorf("not everything can be taken over: %s", strings.Join(lines, "; "))
		f.Refuse(err)
		return err
	}
	failpoint.At("proving")
	if err := send(f.parent, linkMessage{Proved: os.Getpid()}, nil); err != nil {
		return err
	}
	if err := f.upg.Ready(); err != nil {
		return err
	}
	m, _, err := receive(f.parent, time.Now().Add(f.within))
	if err != nil || !m.Go {
		return errors.Join(errors.New("the supervisor before this one did not hand over"), err)
	}
	f.parent.Close()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), f.within) // a stop is for Run, which ends everything in order
	defer cancel()
	return f.upg.WaitForParent(ctx)
}

// alone is for a supervisor that nobody started but systemd: it can be replaced from now on.
func (f *Flip) alone() error { return f.upg.Ready() }

// replace starts the binary that is installed now, and hands over to it. With an error nothing has changed.
func (s *Supervisor) replace(ctx context.Context, by string) error {
	if s.opt.Flip == nil || !s.notify.Enabled() || os.Getpid() == 1 {
		e := api.ErrConflict.With("this daemon is not run by systemd, and cannot be replaced while it runs")
		e.Hint = "stop it and start the new one"
		return e
	}
	if err := s.holdStill(by); err != nil {
		return err
	}
	err := s.handOver(ctx)
	if err != nil && !s.hasLeft() {
		s.do(func() { s.replacing = ""; s.ensure() })
		s.emit(api.Event{Type: api.EventService, Text: fmt.Sprintf("the daemon was not replaced, nothing has changed: %v", err)})
	}
	return err
}

// hasLeft tells whether everything is another supervisor's by now.
func (s *Supervisor) hasLeft() (yes bool) {
	s.do(func() { yes = s.successor != 0 })
	return yes
}

// holdStill lets nothing begin any more.
func (s *Supervisor) holdStill(by string) error {
	var err error
	s.do(func() {
		switch {
		case s.replacing != "":
			err = s.isBusy(s.replacing + " is replacing the daemon")
		case s.busy != nil, s.stopping != nil, s.pruning != nil, s.ctx.Err() != nil:
			err = s.isBusy("something is in flight: " + s.stateText())
		default:
			s.replacing = by
		}
	})
	return err
}

func (s *Supervisor) handOver(ctx context.Context) error {
	release, err := s.store.Freeze(ctx)
	if err != nil {
		return err
	}
	defer func() {
		if !s.hasLeft() { // else the store is another supervisor's
			release()
		}
	}()
	f := s.opt.Flip
	f.drain()
	if err := s.sendAll(f.ours); err != nil {
		f.drain()
		return fmt.Errorf("pass the descriptors: %w", err)
	}
	failpoint.At("replace")
	began := time.Now()
	upgradeErr := f.upg.Upgrade()
	m, _, err := receive(f.ours, time.Now().Add(sendTimeout))
	switch {
	case m.Error != "":
		err = errors.New("the new daemon: " + m.Error)
	case upgradeErr != nil && time.Since(began) >= f.within:
		err = fmt.Errorf("the new daemon hangs: it proved nothing within %s and was killed", f.within)
	case upgradeErr != nil:
		err = fmt.Errorf("the new daemon: %w", upgradeErr)
	case err == nil && m.Proved > 0:
		failpoint.At("proved")
		return s.leaveTo(m.Proved, f)
	case err == nil:
		err = errors.New("the new daemon proved nothing")
	}
	f.drain()
	e := api.ErrStart.With(err.Error())
	e.Hint = "see why: journalctl -u " + s.opt.Config.Service
	return e
}

// leaveTo makes pid the main process and ends this supervisor without ending anything else. A stop that came before is this one's to carry out; one that comes
// later is passed on.
func (s *Supervisor) leaveTo(pid int, f *Flip) error {
	if err := s.leaveAll(pid); err != nil {
		callOff(f, err)
		return err
	}
	s.emit(api.Event{Type: api.EventService, Text: fmt.Sprintf("making way for the daemon with pid %d", pid)})
	if err := s.nameMain(pid); err != nil {
		s.stay()
		callOff(f, err)
		e := api.ErrStart.With(fmt.Sprintf("systemd cannot be told of the new daemon: %v", err))
		e.Hint = "this daemon can be replaced again when it was restarted: systemctl restart " + s.opt.Config.Service
		return e
	}
	failpoint.At("main pid")
	err := send(f.ours, linkMessage{Go: true}, nil)
	f.gone.Store(err == nil)
	failpoint.At("gone")
	if err != nil {
		return errSuccessorEnded
	}
	return nil
}

// leaveAll makes everything another supervisor's, unless this one is to end it.
func (s *Supervisor) leaveAll(pid int) error {
	err := error(api.ErrStopping.With("this daemon was just told to stop"))
	s.do(func() {
		if s.ctx.Err() == nil {
			s.control.SetUnlinkOnClose(false)
			s.recordNothing, s.successor = true, pid
			err = nil
		}
	})
	return err
}

// stay takes that back. If this supervisor is ending by now it is too late, and it ends with an error.
func (s *Supervisor) stay() {
	s.do(func() {
		if s.ctx.Err() == nil {
			s.control.SetUnlinkOnClose(true)
			s.recordNothing, s.successor = false, 0
		}
	})
}

// callOff lets the new one exit at once.
func callOff(f *Flip, why error) { send(f.ours, linkMessage{Error: clip(why.Error())}, nil) }

// errSuccessorEnded is no reason to stay: tableflip hands over once, and whoever systemd starts goes on with everything.
var errSuccessorEnded = errors.New("the new daemon ended just when it was to go on; systemd starts another one")

// leaveToSuccessor is the end of a supervisor that has made way for another one. If it was told to end meanwhile the other one is to. If that has ended
// too, systemd must learn it by our end: it may not see that of a process which it has not started.
func (s *Supervisor) leaveToSuccessor(pid int) error {
	gone := s.opt.Flip.gone.Load()
	if gone && !hasEnded(pid) {
		if s.opt.Flip.toldToStop() {
			return os.NewSyscallError("kill", unix.Kill(pid, unix.SIGTERM))
		}
		return nil
	}
	if err := s.nameMain(os.Getpid()); err != nil {
		s.logf("%v", err)
	}
	if !gone {
		return errors.New("this daemon was told to stop while it made way for another one, which could not go on")
	}
	return errSuccessorEnded
}

// hasEnded is false if that cannot be told, for want of a descriptor, say. A zombie has ended.
func hasEnded(pid int) bool {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return errors.Is(err, unix.ESRCH)
	}
	defer unix.Close(fd)
	n, _ := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
	return n > 0
}

// nameMain tells systemd which process is the service's, and waits until it knows. With an error it was not told.
func (s *Supervisor) nameMain(pid int) error {
	if err := s.tellMain(pid); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), storeTimeout)
	defer cancel()
	if err := s.notify.Barrier(ctx); err != nil {
		s.logf("%v", err) // it will know: it reads what was sent before it sees anybody's end
	}
	return nil
}

// tellMain tries it for a while: there may be no descriptor left just now.
func (s *Supervisor) tellMain(pid int) error {
	limit, tick := time.After(storeTimeout), time.NewTicker(storeTick)
	defer tick.Stop()
	for {
		err := s.notify.MainPID(pid)
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-limit:
			return err
		}
	}
}

const (
	storeTimeout = 5 * time.Second
	storeTick    = 100 * time.Millisecond
)

// drain forgets what an earlier attempt left in the channel, so that no descriptor is held there.
func (f *Flip) drain() {
	for _, end := range []*os.File{f.ours, f.theirs} {
		raw, err := end.SyscallConn()
		if err != nil {
			return
		}
		raw.Control(func(fd uintptr) {
			b, oob := make([]byte, maxLinkMessage), make([]byte, unix.CmsgSpace(4*maxLinkFDs))
			for {
				n, k, _, _, err := unix.Recvmsg(int(fd), b, oob, unix.MSG_CMSG_CLOEXEC|unix.MSG_DONTWAIT)
				if err != nil || n == 0 {
					return
				}
				closeRights(oob[:k])
			}
		})
	}
}

func closeRights(oob []byte) {
	messages, _ := unix.ParseSocketControlMessage(oob)
	for i := range messages {
		fds, _ := unix.ParseUnixRights(&messages[i])
		for _, fd := range fds {
			unix.Close(fd)
		}
	}
}

// named is a descriptor for the next supervisor.
type named struct {
	name string
	file *os.File // ours until it is sent
}

func (s *Supervisor) sendAll(to *os.File) error {
	list, err := s.descriptors()
	defer func() {
		for _, d := range list {
			d.file.Close()
		}
	}()
	if err != nil {
		return err
	}
	for _, line := range s.lostBefore() {
		if err := send(to, linkMessage{Lost: []string{line}}, nil); err != nil {
			return err
		}
	}
	for len(list) > 0 {
		batch := list[:min(len(list), maxLinkFDs)]
		m := linkMessage{Last: len(batch) == len(list)}
		var fds []int
		for _, d := range batch {
			m.Names = append(m.Names, d.name)
			raw, err := d.file.SyscallConn()
			if err != nil {
				return err
			}
			raw.Control(func(fd uintptr) { fds = append(fds, int(fd)) }) // open until the deferred Close
		}
		if err := send(to, m, fds); err != nil {
			return err
		}
		for _, d := range batch {
			d.file.Close()
		}
		list = list[len(batch):]
	}
	return nil
}

// lostBefore is what this supervisor could not take over itself.
func (s *Supervisor) lostBefore() (lines []string) {
	s.do(func() {
		for _, line := range s.adopted {
			if strings.HasPrefix(line, "lost: ") {
				lines = append(lines, clip(line))
			}
		}
	})
	return lines
}

// descriptors are duplicates of everything that is needed to go on.
func (s *Supervisor) descriptors() (list []named, err error) {
	add := func(name string, c syscall.Conn) {
		f, dupErr := dupConn(c, name)
		if dupErr == nil {
			list = append(list, named{name, f})
		}
		err = errors.Join(err, dupErr)
	}
	s.do(func() {
		for _, k := range s.listeners.open {
			add(listenerName(k.id), k.File)
		}
		for _, g := range s.gens {
			if g.line.Conn != nil {
				add(controlName(g.number), g.line.Conn)
			}
			pidfd, pidErr := g.group.Pidfd()
			if pidErr == nil {
				list = append(list, named{processName(g.number), pidfd})
			}
		}
	})
	add(notifyName, s.notified)
	add(apiName, s.control)
	add(lockName, s.store.LockFile())
	return list, err
}

// dupConn is a duplicate under another name; it is polled if c is.
func dupConn(c syscall.Conn, name string) (*os.File, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	n := -1
	if ctlErr := raw.Control(func(fd uintptr) { n, err = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) }); ctlErr != nil || err != nil {
		return nil, errors.Join(ctlErr, err)
	}
	return os.NewFile(uintptr(n), name), nil
}
