package libtest

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	ctl "github.com/hotdeploy/hotdeploy/upgrade/control"
)

// site is what a supervisor would be: a listening socket, and the generations that serve on it. One goroutine uses it.
type site struct {
	dir      string   // for the generations' output
	set      []string // what else their environments have
	socket   *os.File
	addr     string
	serving  *generation
	draining []*generation
	started  int

	mu     sync.Mutex    // protects what follows
	moving chan struct{} // closed when the next handoff begins
	all    []*generation // that were ever started
}

// release says what a generation is.
type release struct {
	app     string // path of the program
	library string
	deflate bool // compression is on
	mode    string
	fail    string // UPGRADE_FAILPOINT
}

func (r release) String() string {
	return fmt.Sprintf("%s %s compression=%t", r.library, r.mode, r.deflate)
}

func (r release) env() []string {
	env := []string{"PATH=" + os.Getenv("PATH"), "LISTEN_FDS=1", "LISTEN_FDNAMES=web", ctl.Env + "=4", "LIBRARY=" + r.library, "MODE=" + r.mode}
	if r.deflate {
		env = append(env, "COMPRESS=1")
	}
	if r.fail != "" {
		env = append(env, "UPGRADE_FAILPOINT="+r.fail)
	}
	return env
}

// generation is one running release.
type generation struct {
	release
	number  int
	cmd     *exec.Cmd
	control *ctl.Conn
	stdin   io.WriteCloser
	stderr  string        // file
	exited  chan struct{} // closed when the process has ended
	err     error         // of its end; read it after exited
}

// newSite binds a port. The sockets of its connections have small buffers, so that slow clients have much unsent.
func newSite(dir string) (*site, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	defer ln.Close()
	f, err := ln.(*net.TCPListener).File()
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := unix.SetsockoptInt(int(f.Fd()), unix.SOL_SOCKET, unix.SO_SNDBUF, 64<<10); err != nil {
		return nil, os.NewSyscallError("setsockopt", err)
	}
	// Fd has made the socket blocking, before anybody accepts; a file that is made of it now leaves the mode alone for each child.
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	return &site{dir: dir, socket: os.NewFile(uintptr(fd), "listener"), addr: ln.Addr().String(), moving: make(chan struct{})}, nil
}

// close kills whatever still runs.
func (s *site) close() {
	s.kill()
	for _, g := range s.all {
		g.end()
	}
	s.socket.Close()
}

// kill may be called by anybody.
func (s *site) kill() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, g := range s.all {
		g.cmd.Process.Kill() // most have ended long ago, which it knows
	}
}

// log is what the generations have printed.
func (s *site) log() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var b strings.Builder
	for _, g := range s.all {
		if text := g.log(); text != "" {
			fmt.Fprintf(&b, "--- generation %d (%s) says:\n%s", g.number, g.release, text)
		}
	}
	return b.String()
}

// start runs a release, until it says that it is ready.
func (s *site) start(r release) (*generation, error) {
	s.started++
	ours, theirs, err := ctl.Pair()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	g := &generation{release: r, number: s.started, control: ours, exited: make(chan struct{})}
	if err := g.exec(s, theirs); err != nil {
		ours.Close()
		return nil, err
	}
	s.mu.Lock()
	s.all = append(s.all, g)
	s.mu.Unlock()
	if _, err := g.await(ctl.Hello, patience); err != nil {
		return nil, fmt.Errorf("generation %d does not start: %w", g.number, err)
	}
	return g, nil
}

func (g *generation) exec(s *site, control *os.File) (err error) {
	g.stderr = filepath.Join(s.dir, fmt.Sprintf("generation-%d", g.number))
	log, err := os.Create(g.stderr)
	if err != nil {
		return err
	}
	defer log.Close()
	g.cmd = exec.Command(g.app)
	g.cmd.Env, g.cmd.Stderr, g.cmd.ExtraFiles = append(g.env(), s.set...), log, []*os.File{s.socket, control}
	if g.stdin, err = g.cmd.StdinPipe(); err != nil {
		return err
	}
	if err := g.cmd.Start(); err != nil {
		return err
	}
	go func() {
		g.err = g.cmd.Wait()
		close(g.exited)
	}()
	return nil
}

// log is the end of what it has printed.
func (g *generation) log() string {
	b, err := os.ReadFile(g.stderr)
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-8<<10):])
}

