package procs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// cgroupTree finds the processes of a group in its own cgroup (cgroups(7)): nothing that they do takes them out of it, but
// moving themselves on purpose.
type cgroupTree struct{ dir string }

func (t *cgroupTree) env(env []string) []string { return env }
func (t *cgroupTree) born(int)                  {}
func (t *cgroupTree) cgroup() string            { return t.dir }
func (t *cgroupTree) remove() error             { return removeCgroup(t.dir) }
func (t *cgroupTree) record(r *Record)          { r.Cgroup = t.dir }

// pids are those of the cgroup and of what the app made below it. The kernel does not list zombies.
func (t *cgroupTree) pids() []int {
	var pids []int
	filepath.WalkDir(t.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return nil // it was removed meanwhile
		}
		b, _ := os.ReadFile(filepath.Join(path, "cgroup.procs"))
		for _, f := range bytes.Fields(b) {
			if pid, err := strconv.Atoi(string(f)); err == nil && pid > 0 {
				pids = append(pids, pid)
			}
		}
		return nil
	})
	return pids
}

func (t *cgroupTree) contains(pid int) bool {
	dir, err := cgroupOf(strconv.Itoa(pid))
	if err != nil || (dir != t.dir && !strings.HasPrefix(dir, t.dir+"/")) {
		return false
	}
	s, ok := readStat(pid)
	return ok && s.alive()
}

// kill is one write that no fork escapes, from Linux 5.14 on.
func (t *cgroupTree) kill(ctx context.Context) error {
	err := writeControl(filepath.Join(t.dir, "cgroup.kill"), "1")
	if errors.Is(err, os.ErrNotExist) {
		return killRounds(ctx, t) // an older kernel, or removed already
	}
	return err
}

// writeControl is os.WriteFile without O_CREATE, which makes another error of a missing file.
func writeControl(path, value string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteString(value)
	return err
}

// empty waits for the kernel to say so: it changes cgroup.events when the last process, also of a cgroup below, is gone.
func (t *cgroupTree) empty(ctx context.Context) error {
	events := filepath.Join(t.dir, "cgroup.events")
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return os.NewSyscallError("inotify_init", err)
	}
	f := os.NewFile(uintptr(fd), "inotify")
	defer f.Close()
	if _, err := unix.InotifyAddWatch(fd, events, unix.IN_MODIFY); errors.Is(err, os.ErrNotExist) {
		return nil // removed
	} else if err != nil {
		return os.NewSyscallError("inotify_add_watch", err)
	}
	stop := context.AfterFunc(ctx, func() { f.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	var event [4096]byte
	for {
		b, err := os.ReadFile(events)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENODEV) || bytes.Contains(b, []byte("populated 0")) {
			return nil
		}
		if err != nil { // no descriptor is left, say: what would be waited for may have been
			return err
		}
		if _, err := f.Read(event[:]); err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return err
		}
	}
}

// newCgroup makes the directory of a group's cgroup.
func newCgroup(spec Spec) (string, error) {
	parent := spec.Cgroup
	switch parent {
	case NoCgroup:
		return "", errors.New("no cgroup is wanted")
	case "":
		var err error
		if parent, err = Delegated(); err != nil {
			return "", err
		}
	}
	name := spec.Name
	if name == "" {
		name = "group"
	}
	const most = 1000
	dir := filepath.Join(parent, name)
	for i := 1; i < most; i++ {
		err := os.Mkdir(dir, 0o755)
		if !errors.Is(err, os.ErrExist) {
			return dir, err
		}
		if unix.Rmdir(dir) == nil { // an earlier supervisor's, and nobody is in it
			continue
		}
		dir = filepath.Join(parent, fmt.Sprintf("%s.%d", name, i))
	}
	return "", fmt.Errorf("make a cgroup %s: there are too many of that name", name)
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
		if err := rmdirCgroup(dirs[i]); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("remove the cgroup %s: %w", dirs[i], err)
		}
	}
	return nil
}

// rmdirCgroup waits for the kernel where it needs a moment after the last process ended: it can be told to be gone before
// the cgroup has been told.
func rmdirCgroup(dir string) error {
	err := unix.Rmdir(dir)
	if err != unix.EBUSY {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := (&cgroupTree{dir: dir}).empty(ctx); err != nil {
		return err
	}
	return unix.Rmdir(dir)
}

// OwnCgroup is the directory of this process's cgroup.
func OwnCgroup() (string, error) { return cgroupOf("self") }

// Delegated is the cgroup directory that was given to us to divide, or an error that tells why there is none. It is found once.
func Delegated() (string, error) { return delegated() }

var delegated = sync.OnceValues(func() (string, error) {
	dir, err := cgroupOf("self")
	if err != nil {
		return "", err
	}
	if err := unix.Access(filepath.Join(dir, "cgroup.events"), unix.R_OK); err != nil {
		return "", fmt.Errorf("%s is the root of all cgroups", dir)
	}
	for _, path := range []string{dir, filepath.Join(dir, "cgroup.procs")} {
		if err := unix.Access(path, unix.W_OK); err != nil {
			return "", fmt.Errorf("no cgroup is delegated to us (Delegate=yes): %s: %w", path, err)
		}
	}
	if os.Geteuid() == 0 && !marked(dir) {
		return "", fmt.Errorf("no cgroup is delegated to us (Delegate=yes): %s is not marked as such", dir)
	}
	return dir, nil
})

// marked: root may write everywhere, so for root it takes the mark that systemd puts on what it delegates.
func marked(dir string) bool {
	var v [8]byte
	for _, attr := range []string{"user.delegate", "trusted.delegate"} {
		if n, err := unix.Getxattr(dir, attr, v[:]); err == nil && string(v[:n]) == "1" {
			return true
		}
	}
	return false
}

// cgroupOf finds the directory of a process's cgroup in the unified hierarchy. process is a pid or "self".
func cgroupOf(process string) (string, error) {
	b, err := os.ReadFile("/proc/" + process + "/cgroup")
	if err != nil {
		return "", err
	}
	mounts, err := cgroupMounts()
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(b)) {
		if path, ok := strings.CutPrefix(strings.TrimRight(line, "\n"), "0::"); ok {
			return mounts.dir(path)
		}
	}
	return "", errors.New("this machine has no unified cgroup hierarchy (cgroup2)")
}

// cgroupMount is where a part of the hierarchy is mounted.
type cgroupMount struct{ root, point string }

type cgroupMountList []cgroupMount

func (l cgroupMountList) dir(path string) (string, error) {
	for _, m := range l {
		if rel, err := filepath.Rel(m.root, path); err == nil && rel != ".." && !strings.HasPrefix(rel, "../") {
			return filepath.Join(m.point, rel), nil
		}
	}
	return "", fmt.Errorf("the cgroup %s is not mounted here", path)
}

// cgroupMounts are this process's; they do not change while it runs.
var cgroupMounts = sync.OnceValues(func() (cgroupMountList, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	return parseMounts(string(b)), err
})

// parseMounts finds the cgroup2 mounts in mountinfo (proc(5)).
func parseMounts(mountinfo string) cgroupMountList {
	var l cgroupMountList
	for line := range strings.Lines(mountinfo) {
		mount, source, ok := strings.Cut(line, " - ")
		f := strings.Fields(mount)
		if ok && strings.HasPrefix(source, "cgroup2 ") && len(f) >= 5 {
			l = append(l, cgroupMount{root: unescape(f[3]), point: unescape(f[4])})
		}
	}
	return l
}

// unescape: mountinfo writes space, tab, newline and backslash in octal.
var unescape = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace
