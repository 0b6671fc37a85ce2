package remote

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path"
	"strings"

	"golang.org/x/crypto/ssh"
)

const maxSocketPath = 107 // of sockaddr_un on Linux

// DialUnix connects to a unix socket on the host, through the SSH server. An
// *ErrSocket says why that was not possible. ctx matters to the dial only.
func (s *Session) DialUnix(ctx context.Context, socket string) (net.Conn, error) {
	if !path.IsAbs(socket) || len(socket) > maxSocketPath || strings.ContainsAny(socket, "\x00\n") {
		return nil, neverRan("connect to "+clip(socket, 120)+" on the host", errors.New("not the path of a socket"))
	}
	ch, requests, err := s.openChannel(ctx, "direct-streamlocal@openssh.com", ssh.Marshal(struct {
		Path      string
		Reserved0 string
		Reserved1 uint32
	}{Path: socket}))
	if err != nil {
		return nil, s.explainSocket(ctx, socket, err)
	}
	go ssh.DiscardRequests(requests)
	atEOF := func() error {
		if err := s.lost(context.Background(), errEndOfStream); err != errEndOfStream {
			return err
		}
		return nil
	}
	return &channelConn{Channel: ch, s: s, remote: streamAddr(socket), atEOF: atEOF}, nil
}

var errEndOfStream = errors.New("end of stream")

func (s *Session) explainSocket(ctx context.Context, socket string, err error) error {
	var refused *ssh.OpenChannelError
	if !errors.As(err, &refused) {
		return neverRan(fmt.Sprintf("connect to %s on the host", socket), s.lost(ctx, err))
	}
	e := &ErrSocket{Path: socket, Err: err}
	switch refused.Reason {
	case ssh.Prohibited, ssh.UnknownChannelType:
		e.Reason = SocketForbidden
	case ssh.ConnectionFailed:
		e.Reason = s.askSocket(ctx, socket)
	}
	return e
}

// socketScript finds out on the host what OpenSSH does not tell: its answer
// to a forbidden forwarding is the same as to a missing socket.
const socketScript = `
if [ ! -S "$1" ]; then echo absent
elif [ ! -w "$1" ]; then echo denied
elif [ -r /proc/net/unix ] && ! grep -F ' 00010000 ' /proc/net/unix | grep -qF " $1"; then echo dead
else echo forbidden
fi`

func (s *Session) askSocket(ctx context.Context, socket string) SocketReason {
	out, err := s.Output(ctx, 64, "sh", "-c", socketScript, "sh", socket)
	if err != nil {
		return SocketUnknown
	}
	return map[string]SocketReason{
		"absent": SocketAbsent, "denied": SocketDenied, "dead": SocketDead, "forbidden": SocketForbidden,
	}[strings.TrimSpace(string(out))]
}
