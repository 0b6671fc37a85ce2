package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// asInit lets the daemon be process 1 of a container: no systemd, no cgroup of its own, and every orphan is its child.
func (d *theDaemon) asInit() {
	d.t.Helper()
	exe, err := os.Executable()
	if err != nil {
		d.t.Fatal(err)
	}
	args := append([]string{"-c", `mount -t proc proc /proc && exec "$0" "$@"`, exe}, d.cmd.Args[1:]...)
	env := d.cmd.Env
	d.cmd = exec.Command("sh", args...)
	d.cmd.Env = env
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS}
	if os.Geteuid() != 0 {
		d.cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		d.cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		d.cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	probe := exec.Command("true")
	probe.SysProcAttr = d.cmd.SysProcAttr
	if err := probe.Run(); err != nil {
		if os.Getenv("CI") == "true" {
			d.t.Fatalf("CI must not skip: no namespaces here: %v", err)
		}
		fmt.Fprintf(os.Stderr, "##### SKIPPED, NOT TESTED: %s: no namespaces here: %v #####\n", d.t.Name(), err)
		d.t.Skip(err)
	}
}

// zombies are the children of a process that nobody has reaped.
func zombies(t *testing.T, pid int) (n int) {
	t.Helper()
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil || len(tasks) == 0 {
		t.Fatalf("the children of %d: %v", pid, err)
	}
	for _, task := range tasks {
		b, _ := os.ReadFile(task)
		for _, child := range strings.Fields(string(b)) {
			stat, _ := os.ReadFile("/proc/" + child + "/stat")
			if _, after, ok := strings.Cut(string(stat), ") "); ok && strings.HasPrefix(after, "Z") {
				n++
			}
		}
	}
	return n
}

func TestRun_AsProcessOneOfAContainer(t *testing.T) {
	d := newDaemon(t)
	d.asInit()
	d.start()
	done := filepath.Join(d.dir, "done")
	d.push("1", `i=0
while [ $i -lt 40 ]; do (sleep 0.01 &); (setsid sleep 0.01 &); i=$((i+1)); done
touch `+done+`
exec sleep 100`)
	for { // nothing tells of it
		if _, err := os.Stat(done); err == nil {
			break
		}
		<-time.After(5 * time.Millisecond)
	}
	left := zombies(t, d.cmd.Process.Pid)
	for limit := time.Now().Add(10 * time.Second); left > 0 && time.Now().Before(limit); left = zombies(t, d.cmd.Process.Pid) {
		<-time.After(10 * time.Millisecond)
	}
	if left > 0 {
		t.Errorf("%d orphans of the app were not reaped", left)
	}
	st, err := d.client.Status(t.Context())
	if err != nil || st.Daemon.PID != 1 || st.Daemon.Systemd || len(st.Generations) != 1 || st.Generations[0].RSS <= 0 {
		t.Errorf("%+v, %v", st, err)
	}
	if err := d.stop(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Error(err)
	}
}
