package upgrade

import (
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	ctl "github.com/hotdeploy/hotdeploy/upgrade/control"
)

// This file is the front: where whoever has started us takes the end of that process for the end of the app, it stays, as the parent of those that serve. It passes
// signals on, asks how orphans ended, and ends as the last one that served did (with status 1 if only the process before that one knows). It never serves itself.

// frontEnv tells a process that it has a front, and the descriptor of the line to it.
const frontEnv = "HOTDEPLOY_FRONT"

// needsFront says whether this process must stay: it is process 1 of a container, all that systemd looks at, or a terminal's first, whose end takes
// the terminal away from everybody; or the app has asked for it.
func (o Options) needsFront() bool {
	if os.Getenv(frontEnv) != "" || os.Getenv(tableflipEnv) != "" {
		return false
	}
	pid := os.Getpid()
	session, err := unix.Getsid(0)
	return o.KeepPID || pid == 1 || err == nil && session == pid && hasTerminal() || os.Getenv("SYSTEMD_EXEC_PID") == strconv.Itoa(pid) && os.Getenv("NOTIFY_SOCKET") == ""
}

// front is the process that stays. One goroutine does it all.
type front struct {
	line    *ctl.Conn
	word    chan bool      // gets one when there is something on the line
	gone    chan int       // gets the end of each process that followed the first
	polite  map[int]bool   // those that have said that they end
	ending  syscall.Signal // what has asked the app to end; 0: nothing
	current int
	alive   []int // those that have served, or do
	status  syscall.WaitStatus
	over    bool // the current one has ended, with that status
}

// passedOn are the signals that are meant for whoever serves.
var passedOn = []os.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2}

// beFront starts the app once more, and returns only if that fails.
func beFront() error {
	noteNohup()
	signals := make(chan os.Signal, 64)
	signal.Notify(signals, append(slices.Clone(passedOn), syscall.SIGCHLD)...)
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("upgrade: stay in front: %w", os.NewSyscallError("prctl", err))
	}
	ours, theirs, err := ctl.Files()
	if err != nil {
		return fmt.Errorf("upgrade: stay in front: %w", err)
	}
	p, err := os.StartProcess("/proc/self/exe", os.Args, &os.ProcAttr{
		Files: []*os.File{os.Stdin, os.Stdout, os.Stderr, theirs}, Env: append(os.Environ(), frontEnv+"=3"),
	})
	theirs.Close()
	if err != nil {
		return fmt.Errorf("upgrade: stay in front: %w", err)
	}
	f := &front{word: make(chan bool), gone: make(chan int), polite: map[int]bool{}, current: p.Pid, alive: []int{p.Pid}}
	if err := f.listen(ours); err != nil {
		p.Kill()
		return fmt.Errorf("upgrade: stay in front: %w", err)
	}
	for {
		select {
		case <-f.word:
			f.line.Pending(f.heed)
		case sig := <-signals:
			if sig == syscall.SIGCHLD {
				f.reap()
				break
			}
			f.line.Pending(f.heed)
			f.pass(sig.(syscall.Signal))
		case pid := <-f.gone:
			f.reap()
			f.line.Pending(f.heed)
			if f.polite[pid] { // else we have not been told how: the process before it was its parent, and knows
				f.ended(pid, 0)
			} else {
				f.ended(pid, crashed)
			}
		}
		if f.over && (f.status != 0 || len(f.alive) == 0) {
			f.exit()
		}
	}
}

// listen notices when a serving process says something. It ends when there is none.
func (f *front) listen(line *os.File) (err error) {
	fd, err := unix.FcntlInt(line.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("fcntl", err)
	}
	if f.line, err = ctl.NewConn(line); err != nil {
		return err
	}
	go func() {
		defer unix.Close(fd)
		for {
			p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
			if _, err := unix.Poll(p, -1); err == unix.EINTR {
				continue
			}
			if p[0].Revents&unix.POLLIN == 0 || p[0].Revents&unix.POLLHUP != 0 {
				return
			}
			f.word <- true
		}
	}()
	return nil
}

