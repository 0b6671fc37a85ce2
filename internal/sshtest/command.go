package sshtest

import (
	"io"
	"os"
	"os/exec"
	"sync"
	"syscall"

	"golang.org/x/crypto/ssh"
)

// command is one sh -c, leader of its own process group.
type command struct {
	cmd            *exec.Cmd
	stdin          io.WriteCloser
	stdout, stderr io.ReadCloser

	mu     sync.Mutex // protects reaped: a pid that was waited for is no longer ours
	reaped bool
}

// startCommand starts the command with the channel as its streams.
func (s *Server) startCommand(ch ssh.Channel, line string) (*command, bool) {
	s.log("exec: %s", line)
	c, err := newCommand(line, s.opts)
	if err != nil {
		s.log("exec: %v", err)
		return nil, false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, false
	}
	if err := c.cmd.Start(); err != nil {
		s.log("exec: %v", err)
		return nil, false
	}
	s.cmds[c] = true
	go func() { // ends with the channel, or when the command is gone
		io.Copy(c.stdin, ch)
		c.stdin.Close()
	}()
	return c, true
}

func newCommand(line string, opts Options) (*command, error) {
	cmd := exec.Command("/bin/sh", "-c", line)
	cmd.Dir = opts.Dir
	cmd.Env = append(os.Environ(), opts.Env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	c := &command{cmd: cmd}
	var err error
	if c.stdin, err = cmd.StdinPipe(); err != nil {
		return nil, err
	}
	if c.stdout, err = cmd.StdoutPipe(); err != nil {
		return nil, err
	}
	c.stderr, err = cmd.StderrPipe()
	return c, err
}

// waitCommand ends the channel once the command has exited and its output
// is closed, also by whatever it left behind: as sshd does.
func (s *Server) waitCommand(ch ssh.Channel, c *command) {
	defer ch.Close()
	var wg sync.WaitGroup
	wg.Go(func() { io.Copy(ch, c.stdout); c.stdout.Close() })
	wg.Go(func() { io.Copy(ch.Stderr(), c.stderr); c.stderr.Close() })
	wg.Wait()
	ws, err := c.wait()
	s.mu.Lock()
	delete(s.cmds, c)
	s.mu.Unlock()
	if err != nil {
		s.log("wait: %v", err)
		return
	}
	ch.CloseWrite()
	sendExit(ch, ws)
}

func (c *command) wait() (syscall.WaitStatus, error) {
	err := c.cmd.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.reaped = true
	if c.cmd.ProcessState == nil {
		return 0, err
	}
	return c.cmd.ProcessState.Sys().(syscall.WaitStatus), nil
}

// hangUp takes the streams away.
func (c *command) hangUp() {
	c.stdin.Close()
	c.stdout.Close()
	c.stderr.Close()
}

// kill ends the whole process group; what has left it keeps no one waiting.
func (c *command) kill() {
	c.signal("KILL")
	c.hangUp()
}

func (c *command) signal(name string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	sig, ok := signals[name]
	return ok && !c.reaped && syscall.Kill(-c.cmd.Process.Pid, sig) == nil
}

var signals = map[string]syscall.Signal{
	"ABRT": syscall.SIGABRT, "HUP": syscall.SIGHUP, "INT": syscall.SIGINT, "KILL": syscall.SIGKILL,
	"PIPE": syscall.SIGPIPE, "QUIT": syscall.SIGQUIT, "SEGV": syscall.SIGSEGV, "TERM": syscall.SIGTERM,
	"USR1": syscall.SIGUSR1, "USR2": syscall.SIGUSR2,
}

func sendExit(ch ssh.Channel, ws syscall.WaitStatus) {
	if ws.Signaled() {
		ch.SendRequest("exit-signal", false, ssh.Marshal(struct {
			Signal   string
			Core     bool
			Message  string
			Language string
		}{Signal: signalName(ws.Signal()), Core: ws.CoreDump()}))
		return
	}
	ch.SendRequest("exit-status", false, ssh.Marshal(struct{ Status uint32 }{uint32(ws.ExitStatus())}))
}

func signalName(sig syscall.Signal) string {
	for name, s := range signals {
		if s == sig {
			return name
		}
	}
	return "TERM"
}
