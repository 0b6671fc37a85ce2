package procs

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
)

// stat is what we need of /proc/PID/stat (proc(5)).
type stat struct {
	state           byte
	parent, session int
	started         uint64 // with the pid it names a process for ever
}

// alive is false for zombies: they hold nothing but their number.
func (s stat) alive() bool { return s.state != 'Z' && s.state != 'X' }

func readStat(pid int) (stat, bool) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return stat{}, false
	}
	return parseStat(b)
}

func parseStat(b []byte) (stat, bool) {
	i := bytes.LastIndexByte(b, ')') // the name before it may hold anything
	if i < 0 {
		return stat{}, false
	}
	f := bytes.Fields(b[i+1:])
	const state, parent, session, started = 0, 1, 3, 19 // proc(5) counts from 1 and begins two fields earlier
	if len(f) <= started {
		return stat{}, false
	}
	s := stat{state: f[state][0]}
	var errs [3]error
	s.parent, errs[0] = strconv.Atoi(string(f[parent]))
	s.session, errs[1] = strconv.Atoi(string(f[session]))
	s.started, errs[2] = strconv.ParseUint(string(f[started]), 10, 64)
	return s, errors.Join(errs[:]...) == nil
}

// allStats is one look at every process. It is not one instant: processes come and go while it is taken.
func allStats() map[int]stat {
	all := map[int]stat{}
	dir, err := os.Open("/proc")
	if err != nil {
		return all
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(-1)
	for _, n := range names {
		if pid, err := strconv.Atoi(n); err == nil {
			if s, ok := readStat(pid); ok {
				all[pid] = s
			}
		}
	}
	return all
}

// children are the child processes of ours, zombies included.
func children() []int {
	tasks, _ := os.ReadDir("/proc/self/task")
	var pids []int
	for _, t := range tasks {
		b, err := os.ReadFile("/proc/self/task/" + t.Name() + "/children")
		if errors.Is(err, os.ErrNotExist) { // a thread that ended, or a kernel without CONFIG_PROC_CHILDREN
			if _, err := os.Stat("/proc/self/task/" + strconv.Itoa(os.Getpid()) + "/children"); err != nil {
				return childrenByStat()
			}
		}
		for _, f := range bytes.Fields(b) {
			if pid, err := strconv.Atoi(string(f)); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

func childrenByStat() []int {
	var pids []int
	self := os.Getpid()
	for pid, s := range allStats() {
		if s.parent == self {
			pids = append(pids, pid)
		}
	}
	return pids
}

// hasEnv tells whether pid was executed with that entry in its environment.
func hasEnv(pid int, entry string) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	return err == nil && slices.ContainsFunc(bytes.Split(b, []byte{0}), func(e []byte) bool { return string(e) == entry })
}
