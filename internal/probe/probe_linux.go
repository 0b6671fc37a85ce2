package probe

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/hotdeploy/hotdeploy/internal/release"
	"github.com/hotdeploy/hotdeploy/internal/sockets"
)

// Target is the generation that is asked.
type Target struct {
	Sockets map[string]*sockets.Socket // by the listener's name
	First   *sockets.Socket            // for a probe that names none; nil if there is none
	Pid     int                        // its main process, which commands are told; 0: the lowest of Pids
	Pids    func() []int               // all of its processes
	Dir     string                     // in which commands run
	Env     []string                   // of commands
}

// Check asks once. It waits as long as ctx lets it; an error then says for what.
func Check(ctx context.Context, p release.Probe, t Target) error {
	switch p.Check {
	case release.CheckCommand:
		return runCommand(ctx, p.Command, t)
	case release.CheckTCP:
		return onConnection(ctx, p, t, func(net.Conn) error { return nil })
	case release.CheckHTTP:
		return onConnection(ctx, p, t, func(c net.Conn) error { return get(ctx, c, p) })
	}
	return fmt.Errorf("%q is not a check that can be asked", p.Check)
}

// onConnection lets ask use a connection that the generation has accepted.
func onConnection(ctx context.Context, p release.Probe, t Target, ask func(net.Conn) error) error {
	s := t.First
	if p.Listener != "" {
		s = t.Sockets[p.Listener]
	}
	if s == nil {
		return fmt.Errorf("there is no listener %q to ask", p.Listener)
	}
	c, err := reach(ctx, s, t.Pids)
	if err != nil {
		return err
	}
	defer c.Close()
	return ask(c)
}

// The pause after a check that failed: nothing tells when it would pass.
const (
	firstPause = 20 * time.Millisecond
	lastPause  = 500 * time.Millisecond
)

// WaitReady repeats Check until it passes or ctx ends. The error then tells the last failure.
func WaitReady(ctx context.Context, r release.Ready, t Target) error {
	var last error
	for pause := firstPause; ; pause = min(2*pause, lastPause) {
		err := Check(ctx, r.Probe, t)
		switch {
		case err == nil:
			return nil
		case ctx.Err() == nil:
			last = err
		case last == nil:
			return err
		default: // cut off, so what it said before may tell more
			return fmt.Errorf("%w (before that: %w)", err, last)
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return last
		}
	}
}

// inTime puts the end of ctx into words, whatever it did to err: what the check waited for is all that a caller wants to know.
func inTime(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return errors.New("no answer in time")
	}
	return err
}
