package remote

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/crypto/ssh"
)

// channelConn is a channel as a net.Conn. It has no deadlines: close it, or
// let the session end, and what waits comes back.
type channelConn struct {
	ssh.Channel
	s      *Session
	remote streamAddr
	// atEOF says what the end of the stream means; nil error: it is one.
	atEOF func() error
}

// Read returns io.EOF only if the other side has ended the stream: a line
// that was lost is ErrLineLost.
func (c *channelConn) Read(p []byte) (int, error) {
	n, err := c.Channel.Read(p)
	if n == 0 && errors.Is(err, io.EOF) {
		if end := c.atEOF(); end != nil {
			err = end
		}
	}
	return n, err
}

func (c *channelConn) Write(p []byte) (int, error) {
	n, err := c.Channel.Write(p)
	if err != nil {
		if end := c.s.Err(); end != nil {
			err = end
		}
	}
	return n, err
}

func (c *channelConn) LocalAddr() net.Addr              { return streamAddr("ssh") }
func (c *channelConn) RemoteAddr() net.Addr             { return c.remote }
func (c *channelConn) SetDeadline(time.Time) error      { return os.ErrNoDeadline }
func (c *channelConn) SetReadDeadline(time.Time) error  { return os.ErrNoDeadline }
func (c *channelConn) SetWriteDeadline(time.Time) error { return os.ErrNoDeadline }

// DialCommand runs a command on the host whose standard streams are the
// connection. A command that fails, or is not there, shows as the *ExitError
// of a Read in place of io.EOF, with what it said. ctx matters to the start
// only. Closing the connection takes its streams from the command and does
// not wait for it.
func (s *Session) DialCommand(ctx context.Context, argv []string) (net.Conn, error) {
	c, err := s.start(ctx, argv)
	if err != nil {
		return nil, err
	}
	stderr := make(chan struct{})
	go func() { // ends with the channel
		defer close(stderr)
		io.Copy(c.stderr, c.ch.Stderr())
	}()
	atEOF := func() error {
		<-stderr
		return c.result(context.Background()) // comes with the end of the channel
	}
	return &channelConn{Channel: c.ch, s: s, remote: streamAddr(argv[0]), atEOF: atEOF}, nil
}
