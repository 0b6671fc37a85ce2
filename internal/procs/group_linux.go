package procs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
)

// Group is a process tree.
type Group struct {
	cmd    *exec.Cmd
	pid    int
	cgroup string // its directory; empty without one
	done   chan struct{}
	exit   Exit // set before done is closed
}

func (g *Group) wait() {
	g.cmd.Wait()
	if ws, ok := g.cmd.ProcessState.Sys().(syscall.WaitStatus); ok {
		if ws.Signaled() {
			g.exit = Exit{Signal: ws.Signal(), Core: ws.CoreDump()}
		} else {
			g.exit = Exit{Code: ws.ExitStatus()}
		}
	}
	close(g.done)
}

// Pid is the main process.
func (g *Group) Pid() int { return g.pid }

// Pids are the living processes of the tree.
func (g *Group) Pids() []int {
	if g.cgroup != "" {
		return cgroupPids(g.cgroup)
	}
	return sessionPids(g.pid)
}

// Contains tells whether pid is a living process of the tree. It is cheap.
func (g *Group) Contains(pid int) bool {
	if g.cgroup != "" {
		return inCgroup(g.cgroup, pid)
	}
	return descendsFrom(g.pid, pid)
}

// Signal sends sig to the main process; os.ErrProcessDone if it has ended.
func (g *Group) Signal(sig syscall.Signal) error { return g.cmd.Process.Signal(sig) }

// SignalAll sends sig to every process of the tree.
func (g *Group) SignalAll(sig syscall.Signal) error {
	var errs []error
	for _, pid := range g.Pids() {
		if err := unix.Kill(pid, sig); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, fmt.Errorf("signal process %d: %w", pid, err))
		}
	}
	return errors.Join(errs...)
}

// Kill ends all processes of the tree and waits until none is left.
func (g *Group) Kill(ctx context.Context) error {
	for {
		pids := g.Pids()
		if len(pids) == 0 {
			return nil
		}
		for _, pid := range pids {
			unix.Kill(pid, unix.SIGKILL)
		}
		reapOrphans(g.pid)
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("processes %v are left: %w", slices.Sorted(slices.Values(pids)), err)
		}
	}
}

// Empty waits until no process of the tree is left.
func (g *Group) Empty(ctx context.Context) error { return errors.New("not there yet") }

// Done is closed when the main process has ended.
func (g *Group) Done() <-chan struct{} { return g.done }

// Exit is how the main process ended; only after Done.
func (g *Group) Exit() Exit { return g.exit }

// Remove gives back what the kernel keeps for the empty tree.
func (g *Group) Remove() error {
	if g.cgroup == "" {
		return nil
	}
	return removeCgroup(g.cgroup)
}

// RSS is the resident memory of the tree in bytes.
func (g *Group) RSS() int64 {
	var sum int64
	for _, pid := range g.Pids() {
		sum += ResidentBytes(pid)
	}
	return sum
}

// Delegated is the cgroup directory in which Launch makes cgroups, or an error that tells why there is none.
func Delegated() (string, error) {
	if d := delegated(); d != "" {
		return d, nil
	}
	return "", os.ErrNotExist
}

// Exit is how a process ended.
type Exit struct {
	Code   int
	Signal syscall.Signal // 0 if it exited by itself
	Core   bool
}

func (e Exit) String() string {
	if e.Signal != 0 {
		return fmt.Sprintf("killed by signal %d (%v)", int(e.Signal), e.Signal)
	}
	return fmt.Sprintf("exited with status %d", e.Code)
}
