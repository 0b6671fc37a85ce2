package upgrade_test

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// throughFront upgrades by a signal to the process that stays.
func (l *lone) throughFront() {
	l.t.Helper()
	serves, from := l.readPID(), l.out.len()
	l.signal(l.cmd.Process.Pid, syscall.SIGHUP)
	l.await("another pid", func() bool { return l.readPID() != serves })
	l.out.awaitFrom(l.t, from, "upgrade: pid .* follows")
}

// ended is the exit status of the process that was started; a signal is 128 and its number.
func (l *lone) endedWith() int {
	l.t.Helper()
	select {
	case <-l.waited:
	case <-time.After(time.Minute):
		l.t.Fatalf("the first process does not end:\n%s", l.out)
	}
	var exit *exec.ExitError
	if !errors.As(l.waitErr, &exit) {
		return 0
	}
	status := exit.Sys().(syscall.WaitStatus)
	if status.Signaled() {
		return 128 + int(status.Signal())
	}
	return status.ExitStatus()
}

// container is a namespace in which the process that is started is process 1.
func container() *syscall.SysProcAttr {
	a := &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID}
	if os.Geteuid() != 0 {
		a.Cloneflags |= syscall.CLONE_NEWUSER
		a.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		a.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	return a
}

func TestFront_KeepsThePid(t *testing.T) {
	l := startLone(t, "WSLIVE_KEEP_PID=1")
	d := l.load(50, 20)
	for range 5 {
		l.throughFront()
	}
	l.beat(d)
	l.unnoticed(d)
	l.signal(l.cmd.Process.Pid, syscall.SIGTERM)
	if status := l.endedWith(); status != 0 {
		t.Errorf("status %d", status)
	}
	<-l.out.ended
}

func TestFront_EndsAsTheAppDoes(t *testing.T) {
	l := startLone(t, "WSLIVE_KEEP_PID=1")
	l.throughFront()
	l.signal(l.readPID(), syscall.SIGKILL)
	if status := l.endedWith(); status != 128+9 && status != 1 { // 1: the process before it is not quite gone, and knows more
		t.Errorf("status %d", status)
	}
}

// The old process, which is the parent of the new one, still has a request when the new one crashes.
func TestFront_EndsAsTheAppDoes_WhileAnOldProcessDrains(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM} {
		t.Run(sig.String(), func(t *testing.T) {
			l := startLone(t, "WSLIVE_KEEP_PID=1")
			if sig == syscall.SIGKILL {
				l.events()
				l.throughFront()
				l.signal(l.readPID(), sig)
				if status := l.endedWith(); status != 1 {
					t.Errorf("status %d", status)
				}
				if strings.Contains(l.out.String(), "has nothing left") {
					t.Error("it has waited for the old process")
				}
				return
			}
			c := l.slow(5 * time.Second)
			l.throughFront()
			l.signal(l.cmd.Process.Pid, sig)
			if b, err := io.ReadAll(c); err != nil || !strings.Contains(string(b), "slow but there") {
				t.Errorf("the request got %q, %v", b, err)
			}
			if status := l.endedWith(); status != 0 {
				t.Errorf("status %d", status)
			}
		})
	}
}

func TestFront_IsKilled_AppDrains(t *testing.T) {
	l := startLone(t, "WSLIVE_KEEP_PID=1")
	l.throughFront()
	l.signal(l.cmd.Process.Pid, syscall.SIGKILL)
	l.out.await(t, "is gone: ending")
	<-l.out.ended
}

func TestFront_UpgradeFails_OldGoesOn(t *testing.T) {
	l := startLone(t, "WSLIVE_KEEP_PID=1")
	d := l.load(20, 20)
	l.suffer("take.offer=kill")
	from := l.out.len()
	l.signal(l.cmd.Process.Pid, syscall.SIGHUP)
	l.out.awaitFrom(t, from, "upgrade failed")
	l.suffer("")
	l.throughFront()
	l.beat(d)
	l.unnoticed(d)
}

// As process 1 of a container, where the end of the first process is the end of all.
func TestFront_InAContainer(t *testing.T) {
	probe := exec.Command("true")
	probe.SysProcAttr = container()
	if err := probe.Run(); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("CI must not skip: no namespaces here: %v", err)
		}
		fmt.Fprintf(os.Stderr, "##### SKIPPED, NOT TESTED: %s: no namespaces here: %v #####\n", t.Name(), err)
		t.Skip(err)
	}
	l := startLone(t, "CONTAINER=1")
	if pid := l.readPID(); pid == 1 {
		t.Fatal("process 1 serves by itself")
	}
	d := l.load(50, 20)
	for range 5 {
		l.throughFront()
	}
	l.beat(d)
	l.unnoticed(d)
	l.signal(l.cmd.Process.Pid, syscall.SIGTERM)
	if status := l.endedWith(); status != 0 {
		t.Errorf("status %d", status)
	}
	if strings.Contains(l.out.String(), "upgrade failed") {
		t.Error("an upgrade failed")
	}
}
