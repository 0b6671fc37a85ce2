package procs

import (
	"context"
	"crypto/rand"
	"os"
	"os/signal"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// sessionTree finds the processes of a group without a cgroup: all of the main process's session, their descendants, and
// orphans that left the session (daemons). Orphans become our children, since we are a child subreaper; which group they
// come from is told by a mark in the environment they were executed with. One that wiped it and left the session before
// anybody looked belongs to nobody and lives on.
type sessionTree struct {
	mark   string       // an entry of the environment, of this group only
	leader atomic.Int64 // the main process; 0 before and after

	adopted uint64 // when the main process started, if it was not us who started it: its orphans do not come to us, and once it has ended its number may be anybody's

	mu   sync.Mutex     // protects seen
	seen map[int]uint64 // members at the last look, with their start times: known even when they left the session
}

const markName = "HOTDEPLOY_GROUP="

func newSession() (*sessionTree, error) {
	if err := adoptOrphans(); err != nil {
		return nil, err
	}
	return &sessionTree{mark: markName + rand.Text()}, nil
}

func (t *sessionTree) env(env []string) []string { return append(env, t.mark) }
func (t *sessionTree) born(pid int)              { t.leader.Store(int64(pid)) }
func (t *sessionTree) cgroup() string            { return "" }
func (t *sessionTree) remove() error             { return nil }
func (t *sessionTree) record(r *Record)          { r.Mark = strings.TrimPrefix(t.mark, markName) }

func (t *sessionTree) pids() []int {
	all := allStats()
	get := func(pid int) (stat, bool) { s, ok := all[pid]; return s, ok }
	var pids []int
	now := map[int]uint64{}
	for pid, s := range all {
		if s.alive() && t.owns(get, pid) {
			pids = append(pids, pid)
			now[pid] = s.started
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.seen = now
	return pids
}

func (t *sessionTree) contains(pid int) bool {
	s, ok := readStat(pid)
	return ok && s.alive() && t.owns(readStat, pid)
}

// owns goes from pid upwards until it comes to somebody who is known.
func (t *sessionTree) owns(get func(int) (stat, bool), pid int) bool {
	leader, self, start := int(t.leader.Load()), os.Getpid(), pid
	const deep = 1000 // parents that change while we look could lead in a circle
	for range deep {
		s, ok := get(pid)
		switch {
		case leader == 0 || pid == self || pid <= 0: // init is nobody's child
			return t.adopted != 0 && leader != 0 && start != self && hasEnv(start, t.mark)
		case !ok && pid == start:
			return false
		case !ok: // this parent has just ended: look anew whose child it is now
			get, pid = readStat, start
			continue
		case s.session == leader && t.led(get, pid), t.knows(pid, s):
			return true
		case s.parent == self:
			return hasEnv(pid, t.mark)
		}
		pid = s.parent
	}
	return false
}

// led tells whether pid, whose session has the leader's number, is of the leader's session: its number means nobody else while it
// lives, or while it is our zombie.
func (t *sessionTree) led(get func(int) (stat, bool), pid int) bool {
	if t.adopted == 0 {
		return true
	}
	s, ok := get(int(t.leader.Load()))
	return ok && s.started == t.adopted || hasEnv(pid, t.mark)
}

func (t *sessionTree) knows(pid int, s stat) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	started, ok := t.seen[pid]
	return ok && started == s.started
}

// kill begins with the process group, at once and without a gap; what is in other ones follows in rounds.
func (t *sessionTree) kill(ctx context.Context) error {
	if leader := int(t.leader.Load()); leader > 0 && t.adopted == 0 {
		unix.Kill(-leader, unix.SIGKILL)
	}
	return killRounds(ctx, t)
}

func (t *sessionTree) empty(ctx context.Context) error {
	for {
		pids := t.pids()
		if len(pids) == 0 {
			return nil
		}
		for _, pid := range pids {
			if err := awaitMember(ctx, t, pid); err != nil {
				return err
			}
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
}

// adoptOrphans makes us the one to whom orphaned descendants go, once and for the life of the program.
var adoptOrphans = sync.OnceValue(func() error {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return os.NewSyscallError("prctl", err)
	}
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGCHLD)
	go func() { // ends with the program, as being a subreaper does
		for range ended {
			reapOrphans()
		}
	}()
	return nil
})

// reapOrphans reaps adopted children that have ended. Those in our own session were started by others in this program, who
// wait for them; main processes of groups are reaped by Remove.
func reapOrphans() {
	ours, _ := unix.Getsid(0)
	groups.Lock()
	defer groups.Unlock()
	for _, pid := range children() {
		s, ok := readStat(pid)
		if ok && !s.alive() && s.session != ours && groups.living[pid] == nil {
			unix.Wait4(pid, nil, unix.WNOHANG, nil)
		}
	}
}
