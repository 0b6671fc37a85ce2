package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// patience bounds what a lab does on its own behalf: building the base image includes a download.
const patience = 5 * time.Minute

// Lab is a network of machines. Its methods may be called from several goroutines.
type Lab struct {
	Machines []*Machine // vm1, vm2, …

	script string
	slot   *slot
	guard  *exec.Cmd
	ns     *namespace
	cgroup string

	closing sync.Once
	closed  error
}

// New opens a lab for one test and closes it with the test. If the test failed, the end of
// each machine's journal and console is logged first. See Need for where no lab can run.
func New(t testing.TB, n int) *Lab {
	t.Helper()
	Need(t)
	l, err := Open(t.Context(), n)
	if err != nil {
		t.Fatalf("open a lab of %d machines: %v", n, err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Errorf("close the lab: %v", err)
		}
	})
	l.ReportTo(t)
	return l
}

// Open boots n machines and returns when all of them are up and quiet. For TestMain, where
// several tests share a lab; a test that wants its own takes New. The caller closes the lab;
// if the process dies first, the lab is destroyed all the same.
func Open(ctx context.Context, n int) (*Lab, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	script, err := findScript()
	if err != nil {
		return nil, err
	}
	s, err := takeSlot(ctx, script)
	if err != nil {
		return nil, err
	}
	l := &Lab{script: script, slot: s}
	if err := l.boot(ctx, n); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

func (l *Lab) boot(ctx context.Context, n int) error {
	// The base image may have to bring flock first, which the guard needs.
	if _, err := l.sh(ctx, "base"); err != nil {
		return err
	}
	var err error
	if l.guard, err = l.slot.guard(l.script); err != nil {
		return err
	}
	if _, err := l.sh(ctx, "up", fmt.Sprint(n)); err != nil {
		return err
	}
	if l.cgroup, err = l.sh(ctx, "cgroup"); err != nil {
		return err
	}
	if l.ns, err = enterNamespace("/run/netns/" + l.slot.net()); err != nil {
		return err
	}
	for i := 1; i <= n; i++ {
		l.Machines = append(l.Machines, newMachine(l, i))
	}
	if err := l.writeSSHConfig(); err != nil {
		return err
	}
	for _, m := range l.Machines {
		if err := m.settle(ctx); err != nil {
			return err
		}
	}
	return nil
}

// Close ends all machines at once and forgets their disks. It may be called more than once.
func (l *Lab) Close() error {
	l.closing.Do(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if l.ns != nil {
			l.ns.leave()
		}
		if l.guard != nil {
			_ = l.guard.Process.Kill()
			_ = l.guard.Wait()
		}
		l.closed = errors.Join(l.slot.destroy(ctx, l.script), l.slot.lock.Close())
	})
	return l.closed
}

// Machine returns vm<i>; the first is 1.
func (l *Lab) Machine(i int) *Machine { return l.Machines[i-1] }

// HostIP is where the machines reach a server that the test process opened with Listen.
func (l *Lab) HostIP() string { return l.slot.subnet() + ".1" }

// Dir is the lab's own directory on this host; it vanishes with the lab.
func (l *Lab) Dir() string { return l.slot.dir }

// Command is exec.CommandContext for a command that runs on this host but in the lab's network.
func (l *Lab) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	// nsenter becomes the command: same pid, same signals.
	cmd := exec.CommandContext(ctx, "nsenter", append([]string{"--net=" + l.ns.path, "--", name}, args...)...)
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// sh runs a verb of lab.sh for this lab and returns its standard output without the last newline.
func (l *Lab) sh(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, l.script, args...)
	cmd.Env = l.slot.environ()
	cmd.WaitDelay = 5 * time.Second
	out, err := output(cmd)
	if err != nil {
		return "", fmt.Errorf("lab.sh %s: %w", strings.Join(args, " "), err)
	}
	return strings.TrimSuffix(out, "\n"), nil
}

// findScript looks for lab.sh in the module that the working directory belongs to: tests start
// in their package's directory.
func findScript() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for d := dir; ; d = filepath.Dir(d) {
		if _, err := os.Stat(filepath.Join(d, "go.mod")); err == nil {
			path := filepath.Join(d, "testdata", "lab", "lab.sh")
			_, err := os.Stat(path)
			return path, err
		}
		if d == filepath.Dir(d) {
			return "", fmt.Errorf("no go.mod above %s: a lab is run from inside the source tree", dir)
		}
	}
}
