package sockets

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// CloseConnections shuts down the connections that came through ls and are open in one of pids, whatever the app is, evenly
// spread over a time. What the app has written already still goes out; the app reads an end of file. It returns how many it
// shut down. An error wraps ErrForbidden where the kernel does not let us (another user's process, ptrace_scope, a filter of
// system calls): end the process instead. It is ctx's cause if that came first. Connections that were accepted later are left alone, and so are
// those that one of the processes has that others tells: they have moved there. It is asked at the start and then once in a while.
func CloseConnections(ctx context.Context, pids []int, others func() []int, ls []*Socket, over time.Duration) (n int, err error) {
	processes := map[int]int{} // pidfds, opened before anything is read: they hold on to whom we read of
	defer func() {
		for _, fd := range processes {
			unix.Close(fd)
		}
	}()
	for _, pid := range pids {
		if fd, err := unix.PidfdOpen(pid, 0); err == nil {
			processes[pid] = fd
		} else if err != unix.ESRCH {
			return 0, fmt.Errorf("%w: %w", ErrForbidden, os.NewSyscallError("pidfd_open", err))
		}
	}
	all, err := closable(pids, ls)
	if errors.Is(err, fs.ErrPermission) {
		return 0, fmt.Errorf("%w: %w", ErrForbidden, err)
	}
	if err != nil {
		return 0, err
	}
	all, forbidden := permitted(all, processes)
	moved := elsewhere{others: others, of: all}
	err = spread(ctx, len(all), over, func(i int) {
		if !moved.has(all[i].inode) && all[i].shutdown(processes) == nil {
			n++
		}
	})
	return n, errors.Join(err, forbidden)
}

// lookEvery is for how long it is believed who else has a connection: to find out, all descriptors of those processes are looked at.
const lookEvery = time.Second

// elsewhere knows which of some connections other processes have.
type elsewhere struct {
	others func() []int
	of     []closing
	looked time.Time
	held   map[uint64]place
}

// has looks again when its knowledge is old. Whom it may not look into has nothing.
func (e *elsewhere) has(inode uint64) bool {
	if e.others == nil {
		return false
	}
	if time.Since(e.looked) >= lookEvery {
		wanted := make(map[uint64]bool, len(e.of))
		for _, c := range e.of {
			wanted[c.inode] = true
		}
		e.held = map[uint64]place{}
		for _, pid := range e.others() {
			if held, err := heldBy([]int{pid}, wanted); err == nil {
				maps.Copy(e.held, held)
			}
		}
		e.looked = time.Now()
	}
	_, has := e.held[inode]
	return has
}

// closing is one connection to close.
type closing struct {
	inode uint64
	place
}

// closable are the connections in the order of their descriptors, which is more or less their age.
func closable(pids []int, ls []*Socket) ([]closing, error) {
	accepted, err := acceptedOn(ls)
	if err != nil {
		return nil, err
	}
	held, err := heldBy(pids, accepted)
	if err != nil {
		return nil, err
	}
	all := make([]closing, 0, len(held))
	for inode, at := range held {
		all = append(all, closing{inode, at})
	}
	slices.SortFunc(all, func(a, b closing) int {
		if a.pid != b.pid {
			return a.pid - b.pid
		}
		return a.fd - b.fd
	})
	return all, nil
}

// permitted drops the connections of processes into which we may not reach, so that nobody waits for them.
func permitted(all []closing, processes map[int]int) ([]closing, error) {
	refused := map[int]error{}
	asked := map[int]bool{}
	for _, c := range all {
		if !asked[c.pid] {
			asked[c.pid] = true
			fd, err := unix.PidfdGetfd(processes[c.pid], c.fd, 0)
			if err == nil {
				unix.Close(fd)
			} else if err == unix.EPERM || err == unix.EACCES || err == unix.ENOSYS {
				refused[c.pid] = fmt.Errorf("%w: process %d: %w", ErrForbidden, c.pid, os.NewSyscallError("pidfd_getfd", err))
			}
		}
	}
	var errs []error
	for _, err := range refused {
		errs = append(errs, err)
	}
	return slices.DeleteFunc(all, func(c closing) bool { return refused[c.pid] != nil }), errors.Join(errs...)
}

// shutdown ends the connection behind another process's descriptor, if that is still the same one.
func (c closing) shutdown(processes map[int]int) error {
	fd, err := unix.PidfdGetfd(processes[c.pid], c.fd, 0)
	if err != nil {
		return err // closed meanwhile
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Ino != c.inode || st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		return errors.New("the number is another file's by now")
	}
	return unix.Shutdown(fd, unix.SHUT_RDWR)
}

// spread calls do n times, the first time at once, evenly over a time.
func spread(ctx context.Context, n int, over time.Duration, do func(i int)) error {
	began := time.Now()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for i := range n {
		due := time.Duration(float64(over) * float64(i) / float64(n))
		if wait := due - time.Since(began); wait > 0 {
			timer.Reset(wait)
			select {
			case <-timer.C:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		} else if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		do(i)
	}
	return nil
}
