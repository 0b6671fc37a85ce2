package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// Machine is one throw-away Linux machine. Its disk, its name and its address outlive stops,
// reboots and power cuts; so do its Rate, Link and LimitDisk.
type Machine struct {
	Name string // vm1: its host name, and its name in the lab's ssh_config
	IP   string

	lab     *Lab
	dir     string
	entered atomic.Uint64 // commands so far; names their cgroups
}

// ErrDown: the machine is not running.
var ErrDown = errors.New("machine is down")

func newMachine(l *Lab, i int) *Machine {
	name := "vm" + strconv.Itoa(i)
	return &Machine{
		Name: name,
		IP:   l.slot.subnet() + "." + strconv.Itoa(10+i), // lab.sh counts the same way
		lab:  l,
		dir:  filepath.Join(l.slot.dir, "vms", name),
	}
}

// Addr is IP:port.
func (m *Machine) Addr(port int) string { return m.IP + ":" + strconv.Itoa(port) }

// Run runs a shell command as root through ssh and returns its standard output. The error
// wraps *exec.ExitError and ends with standard error. A power cut makes the line silent, as in
// life; Run then gives up after some ten seconds, sooner if ctx ends.
func (m *Machine) Run(ctx context.Context, cmd string) (string, error) {
	return m.output(m.lab.Command(ctx, "ssh", "-F", m.lab.SSHConfig(),
		"-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes", "-o", "LogLevel=ERROR",
		"-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=2", "-o", "ConnectTimeout=10",
		m.Name, cmd), cmd)
}

// Enter runs a shell command as root without ssh, in some 10 ms instead of 200, and returns its
// standard output. The error wraps *exec.ExitError and ends with standard error, or is ErrDown.
func (m *Machine) Enter(ctx context.Context, cmd string) (string, error) {
	c, err := m.EnterCommand(ctx, "/bin/sh", "-c", cmd)
	if err != nil {
		return "", err
	}
	return m.output(c, cmd)
}

// EnterCommand is exec.CommandContext for a command that runs as root in the machine without
// ssh. The end of ctx kills it with all that it started, and so does a stop or crash of the
// machine; Process.Kill does not, it ends only nsenter. ErrDown if the machine is not running.
func (m *Machine) EnterCommand(ctx context.Context, name string, args ...string) (*exec.Cmd, error) {
	pid := m.initPID()
	if pid == "" {
		return nil, fmt.Errorf("%s: %w", m.Name, ErrDown)
	}
	// The command joins a cgroup of the machine first, so that it dies at a crash like all else.
	const join = `mkdir -p "$1" && echo 0 >"$1/cgroup.procs" && shift && exec "$@"`
	group := filepath.Join(m.lab.cgroup, m.Name, "lab.enter", strconv.FormatUint(m.entered.Add(1), 10))
	c := exec.CommandContext(ctx, "/bin/sh", append([]string{"-c", join, "sh", group,
		"nsenter", "-t", pid, "-a", "--", name}, args...)...)
	c.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "USER=root", "LANG=C.UTF-8"}
	c.Cancel = func() error {
		if err := os.WriteFile(filepath.Join(group, "cgroup.kill"), []byte("1"), 0); err != nil {
			return c.Process.Kill() // it has not joined yet
		}
		return nil
	}
	c.WaitDelay = 5 * time.Second
	return c, nil
}

// initPID is the host's pid of the machine's systemd, empty if there is none.
func (m *Machine) initPID() string {
	procs, err := os.ReadFile(filepath.Join(m.lab.cgroup, m.Name, "init.scope", "cgroup.procs"))
	if err != nil {
		return ""
	}
	pid, _, _ := strings.Cut(string(procs), "\n")
	return pid
}

func (m *Machine) output(c *exec.Cmd, what string) (string, error) {
	out, err := output(c)
	if err != nil {
		return out, fmt.Errorf("%s: %s: %w", m.Name, what, err)
	}
	return out, nil
}

// output is Cmd.Output with standard error in the error.
func output(c *exec.Cmd) (string, error) {
	var stdout, stderr bytes.Buffer
	c.Stdout, c.Stderr = &stdout, &stderr
	err := c.Run()
	if text := strings.TrimSpace(stderr.String()); err != nil && text != "" {
		err = fmt.Errorf("%w: %s", err, text)
	}
	return stdout.String(), err
}

