package procs

import (
	"bytes"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// stat is what we need of /proc/PID/stat (proc(5)).
type stat struct {
	state                byte
	parent, session, pid int
}

func readStat(pid int) (stat, bool) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	i := bytes.LastIndexByte(b, ')') // the name before it may hold anything
	if err != nil || i < 0 {
		return stat{}, false
	}
	f := bytes.Fields(b[i+1:])
	if len(f) < 4 {
		return stat{}, false
	}
	parent, _ := strconv.Atoi(string(f[1]))
	session, _ := strconv.Atoi(string(f[3]))
	return stat{state: f[0][0], parent: parent, session: session, pid: pid}, true
}

func allStats() map[int]stat {
	all := map[int]stat{}
	d, err := os.Open("/proc")
	if err != nil {
		return all
	}
	defer d.Close()
	names, _ := d.Readdirnames(-1)
	for _, n := range names {
		if pid, err := strconv.Atoi(n); err == nil {
			if s, ok := readStat(pid); ok {
				all[pid] = s
			}
		}
	}
	return all
}

// sessionPids lists the living processes of main's session and its descendants in other sessions.
func sessionPids(main int) []int {
	all := allStats()
	var pids []int
	for pid, s := range all {
		if s.state != 'Z' && belongs(all, main, pid) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// belongs follows the parents upwards; a parent that has ended leaves its session as the only trace.
func belongs(all map[int]stat, main, pid int) bool {
	for range 64 { // deeper trees are cut: /proc changes while it is read
		s, ok := all[pid]
		switch {
		case !ok || pid <= 1:
			return false
		case pid == main || s.session == main:
			return true
		}
		pid = s.parent
	}
	return false
}

func descendsFrom(main, pid int) bool {
	for range 64 {
		s, ok := readStat(pid)
		switch {
		case !ok || pid <= 1:
			return false
		case pid == main || s.session == main:
			return true
		}
		pid = s.parent
	}
	return false
}

// reapOrphans reaps what ended in main's session as our child.
func reapOrphans(main int) {
	self := os.Getpid()
	for pid, s := range allStats() {
		if s.state == 'Z' && s.parent == self && s.session == main && pid != main {
			unix.Wait4(pid, nil, unix.WNOHANG, nil)
		}
	}
}

// ResidentBytes is the resident memory of one process, zero if it is gone (proc(5), statm).
func ResidentBytes(pid int) int64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	f := bytes.Fields(b)
	if err != nil || len(f) < 2 {
		return 0
	}
	pages, _ := strconv.ParseInt(string(f[1]), 10, 64)
	return pages * int64(os.Getpagesize())
}
