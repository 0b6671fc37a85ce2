package procs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"
)

// Group is a main process and whatever it started.
type Group struct {
	cmd    *exec.Cmd
	pid    int
	cgroup string        // its directory; empty: the session
	done   chan struct{} // closed when the main process has been reaped
}

// wait reaps the main process. Go holds a pidfd of it, so that no signal can reach a successor of its pid.
func (g *Group) wait() {
	g.cmd.Wait() // ProcessState says it all
	close(g.done)
}

// Pid is the main process's.
func (g *Group) Pid() int { return g.pid }

// Done is closed when the main process has ended. Others of the group may still live.
func (g *Group) Done() <-chan struct{} { return g.done }

// Exit is how a process ended.
type Exit struct {
	Code   int
	Signal syscall.Signal // zero if it exited by itself
}

func (e Exit) String() string {
	if e.Signal != 0 {
		return fmt.Sprintf("was killed by signal %d (%s)", int(e.Signal), e.Signal)
	}
	return fmt.Sprintf("exited with status %d", e.Code)
}

// Exit is how the main process ended; only after Done.
func (g *Group) Exit() Exit {
	ws, ok := g.cmd.ProcessState.Sys().(syscall.WaitStatus)
	if ok && ws.Signaled() {
		return Exit{Signal: ws.Signal()}
	}
	return Exit{Code: g.cmd.ProcessState.ExitCode()}
}

// Pids are the living processes of the group.
func (g *Group) Pids() []int {
	if g.cgroup != "" {
		return cgroupPids(g.cgroup)
	}
	return sessionPids(g.pid)
}

// Contains tells whether pid belongs to the group.
func (g *Group) Contains(pid int) bool {
	if pid == g.pid {
		return true
	}
	if g.cgroup != "" {
		return inCgroup(g.cgroup, pid)
	}
	return descendsFrom(g.pid, pid)
}

// Signal goes to the main process; one that has ended already is no error.
func (g *Group) Signal(sig syscall.Signal) error {
	if err := g.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("signal %d: %w", g.pid, err)
	}
	return nil
}

// RSS is the resident memory of the group in bytes. What processes share counts for each of them.
func (g *Group) RSS() int64 {
	var sum int64
	for _, pid := range g.Pids() {
		sum += ResidentBytes(pid)
	}
	return sum
}

// Kill ends every process of the group with SIGKILL and waits until none is left, or for ctx. Processes that fork
// meanwhile are caught too.
func (g *Group) Kill(ctx context.Context) error {
	for {
		pids := g.Pids()
		if len(pids) == 0 && g.reaped() {
			return nil
		}
		g.kill(pids)
		if err := g.awaitExits(ctx, pids); err != nil {
			return fmt.Errorf("processes %v of generation %d do not end: %w", pids[:min(len(pids), 5)], g.pid, err)
		}
	}
}

func (g *Group) reaped() bool {
	select {
	case <-g.done:
		return true
	default:
		return false
	}
}

func (g *Group) kill(pids []int) {
	if g.cgroup != "" && os.WriteFile(g.cgroup+"/cgroup.kill", []byte("1"), 0) == nil {
		return
	}
	g.cmd.Process.Kill()
	for _, pid := range pids {
		if pid == g.pid {
			continue // by its handle, above
		}
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			continue // gone
		}
		if g.Contains(pid) { // the handle is of the process that was listed, not of a successor of its pid
			unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
		}
		unix.Close(fd)
	}
}

// awaitExits waits until all of pids have ended.
func (g *Group) awaitExits(ctx context.Context, pids []int) error {
	for _, pid := range pids {
		if pid == g.pid {
			continue
		}
		if err := awaitExit(ctx, pid); err != nil {
			return err
		}
		if g.cgroup == "" { // an orphan that came to us; os/exec does not know of it
			unix.Wait4(pid, nil, unix.WNOHANG, nil)
		}
	}
	select {
	case <-g.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// pollSlice is how often a wait for another's child looks at its context, in milliseconds.
const pollSlice = 100

// awaitExit waits for the end of any process: a pidfd is readable then (pidfd_open(2)).
func awaitExit(ctx context.Context, pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil // gone
	}
	defer unix.Close(fd)
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, pollSlice)
		if n > 0 || (err != nil && err != unix.EINTR) {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

// Remove forgets an empty group: its cgroup is removed.
func (g *Group) Remove() error {
	if g.cgroup == "" {
		reapOrphans(g.pid)
		return nil
	}
	return removeCgroup(g.cgroup)
}