// crashed is how a process ended of which nobody tells.
const crashed = syscall.WaitStatus(1 << 8)

// pass gives a signal to whoever serves.
func (f *front) pass(sig syscall.Signal) {
	switch sig {
	case syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT:
		f.ending = sig
	}
	syscall.Kill(f.current, sig)
}

// heed acts on what a serving process says: who follows it, or that it ends in good order.
func (f *front) heed(m ctl.Message) {
	switch m.Type {
	case ctl.Commit:
		f.current = m.ID
		f.alive = append(f.alive, m.ID)
		go f.watch(m.ID)
		if f.ending != 0 { // it went to the process before, which had just let go
			f.pass(f.ending)
		}
	case ctl.Proceed:
		f.polite[m.ID] = true
	}
}

// watch tells of the end of a process that is not our child as long as the one before it lives.
func (f *front) watch(pid int) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err == nil {
		defer unix.Close(fd)
		for err = unix.EINTR; err == unix.EINTR; {
			_, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, -1)
		}
	}
	f.gone <- pid
}

// ended notes an end; the first that is heard of it counts.
func (f *front) ended(pid int, status syscall.WaitStatus) {
	f.alive = slices.DeleteFunc(slices.Clone(f.alive), func(p int) bool { return p == pid })
	if pid == f.current && !f.over {
		f.status, f.over = status, true
	}
}

// reap asks after every process that has ended, also those of which we know nothing.
func (f *front) reap() {
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
		if err == syscall.EINTR {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
		f.reaped(pid, status)
	}
}

// reaped concludes from an end what there is to conclude. What that process has said comes first, and nothing that was read before its end was known need be
// all: who follows it, above all.
func (f *front) reaped(pid int, status syscall.WaitStatus) {
	f.line.Pending(f.heed)
	f.ended(pid, status)
}

// exit ends as the app did.
func (f *front) exit() {
	if f.status.Exited() {
		os.Exit(f.status.ExitStatus())
	}
	signal.Reset(f.status.Signal())
	syscall.Kill(os.Getpid(), f.status.Signal())
	os.Exit(128 + int(f.status.Signal())) // process 1 has no default action
}

// findFront takes the line to the front over, from the front or from the process before us.
func (s *standalone) findFront() error {
	f, err := s.flip.File(frontEnv)
	if f == nil && err == nil {
		text := os.Getenv(frontEnv)
		if text == "" {
			return nil
		}
		os.Unsetenv(frontEnv)
		fd, err := strconv.Atoi(text)
		if err != nil || fd < firstFD {
			return fmt.Errorf("%s=%q: not a descriptor", frontEnv, text)
		}
		unix.CloseOnExec(fd)
		f = os.NewFile(uintptr(fd), frontEnv)
		if err := s.flip.AddFile(frontEnv, f); err != nil {
			return err
		}
	}
	if err != nil {
		return err
	}
	if s.front, err = ctl.NewConn(f); err == nil {
		go s.watchFront()
	}
	return err
}

// watchFront drains when the front is gone: whoever watches it thinks that we are.
func (s *standalone) watchFront() {
	for {
		if _, _, err := s.front.Receive(); err != nil {
			s.u.opt.Log("upgrade: the process in front of pid %d is gone: ending", os.Getpid())
			s.u.stopOnce.Do(func() { close(s.u.stop) })
			return
		}
	}
}

// farewell says that we end in good order.
func (s *standalone) farewell() {
	if s != nil && s.front != nil {
		s.front.Send(ctl.Message{Type: ctl.Proceed, ID: os.Getpid()}, nil, controlTime)
	}
}

// announce tells whoever watches the app which process it is now.
func (s *standalone) announce(pid int) {
	switch {
	case pid <= 0:
	case s.front != nil:
		s.front.Send(ctl.Message{Type: ctl.Commit, ID: pid}, nil, controlTime)
		notify("READY=1\nSTATUS=")
	default:
		notify(fmt.Sprintf("MAINPID=%d\nREADY=1\nSTATUS=", pid))
	}
}