// await waits for a message.
func (g *generation) await(kind string, limit time.Duration) (ctl.Message, error) {
	by := time.Now().Add(limit)
	for {
		m, f, err := g.control.ReceiveBy(by)
		if f != nil {
			f.Close()
		}
		if err != nil || m.Type == kind {
			return m, err
		}
	}
}

// end waits for the end of the process, and frees what we have of it.
func (g *generation) end() {
	<-g.exited
	g.control.Close()
	g.stdin.Close()
}

// term asks it to end when nothing is left.
func (s *site) term(g *generation) {
	g.cmd.Process.Signal(syscall.SIGTERM)
	s.draining = append(s.draining, g)
}

// reap looks at generations that were asked to end and have done so. An exit status is a panic, or a race.
func (s *site) reap() error {
	var errs []error
	s.draining = slices.DeleteFunc(s.draining, func(g *generation) bool {
		select {
		case <-g.exited:
			if g.err != nil {
				errs = append(errs, fmt.Errorf("generation %d: %w", g.number, g.err))
			}
			g.end()
			return true
		default:
			return false
		}
	})
	return errors.Join(errs...)
}

// settle waits until all of them have ended. One that does not shows its goroutines.
func (s *site) settle(limit time.Duration) error {
	timeout := time.After(limit)
	for _, g := range s.draining {
		select {
		case <-g.exited:
		case <-timeout:
			g.cmd.Process.Signal(syscall.SIGQUIT)
			<-g.exited
			return fmt.Errorf("generation %d does not end", g.number)
		}
	}
	return s.reap()
}

// begins returns a channel that is closed when the next handoff begins.
func (s *site) begins() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.moving
}

// handoffTime is what a handoff may take. The supervisor's is longer than anything here needs, too.
const handoffTime = 30 * time.Second

// handoff has one generation give its connections to another.
func (s *site) handoff(from, to *generation) (ctl.Message, error) {
	a, b, err := ctl.HandoffPair()
	if err != nil {
		return ctl.Message{}, err
	}
	defer a.Close()
	defer b.Close()
	s.mu.Lock()
	close(s.moving)
	s.moving = make(chan struct{})
	s.mu.Unlock()
	m := ctl.Message{Type: ctl.Take, ID: s.started, TimeoutMS: handoffTime.Milliseconds()}
	if err := to.control.Send(m, b, patience); err != nil {
		return m, err
	}
	b.Close()
	m.Type = ctl.Give
	if err := from.control.Send(m, a, patience); err != nil {
		return m, err
	}
	a.Close()
	m, err = from.await(ctl.Given, handoffTime+patience)
	if err != nil {
		return m, fmt.Errorf("generation %d does not say what it has given: %w", from.number, err)
	}
	return m, nil
}

// deploy replaces the serving generation.
func (s *site) deploy(r release) (ctl.Message, error) {
	next, err := s.start(r)
	if err != nil {
		return ctl.Message{}, err
	}
	old := s.serving
	s.serving = next
	if old == nil {
		return ctl.Message{}, nil
	}
	m, err := s.handoff(old, next)
	s.term(old)
	return m, err
}

// try replaces the serving generation, and takes that back. In between, pause is called.
func (s *site) try(r release, pause func()) (to, back ctl.Message, err error) {
	next, err := s.start(r)
	if err != nil {
		return to, back, err
	}
	defer s.term(next)
	if to, err = s.handoff(s.serving, next); err != nil {
		return to, back, err
	}
	pause()
	if err := s.serving.control.Send(ctl.Message{Type: ctl.Proceed}, nil, patience); err != nil {
		return to, back, err
	}
	back, err = s.handoff(next, s.serving)
	return to, back, err
}

// fail tries a release that dies in the handoff.
func (s *site) fail(r release) (ctl.Message, error) {
	next, err := s.start(r)
	if err != nil {
		return ctl.Message{}, err
	}
	m, err := s.handoff(s.serving, next)
	if err != nil {
		return m, err
	}
	select {
	case <-next.exited:
	case <-time.After(patience):
		return m, fmt.Errorf("generation %d has not come to %s", next.number, r.fail)
	}
	return m, s.serving.control.Send(ctl.Message{Type: ctl.Proceed}, nil, patience)
}
