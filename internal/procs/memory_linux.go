package procs

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
)

// RSS is the resident memory of the tree in bytes, 0 if it is gone. What several processes share counts once, by the kernel's
// proportional share where it tells; else what is their own is summed up, with the largest shared part of any of them.
func (g *Group) RSS() int64 {
	pids := g.Pids()
	if len(pids) == 1 {
		return ResidentBytes(pids[0])
	}
	if n, ok := proportional(pids); ok {
		return n
	}
	var own, shared int64
	for _, pid := range pids {
		all, s := statm(pid)
		own, shared = own+all-s, max(shared, s)
	}
	return own + shared
}

// proportional is the sum of Pss. It walks page tables, some milliseconds for each GB, so a single process is spared it.
func proportional(pids []int) (sum int64, ok bool) {
	for _, pid := range pids {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if os.IsNotExist(err) {
			continue // ended
		}
		_, after, found := bytes.Cut(b, []byte("\nPss:"))
		f := bytes.Fields(after)
		if err != nil || !found || len(f) == 0 {
			return 0, false
		}
		kib, _ := strconv.ParseInt(string(f[0]), 10, 64)
		sum += kib << 10
	}
	return sum, true
}

// ResidentBytes is the resident memory of one process, 0 if it is gone.
func ResidentBytes(pid int) int64 {
	all, _ := statm(pid)
	return all
}

// statm is all and shared resident memory of a process in bytes (proc(5)).
func statm(pid int) (all, shared int64) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	f := bytes.Fields(b)
	if err != nil || len(f) < 3 {
		return 0, 0
	}
	resident, _ := strconv.ParseInt(string(f[1]), 10, 64)
	file, _ := strconv.ParseInt(string(f[2]), 10, 64)
	page := int64(os.Getpagesize())
	return resident * page, file * page
}
