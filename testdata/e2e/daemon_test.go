package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hotdeploy/hotdeploy/internal/api"
)

// dialControl connects to the daemon's control socket on the machine itself, without the line that tests cut. The
// connection ends with the machine.
func (s *service) dialControl(context.Context) (net.Conn, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "ours"), os.NewFile(uintptr(fds[1]), "theirs")
	defer ours.Close()
	defer theirs.Close()
	conn, err := net.FileConn(ours)
	if err != nil {
		return nil, err
	}
	// Not the caller's context: a connection outlives the request that it was opened for.
	cmd, err := s.vm.EnterCommand(context.Background(), "/usr/local/bin/hotdeployd", "dial", "--service", s.service)
	if err != nil {
		conn.Close()
		return nil, err
	}
	cmd.Stdin, cmd.Stdout = theirs, theirs
	if err := cmd.Start(); err != nil {
		conn.Close()
		return nil, err
	}
	go func() { _ = cmd.Wait() }() // it ends with the connection, from whichever side
	return conn, nil
}

// status is what the daemon says of itself.
func (s *service) status() api.Status {
	s.t.Helper()
	st, err := s.askStatus()
	if err != nil {
		s.t.Fatalf("status of %s on %s: %v", s.service, s.vm.Name, err)
	}
	return st
}

func (s *service) askStatus() (api.Status, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return s.daemon.Status(ctx)
}

// quiet waits until no upgrade is in flight and returns the last one, nil if there was none.
func (s *service) quiet() *api.Upgrade {
	s.t.Helper()
	var st api.Status
	until(s.t, "the daemon has nothing in flight", func() bool {
		var err error
		st, err = s.askStatus()
		return err == nil && st.Upgrade == nil && st.State != api.StateStarting
	})
	return st.Last
}

// moment is the beginning of a phase of the next upgrade.
type moment struct {
	reached chan struct{}
	err     error // of what came instead; read after reached
}

// errOver: the upgrade ended without that phase.
var errOver = errors.New("the upgrade ended before it")

// at watches for the next upgrade to enter a phase. It is called before the upgrade is asked for.
func (s *service) at(phase string) *moment {
	s.t.Helper()
	m := &moment{reached: make(chan struct{})}
	since := s.status().Seq
	ctx, cancel := context.WithTimeout(context.Background(), commandLimit)
	s.t.Cleanup(cancel)
	go func() {
		defer close(m.reached)
		defer cancel()
		m.err = s.daemon.Events(ctx, since, func(e api.Event) error {
			switch {
			case e.Upgrade == nil || e.Upgrade.Kind == api.KindStart:
				return nil
			case e.Upgrade.Phase == phase && e.Upgrade.Outcome == "":
				return errThere
			case e.Upgrade.Outcome != "":
				return errOver
			}
			return nil
		})
	}()
	return m
}

var errThere = errors.New("there")

// wait returns when the phase has begun, or says what came instead.
func (m *moment) wait() error {
	<-m.reached
	if errors.Is(m.err, errThere) {
		return nil
	}
	return m.err
}

// phases is how long each phase of an upgrade took, for people.
func phases(u *api.Upgrade) string {
	if u == nil {
		return "no upgrade"
	}
	text := fmt.Sprintf("%s of %s", u.Kind, u.To.Version)
	for _, p := range u.Phases {
		text += fmt.Sprintf(" · %s %s", p.Phase, p.Took.Round(time.Millisecond/10))
	}
	return text
}