// Reboot restarts the machine in order and waits until it is up and quiet again.
func (m *Machine) Reboot(ctx context.Context) error { return m.power(ctx, "reboot") }

// Start boots a machine that was stopped or crashed, from its disk, and waits until it is up
// and quiet.
func (m *Machine) Start(ctx context.Context) error { return m.power(ctx, "start") }

func (m *Machine) power(ctx context.Context, verb string) error {
	if _, err := m.lab.sh(ctx, verb, m.Name); err != nil {
		return err
	}
	return m.settle(ctx)
}

// Stop powers the machine off in order.
func (m *Machine) Stop(ctx context.Context) error {
	_, err := m.lab.sh(ctx, "stop", m.Name)
	return err
}

// Crash is a power cut: the line goes silent (peers get neither FIN nor RST), every process of
// the machine dies at once, the disk is kept. It may come in the middle of anything that other
// goroutines do with the machine; an Enter under way fails at once.
func (m *Machine) Crash(ctx context.Context) error {
	_, err := m.lab.sh(ctx, "crash", m.Name)
	return err
}

// settle waits until systemd has no more start jobs. That a unit failed is no error here: after
// a crash that is for the test to judge.
func (m *Machine) settle(ctx context.Context) error {
	state, err := m.Enter(ctx, "systemctl is-system-running --wait")
	switch strings.TrimSpace(state) {
	case "running", "degraded":
		return nil
	}
	return fmt.Errorf("%s is not up: system state %q: %w", m.Name, strings.TrimSpace(state), err)
}

// WriteFile writes a file in the machine, with missing parents. It is not atomic and not synced.
func (m *Machine) WriteFile(ctx context.Context, path string, data []byte, mode fs.FileMode) error {
	c, err := m.EnterCommand(ctx, "install", "-D", "-m", fmt.Sprintf("%o", mode.Perm()), "/dev/stdin", path)
	if err != nil {
		return err
	}
	c.Stdin = bytes.NewReader(data)
	_, err = m.output(c, "write "+path)
	return err
}

// ReadFile returns the contents of a file in the machine.
func (m *Machine) ReadFile(ctx context.Context, path string) ([]byte, error) {
	c, err := m.EnterCommand(ctx, "cat", "--", path)
	if err != nil {
		return nil, err
	}
	out, err := m.output(c, "read "+path)
	return []byte(out), err
}

// LimitDisk puts an empty file system of a given size ("64m") at path. The machine is restarted
// for it if it runs. What is written there survives stops and crashes, as on any disk.
func (m *Machine) LimitDisk(ctx context.Context, path, size string) error {
	up := m.initPID() != ""
	if up {
		if err := m.Stop(ctx); err != nil {
			return err
		}
	}
	if _, err := m.lab.sh(ctx, "disk", m.Name, path, size); err != nil {
		return err
	}
	if !up {
		return nil
	}
	return m.Start(ctx)
}

// Rate limits the line in both directions, to "10mbit" for example; "off" ends it.
func (m *Machine) Rate(ctx context.Context, rate string) error {
	_, err := m.lab.sh(ctx, "rate", m.Name, rate)
	return err
}

// Link is what a line does to what passes, in each direction. The zero Link is a plain line.
type Link struct {
	Delay  time.Duration // each way: half of the round trip
	Jitter time.Duration // extra delay between zero and this; the order is kept
	Loss   float64       // percent
}

// Link changes the machine's line; connections live on.
func (m *Machine) Link(ctx context.Context, l Link) error {
	args := []string{"link", m.Name, l.Delay.String(), strconv.FormatFloat(l.Loss, 'f', -1, 64), l.Jitter.String()}
	if l == (Link{}) {
		args = []string{"link", m.Name, "off"}
	}
	_, err := m.lab.sh(ctx, args...)
	return err
}

// ForbidSocketForwarding makes the machine's sshd refuse to forward connections to unix sockets
// (or allow it again). Sessions that are open stay.
func (m *Machine) ForbidSocketForwarding(ctx context.Context, forbid bool) error {
	value := map[bool]string{true: "no", false: "yes"}[forbid]
	_, err := m.Enter(ctx, "echo AllowStreamLocalForwarding "+value+" >/etc/ssh/sshd_config.d/forwarding.conf && systemctl restart ssh")
	return err
}
