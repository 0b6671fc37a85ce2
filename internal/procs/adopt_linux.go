package procs

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Record is what a later program must know of a group to adopt it, in the same boot of the machine.
type Record struct {
	Pid     int    `json:"pid"`
	Started uint64 `json:"started"`          // when the kernel says that it started; with the pid it names the main process for ever
	Cgroup  string `json:"cgroup,omitempty"` // the group's own
	Mark    string `json:"mark,omitempty"`   // where it has no cgroup
}

// Lives tells whether the main process does.
func (r Record) Lives() bool {
	s, ok := readStat(r.Pid)
	return ok && s.alive() && s.started == r.Started
}

// Record is g's.
func (g *Group) Record() Record {
	r := Record{Pid: g.pid, Started: g.started}
	g.tree.record(&r)
	return r
}

// Pidfd is a duplicate of the main process's pidfd, and the caller's to close.
func (g *Group) Pidfd() (*os.File, error) { return dupPidfd(g.main) }

func dupPidfd(of *os.File) (*os.File, error) {
	if of == nil {
		return nil, os.ErrProcessDone
	}
	raw, err := of.SyscallConn()
	if err != nil {
		return nil, err
	}
	n := -1
	if ctlErr := raw.Control(func(fd uintptr) { n, err = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) }); ctlErr != nil || err != nil {
		return nil, errors.Join(ctlErr, err)
	}
	return pollablePidfd(n)
}

// Adopt takes over a group that another program launched and left behind. pidfd is one of its main process, or nil; it stays the
// caller's. With it the main process's exit status can be told even if it has ended already, where the kernel remembers that
// (Linux 6.15); without it a process that has ended is only known to have. An error means that the kernel does not let us look.
//
// The group is like one of our own, except that its main process is nobody's zombie here once it has ended.
func Adopt(r Record, pidfd *os.File) (*Group, error) {
	if r.Pid <= 1 || (r.Cgroup == "") == (r.Mark == "") {
		return nil, fmt.Errorf("adopt process %d: the record of it makes no sense", r.Pid)
	}
	g := &Group{pid: r.Pid, started: r.Started, adopted: true, done: make(chan struct{}), tree: adoptedTree(r)}
	g.tree.born(r.Pid)
	var err error
	if pidfd != nil {
		g.main, err = dupPidfd(pidfd)
	} else if g.main, err = openPidfd(r.Pid); err == nil {
		if s, ok := readStat(r.Pid); !ok || s.started != r.Started { // somebody else has the number
			g.main.Close()
			g.main, err = nil, os.ErrProcessDone
		}
	}
	if errors.Is(err, os.ErrProcessDone) {
		g.exit = Exit{Code: -1}
		close(g.done)
		return g, nil
	}
	if err != nil {
		return nil, fmt.Errorf("adopt process %d: %w", r.Pid, err)
	}
	if hasEnded(g.main) {
		g.wait() // does not, so that Done tells at once
	} else {
		go g.wait() // ends with the process
	}
	return g, nil
}

func hasEnded(pidfd *os.File) (is bool) {
	raw, err := pidfd.SyscallConn()
	if err != nil {
		return false
	}
	raw.Control(func(fd uintptr) {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(p, 0)
		is = err == nil && n == 1
	})
	return is
}

func adoptedTree(r Record) tree {
	if r.Cgroup != "" {
		return &cgroupTree{dir: r.Cgroup}
	}
	return &sessionTree{mark: markName + r.Mark, adopted: r.Started, seen: map[int]uint64{}}
}

// reapedWithin is how long whoever is a process's parent may take to reap it.
const reapedWithin = 2 * time.Second

// exitOfOther is how a process that is not our child ended, if the kernel tells: of a zombie in proc, afterwards by its pidfd.
func (g *Group) exitOfOther() Exit {
	if status, ok := zombieStatus(g.pid, g.started); ok {
		return exitOfStatus(status)
	}
	raw, err := g.main.SyscallConn()
	if err != nil {
		return Exit{Code: -1}
	}
	info := unix.PidfdInfo{Mask: unix.PIDFD_INFO_EXIT}
	var infoErr error
	err = raw.Control(func(fd uintptr) {
		p := []unix.PollFd{{Fd: int32(fd)}} // POLLHUP comes uncalled, and means that it was reaped
		unix.Poll(p, int(reapedWithin.Milliseconds()))
		infoErr = unix.IoctlPidfdInfo(int(fd), &info)
	})
	if err != nil || infoErr != nil || info.Mask&unix.PIDFD_INFO_EXIT == 0 {
		return Exit{Code: -1}
	}
	return exitOfStatus(syscall.WaitStatus(info.Exit_code))
}

func exitOfStatus(status syscall.WaitStatus) Exit {
	if status.Signaled() {
		return Exit{Code: 0, Signal: status.Signal(), Core: status.CoreDump()}
	}
	return Exit{Code: status.ExitStatus()}
}

// zombieStatus is what the parent of a zombie would get from wait. The kernel shows it to whoever may look into the process; to others
// it shows zero, which is also a status: that is not to be believed.
func zombieStatus(pid int, started uint64) (syscall.WaitStatus, bool) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	s, ok := parseStat(b)
	if err != nil || !ok || s.alive() || s.started != started {
		return 0, false
	}
	const exitCode = 49 // proc(5) counts from 1 and begins two fields earlier
	f := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	if len(f) <= exitCode {
		return 0, false
	}
	status, err := strconv.Atoi(string(f[exitCode]))
	return syscall.WaitStatus(status), err == nil && status != 0
}

// Strays are the cgroups named as name says below parent (empty: the delegated one) that are not among known: what a launch left that
// was never finished. parent may be [NoCgroup].
func Strays(parent, name string, known []string) []string {
	if parent == NoCgroup {
		return nil
	}
	if parent == "" {
		var err error
		if parent, err = Delegated(); err != nil {
			return nil
		}
	}
	entries, _ := os.ReadDir(parent)
	var dirs []string
next:
	for _, e := range entries {
		number, ok := strings.CutPrefix(e.Name(), name)
		number, _, _ = strings.Cut(number, ".")
		if _, err := strconv.Atoi(number); !ok || err != nil || !e.IsDir() {
			continue
		}
		dir := filepath.Join(parent, e.Name())
		for _, k := range known {
			if k == dir {
				continue next
			}
		}
		dirs = append(dirs, dir)
	}
	return dirs
}

// Stray is a group of which nothing is known but its cgroup. Its main process counts as ended.
func Stray(cgroup string) *Group {
	g := &Group{adopted: true, done: make(chan struct{}), exit: Exit{Code: -1}, tree: &cgroupTree{dir: cgroup}}
	close(g.done)
	return g
}
