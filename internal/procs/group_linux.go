package procs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// Group is a process tree. Its methods may be called by anybody at any time, also after Remove.
type Group struct {
	pid     int
	started uint64   // with the pid it names the main process for ever, in this boot
	main    *os.File // pidfd of the main process, open until Remove; nil for one that was gone when it was adopted
	tree    tree
	adopted bool // nobody here is its parent: no zombie keeps its pid
	done    chan struct{}
	exit    Exit // set before done is closed

	removed atomic.Bool
}

// tree is how the processes of a group are found: in its cgroup, or in its session.
type tree interface {
	env(env []string) []string      // what the main process gets
	born(pid int)                   // the main process is there
	pids() []int                    // those that live
	contains(pid int) bool          // and lives
	kill(ctx context.Context) error // all, until none is left
	empty(ctx context.Context) error
	remove() error // only of an empty one
	cgroup() string
	record(*Record)
}

// groups are those that Remove has not seen yet, by the pid of their main process. The lock is held while a process is born
// and while one is reaped, so that neither is taken for the other.
var groups = struct {
	sync.Mutex
	living map[int]*Group
}{living: map[int]*Group{}}

// wait learns how the main process ended, and leaves it as a zombie.
func (g *Group) wait() {
	defer close(g.done)
	if err := ended(context.Background(), g.main); err != nil {
		g.exit = Exit{Code: -1}
		return
	}
	if g.adopted {
		g.exit = g.exitOfOther()
		return
	}
	g.exit = exitOf(g.main)
}

// Pid is the main process.
func (g *Group) Pid() int { return g.pid }

// Cgroup is the directory of the group's own cgroup, empty without one.
func (g *Group) Cgroup() string { return g.tree.cgroup() }

// Pids are the living processes of the tree.
func (g *Group) Pids() []int { return g.tree.pids() }

// Contains tells whether pid belongs to the tree. It reads one small file, or a few. The main process does so until Remove, others
// while they live: their numbers may be somebody else's afterwards.
func (g *Group) Contains(pid int) bool {
	return pid == g.pid && !g.adopted && !g.removed.Load() || g.tree.contains(pid)
}

// Done is closed when the main process has ended; others of the tree may be left.
func (g *Group) Done() <-chan struct{} { return g.done }

// Ended asks the kernel whether the main process has ended, which Done may tell a moment later.
func (g *Group) Ended() bool {
	if g.main == nil || hasEnded(g.main) {
		return true
	}
	select {
	case <-g.done: // the pidfd may be closed since
		return true
	default:
		return false
	}
}

// Exit is how the main process ended.
func (g *Group) Exit() Exit {
	select {
	case <-g.done:
		return g.exit
	default:
		return Exit{running: true}
	}
}

// Signal sends sig to the main process. One that has ended already is no error.
func (g *Group) Signal(sig syscall.Signal) error {
	if g.main == nil {
		return nil
	}
	if err := signalPidfd(g.main, sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("signal process %d: %w", g.pid, err)
	}
	return nil
}

// SignalAll sends sig once to every process of the tree. One that is forked meanwhile may be missed.
func (g *Group) SignalAll(sig syscall.Signal) error {
	var errs []error
	for _, pid := range g.Pids() {
		if err := signalMember(g.tree, pid, sig); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Kill ends all processes of the tree (SIGKILL) and waits until none is left. An error means that some are, because ctx ended
// or the kernel refused; it may be called again.
func (g *Group) Kill(ctx context.Context) error {
	if err := g.tree.kill(ctx); err != nil {
		return fmt.Errorf("kill the processes of %d: %w", g.pid, err)
	}
	return g.Empty(ctx)
}

// Empty waits until no process of the tree is left.
func (g *Group) Empty(ctx context.Context) error {
	if err := g.tree.empty(ctx); err != nil {
		return fmt.Errorf("wait for the processes of %d: %w", g.pid, err)
	}
	select {
	case <-g.done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// ErrNotEmpty is Remove's answer while processes are left.
var ErrNotEmpty = errors.New("processes are left")

// Remove gives back what the kernel keeps for an empty tree: the zombie of the main process, and the cgroup. With ErrNotEmpty it
// has done nothing.
func (g *Group) Remove() error {
	select {
	case <-g.done:
	default:
		return fmt.Errorf("process %d is alive: %w", g.pid, ErrNotEmpty)
	}
	if pids := g.Pids(); len(pids) > 0 {
		return fmt.Errorf("processes %v of %d are alive: %w", pids[:min(len(pids), 10)], g.pid, ErrNotEmpty)
	}
	g.forget()
	return g.tree.remove()
}

// forget reaps the main process, which has ended. From here on its pid may be somebody else's.
func (g *Group) forget() {
	groups.Lock()
	defer groups.Unlock()
	if g.removed.Swap(true) {
		return
	}
	g.tree.born(0)
	if g.adopted { // its parent, or init, reaps it
		g.main.Close()
		return
	}
	delete(groups.living, g.pid)
	unix.Wait4(g.pid, nil, 0, nil) // a zombie: does not wait
	g.main.Close()
}
