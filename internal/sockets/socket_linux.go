package sockets

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/hotdeploy/hotdeploy/internal/release"
)

// What a caller can branch on. The errors' texts tell more.
var (
	ErrInUse      = errors.New("the address is in use")
	ErrPermission = errors.New("not permitted to bind the address")
	ErrMismatch   = errors.New("not the wanted socket")
	ErrForbidden  = errors.New("the kernel does not let us reach into the process")
)

// Socket is a listening socket, or a bound one for UDP.
type Socket struct {
	Listener release.Listener
	File     *os.File // ours until Close; children get duplicates
	Addr     string   // as the kernel says it, with the port that was chosen for port 0; the path of a unix socket

	made *os.File // the path that Bind made, held (O_PATH) so that nothing else gets its inode and it is known again
}

// Close closes our descriptor, and removes the path of a unix socket that Bind made, unless somebody else's is there by now.
// The socket lives on in processes that have it.
func (s *Socket) Close() error {
	err := s.removePath()
	return errors.Join(err, s.File.Close())
}

func (s *Socket) removePath() error {
	if s.made == nil {
		return nil
	}
	defer s.made.Close()
	ours, err := s.made.Stat()
	if err != nil {
		return err
	}
	if now, err := os.Lstat(s.Addr); err != nil || !os.SameFile(ours, now) {
		return nil
	}
	if err := os.Remove(s.Addr); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// backlog is the listen queue that we ask for; the kernel cuts it to net.core.somaxconn, 4096 by default.
const backlog = 65535

// Relisten sets the length of the listen queue again. Some apps call listen themselves on what they inherit (Node with 511,
// Python with what it is told), and so shorten the queue for every generation.
func (s *Socket) Relisten() error {
	if s.Listener.Network == "udp" {
		return nil
	}
	return control(s.File, func(fd int) error { return os.NewSyscallError("listen", unix.Listen(fd, backlog)) })
}

// Dial connects to s from this host; to one that listens everywhere by way of the loopback of its family.
func (s *Socket) Dial(ctx context.Context) (net.Conn, error) {
	network, address, err := s.target()
	if err != nil {
		return nil, err
	}
	return new(net.Dialer).DialContext(ctx, network, address)
}

func (s *Socket) target() (network, address string, err error) {
	switch s.Listener.Network {
	case "unix":
		return "unix", s.Addr, nil
	case "udp":
		return "", "", errors.New("nobody accepts connections on udp")
	}
	at, err := netip.ParseAddrPort(s.Addr)
	if err != nil {
		return "", "", fmt.Errorf("listener %s: %w", s.Listener.Name, err)
	}
	if at.Addr().IsUnspecified() {
		loopback := netip.AddrFrom4([4]byte{127, 0, 0, 1})
		if at.Addr().Is6() && s.onlyIPv6() {
			loopback = netip.IPv6Loopback()
		}
		at = netip.AddrPortFrom(loopback, at.Port())
	}
	return "tcp", at.String(), nil
}

func (s *Socket) onlyIPv6() bool {
	only := 0
	control(s.File, func(fd int) (err error) {
		only, err = unix.GetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY)
		return err
	})
	return only != 0
}

// port is the TCP or UDP port of s.
func (s *Socket) port() uint16 {
	at, _ := netip.ParseAddrPort(s.Addr)
	return at.Port()
}

// control calls do with f's descriptor, which stays as it is.
func control(f syscall.Conn, do func(fd int) error) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	if err := raw.Control(func(fd uintptr) { inner = do(int(fd)) }); err != nil {
		return err
	}
	return inner
}
