package remote

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"sync"
	"time"
)

// proxyConn is the standard streams of a ProxyCommand.
type proxyConn struct {
	io.Reader
	io.WriteCloser
	cmd   *exec.Cmd
	close sync.Once
	ended chan struct{} // closed once the command is reaped
}

// startProxy starts the command as ssh does: by the operator's shell, with
// standard error left where it is. Close ends it.
func startProxy(command string) (net.Conn, error) {
	shell := os.Getenv("SHELL")
	if shell == "" {
		shell = "/bin/sh"
	}
	cmd := exec.Command(shell, "-c", "exec "+command)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	// not StdoutPipe: Wait would close it under a Read
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer w.Close()
	cmd.Stdout, cmd.Stderr = w, os.Stderr
	if err := cmd.Start(); err != nil {
		r.Close()
		return nil, fmt.Errorf("start the ProxyCommand: %w", err)
	}
	c := &proxyConn{Reader: r, WriteCloser: stdin, cmd: cmd, ended: make(chan struct{})}
	go func() {
		defer close(c.ended)
		cmd.Wait()
	}()
	return c, nil
}

// Close takes the streams away and ends the command; it waits for it.
func (c *proxyConn) Close() error {
	c.close.Do(func() {
		c.WriteCloser.Close()
		c.cmd.Process.Kill()
		<-c.ended
		c.Reader.(*os.File).Close()
	})
	return nil
}

func (c *proxyConn) LocalAddr() net.Addr              { return streamAddr("local") }
func (c *proxyConn) RemoteAddr() net.Addr             { return streamAddr("proxy") }
func (c *proxyConn) SetDeadline(time.Time) error      { return os.ErrNoDeadline }
func (c *proxyConn) SetReadDeadline(time.Time) error  { return os.ErrNoDeadline }
func (c *proxyConn) SetWriteDeadline(time.Time) error { return os.ErrNoDeadline }

// streamAddr is the address of a stream that has none.
type streamAddr string

func (a streamAddr) Network() string { return "stream" }
func (a streamAddr) String() string  { return string(a) }
