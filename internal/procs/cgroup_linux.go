package procs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// delegated is our own cgroup's directory if it was given to us to divide, else empty.
var delegated = sync.OnceValue(func() string {
	dir, err := ownCgroup()
	if err != nil || !isDelegated(dir) {
		return ""
	}
	return dir
})

// ownCgroup finds the directory of our cgroup in the unified hierarchy (cgroups(7), proc(5)).
func ownCgroup() (string, error) {
	b, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", err
	}
	path := ""
	for line := range strings.Lines(string(b)) {
		if p, ok := strings.CutPrefix(line, "0::"); ok {
			path = strings.TrimSpace(p)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(mounts)) {
		f := strings.Fields(line)
		before, after, ok := strings.Cut(line, " - ")
		if !ok || !strings.HasPrefix(after, "cgroup2 ") || len(strings.Fields(before)) < 5 {
			continue
		}
		root, point := f[3], f[4]
		if rel, err := filepath.Rel(root, path); path != "" && err == nil && !strings.HasPrefix(rel, "..") {
			return filepath.Join(point, rel), nil
		}
	}
	return "", errors.New("no unified cgroup hierarchy")
}

// isDelegated: systemd marks what it delegates by an attribute, and gives it to the unit's user.
func isDelegated(dir string) bool {
	var v [8]byte
	for _, attr := range []string{"user.delegate", "trusted.delegate"} {
		if n, err := unix.Getxattr(dir, attr, v[:]); err == nil && string(v[:n]) == "1" {
			return unix.Access(dir, unix.W_OK) == nil
		}
	}
	var st unix.Stat_t
	return os.Getuid() != 0 && unix.Stat(dir, &st) == nil && int(st.Uid) == os.Getuid() && unix.Access(dir, unix.W_OK) == nil
}

// makeCgroup returns the directory of a new cgroup, or nothing where none is delegated to us.
func makeCgroup(name string) (string, error) {
	own := delegated()
	if own == "" {
		return "", nil
	}
	dir := filepath.Join(own, name)
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return "", fmt.Errorf("make a cgroup: %w", err)
	}
	return dir, nil
}

// cgroupPids lists the processes of dir and of what the app made below it.
func cgroupPids(dir string) []int {
	var pids []int
	filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return nil // it was removed meanwhile
		}
		b, _ := os.ReadFile(filepath.Join(path, "cgroup.procs"))
		for _, f := range strings.Fields(string(b)) {
			if pid, err := strconv.Atoi(f); err == nil && pid > 0 {
				pids = append(pids, pid)
			}
		}
		return nil
	})
	return pids
}

func inCgroup(dir string, pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return false
	}
	name := "/" + filepath.Base(dir)
	for line := range strings.Lines(string(b)) {
		if p, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			return strings.HasSuffix(p, name) || strings.Contains(p, name+"/")
		}
	}
	return false
}

// removeCgroup removes dir and what the app made below it, the deepest first. They must be empty of processes.
func removeCgroup(dir string) error {
	var dirs []string
	filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return nil
	})
	for i := len(dirs) - 1; i >= 0; i-- {
		if err := unix.Rmdir(dirs[i]); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("remove cgroup %s: %w", dirs[i], err)
		}
	}
	return nil
}
