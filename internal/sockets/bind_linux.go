package sockets

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/hotdeploy/hotdeploy/internal/release"
)

// Why a listener cannot be bound. An error's text tells more.
var (
	ErrInUse      = errors.New("the address is in use")
	ErrPermission = errors.New("not permitted")
	ErrMismatch   = errors.New("another kind of socket")
)

// Socket is a listening socket. It is blocking when it is made, as systemd's are; what the apps make of it is theirs.
type Socket struct {
	Listener release.Listener
	File     *os.File
	Addr     string // as the kernel says it, with the port that was chosen for port 0
	unlink   string // remove this path at Close
}

// Close closes our copy, and removes the path of a unix socket that we made.
func (s *Socket) Close() error {
	if s.unlink != "" {
		if err := os.Remove(s.unlink); err != nil && !errors.Is(err, fs.ErrNotExist) {
			s.File.Close()
			return err
		}
	}
	return s.File.Close()
}

// backlog is the listen queue that we ask for; the kernel cuts it to net.core.somaxconn.
const backlog = 4096

// Relisten sets the length of the listen queue again. Some apps call listen themselves on what they inherit (Node with 511, Python
// with what it is told), and so shorten the queue for every generation.
func (s *Socket) Relisten() error {
	if s.Listener.Network == "udp" {
		return nil
	}
	raw, err := s.File.SyscallConn()
	if err != nil {
		return err
	}
	var listenErr error
	err = raw.Control(func(fd uintptr) { listenErr = unix.Listen(int(fd), backlog) })
	return errors.Join(err, os.NewSyscallError("listen", listenErr))
}

// Bind makes the socket of l. A relative unix path is below runDir. The caller closes it. Errors wrap ErrInUse, which names who
// has the address as far as we may see it, or ErrPermission.
func Bind(l release.Listener, runDir string) (*Socket, error) {
	address := l.Address
	if l.Network == "unix" {
		if !filepath.IsAbs(address) {
			address = filepath.Join(runDir, address)
		}
		return bindUnix(l, address)
	}
	var held syscall.Conn
	var addr net.Addr
	if l.Network == "udp" {
		c, err := new(net.ListenConfig).ListenPacket(context.Background(), "udp", address)
		if err != nil {
			return nil, explain(l, err)
		}
		defer c.Close()
		held, addr = c.(*net.UDPConn), c.LocalAddr()
	} else {
		c, err := new(net.ListenConfig).Listen(context.Background(), l.Network, address)
		if err != nil {
			return nil, explain(l, err)
		}
		defer c.Close()
		held, addr = c.(*net.TCPListener), c.Addr()
	}
	f, err := takeOver(held, l.Name)
	if err != nil {
		return nil, err
	}
	return &Socket{Listener: l, File: f, Addr: addr.String()}, nil
}

// takeOver makes a descriptor of our own, without Go's poller, so that handing it to a child never flips O_NONBLOCK.
func takeOver(c syscall.Conn, name string) (*os.File, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	var f *os.File
	var dupErr error
	err = raw.Control(func(fd uintptr) {
		var n int
		if n, dupErr = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0); dupErr != nil {
			return
		}
		if dupErr = unix.SetNonblock(n, false); dupErr != nil {
			unix.Close(n)
			return
		}
		f = os.NewFile(uintptr(n), name)
	})
	return f, errors.Join(err, dupErr)
}

// bindUnix replaces a path that nobody answers on; the permissions are right before anybody can connect.
func bindUnix(l release.Listener, path string) (*Socket, error) {
	mode := fs.FileMode(0o660)
	if l.Mode != "" {
		m, err := strconv.ParseUint(l.Mode, 8, 9)
		if err != nil {
			return nil, fmt.Errorf("mode %q is not an octal number", l.Mode)
		}
		mode = fs.FileMode(m)
	}
	if err := removeStale(path); err != nil {
		return nil, err
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	f := os.NewFile(uintptr(fd), l.Name)
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		f.Close()
		return nil, explain(l, os.NewSyscallError("bind", err))
	}
	s := &Socket{Listener: l, File: f, Addr: path, unlink: path}
	if err := os.Chmod(path, mode); err != nil { // before listen: nobody can connect yet
		s.Close()
		return nil, err
	}
	if err := unix.Listen(fd, backlog); err != nil {
		s.Close()
		return nil, os.NewSyscallError("listen", err)
	}
	return s, nil
}

func removeStale(path string) error {
	st, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if st.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("%w: %s is there and is not a socket", ErrInUse, path)
	}
	if c, err := net.Dial("unix", path); err == nil {
		c.Close()
		return fmt.Errorf("%w: somebody answers on %s", ErrInUse, path)
	}
	return os.Remove(path)
}

func explain(l release.Listener, err error) error {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("%w%s", ErrInUse, holder(l))
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("%w: this user may not bind it (ports below 1024 need CAP_NET_BIND_SERVICE)", ErrPermission)
	}
	return err
}

// Adopt takes a socket that systemd passed, if it is what l asks for. The Socket owns f from then on; with an error f stays the
// caller's.
func Adopt(f *os.File, l release.Listener) (*Socket, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	var domain, typ int
	var sa unix.Sockaddr
	var sysErr error
	err = raw.Control(func(fd uintptr) {
		if domain, sysErr = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_DOMAIN); sysErr != nil {
			return
		}
		if typ, sysErr = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_TYPE); sysErr != nil {
			return
		}
		sa, sysErr = unix.Getsockname(int(fd))
	})
	if err := errors.Join(err, sysErr); err != nil {
		return nil, err
	}
	addr, port := sockaddr(sa)
	if err := matches(l, domain, typ, addr, port); err != nil {
		return nil, err
	}
	return &Socket{Listener: l, File: f, Addr: addr}, nil
}

func matches(l release.Listener, domain, typ int, addr, port string) error {
	wantType := unix.SOCK_STREAM
	if l.Network == "udp" {
		wantType = unix.SOCK_DGRAM
	}
	isUnix := domain == unix.AF_UNIX
	if typ != wantType || isUnix != (l.Network == "unix") {
		return fmt.Errorf("%w: it is at %s", ErrMismatch, addr)
	}
	if isUnix {
		if filepath.Base(addr) != filepath.Base(l.Address) {
			return fmt.Errorf("%w: it is at %s", ErrMismatch, addr)
		}
		return nil
	}
	if _, want, err := net.SplitHostPort(l.Address); err != nil || want != port {
		return fmt.Errorf("%w: it is at %s", ErrMismatch, addr)
	}
	return nil
}

func sockaddr(sa unix.Sockaddr) (addr, port string) {
	switch a := sa.(type) {
	case *unix.SockaddrInet4:
		port = strconv.Itoa(a.Port)
		return net.JoinHostPort(net.IP(a.Addr[:]).String(), port), port
	case *unix.SockaddrInet6:
		port = strconv.Itoa(a.Port)
		return net.JoinHostPort(net.IP(a.Addr[:]).String(), port), port
	case *unix.SockaddrUnix:
		return a.Name, ""
	}
	return "", ""
}

// port is the TCP or UDP port of s.
func (s *Socket) port() uint16 {
	_, p, _ := net.SplitHostPort(s.Addr)
	n, _ := strconv.ParseUint(p, 10, 16)
	return uint16(n)
}
