package sockets

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hotdeploy/hotdeploy/internal/release"
)

// maxLookup bounds the look-up of a listener's host name.
const maxLookup = 10 * time.Second

// Bind makes the socket of l, as Go's net does but for MPTCP: with SO_REUSEADDR, the longest queue that the host allows, and on
// ":port" for IPv4 and IPv6 at once. A relative unix path is below runDir. The caller closes it. Errors wrap ErrInUse, whose
// text names who has the address as far as we may see it, or ErrPermission.
func Bind(l release.Listener, runDir string) (*Socket, error) {
	if l.Network == "unix" {
		path := l.Address
		if !filepath.IsAbs(path) {
			path = filepath.Join(runDir, path)
		}
		return bindUnix(l, path)
	}
	ctx, cancel := context.WithTimeout(context.Background(), maxLookup)
	defer cancel()
	bound, addr, closer, err := listen(ctx, l)
	if err != nil {
		return nil, explain(l, err)
	}
	defer closer()
	f, err := detach(bound, l.Name)
	if err != nil {
		return nil, err
	}
	return &Socket{Listener: l, File: f, Addr: addr.String()}, nil
}

func listen(ctx context.Context, l release.Listener) (syscall.Conn, net.Addr, func() error, error) {
	var config net.ListenConfig
	config.SetMultipathTCP(false)
	if l.Network == "udp" {
		c, err := config.ListenPacket(ctx, "udp", l.Address)
		if err != nil {
			return nil, nil, nil, err
		}
		return c.(*net.UDPConn), c.LocalAddr(), c.Close, nil
	}
	ln, err := config.Listen(ctx, l.Network, l.Address)
	if err != nil {
		return nil, nil, nil, err
	}
	return ln.(*net.TCPListener), ln.Addr(), ln.Close, nil
}

// detach makes a descriptor of its own, which is blocking and unknown to Go's poller.
func detach(c syscall.Conn, name string) (*os.File, error) {
	var f *os.File
	err := control(c, func(fd int) error {
		n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return os.NewSyscallError("fcntl", err)
		}
		if err := unix.SetNonblock(n, false); err != nil {
			unix.Close(n)
			return os.NewSyscallError("fcntl", err)
		}
		f = os.NewFile(uintptr(n), name)
		return nil
	})
	return f, err
}

// bindUnix replaces a path on which nobody answers. The permissions are right before anybody can connect: that takes listen,
// which comes last.
func bindUnix(l release.Listener, path string) (_ *Socket, err error) {
	if err := removeStale(path); err != nil {
		return nil, err
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	s := &Socket{Listener: l, File: os.NewFile(uintptr(fd), l.Name), Addr: path}
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		return nil, explain(l, &os.PathError{Op: "bind", Path: path, Err: err})
	}
	if s.made, err = os.OpenFile(path, unix.O_PATH|unix.O_NOFOLLOW, 0); err != nil {
		return nil, err
	}
	if err := os.Chmod(path, l.Perm()); err != nil {
		return nil, err
	}
	if err := unix.Listen(fd, backlog); err != nil {
		return nil, os.NewSyscallError("listen", err)
	}
	return s, nil
}

// removeStale removes the socket of somebody who is gone: only a refused connection proves that.
func removeStale(path string) error {
	st, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return explain(release.Listener{Network: "unix"}, err)
	}
	if st.Mode().Type() != fs.ModeSocket {
		return &bindError{kind: ErrInUse, text: path + " is there and is not a socket"}
	}
	c, err := net.DialTimeout("unix", path, maxLookup)
	if err == nil {
		c.Close()
	}
	if errors.Is(err, unix.ECONNREFUSED) {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return explain(release.Listener{Network: "unix"}, err)
		}
		return nil
	}
	return &bindError{kind: ErrInUse, text: path + " is in use" + holderOfPath(path), cause: err}
}

// bindError has a text for people and a kind for callers.
type bindError struct {
	kind  error
	text  string
	cause error
}

func (e *bindError) Error() string   { return e.text }
func (e *bindError) Unwrap() []error { return []error{e.kind, e.cause} }

// explain tells why l cannot be bound, and what would help.
func explain(l release.Listener, err error) error {
	switch {
	case errors.Is(err, unix.EADDRINUSE) && l.Network == "unix":
		return &bindError{kind: ErrInUse, text: l.Address + " is in use", cause: err} // made in this very moment
	case errors.Is(err, unix.EADDRINUSE):
		_, port, _ := net.SplitHostPort(l.Address)
		return &bindError{kind: ErrInUse, text: fmt.Sprintf("port %s is in use%s", port, holder(l)), cause: err}
	case errors.Is(err, fs.ErrPermission) && l.Network == "unix":
		return &bindError{kind: ErrPermission, text: fmt.Sprintf("uid %d may not make a socket there: %v", os.Geteuid(), err), cause: err}
	case errors.Is(err, fs.ErrPermission):
		_, port, _ := net.SplitHostPort(l.Address)
		return &bindError{kind: ErrPermission, cause: err, text: fmt.Sprintf("uid %d may not bind port %s: ports below %s need "+
			"CAP_NET_BIND_SERVICE, or a .socket unit that binds it", os.Geteuid(), port, firstFreePort())}
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return fmt.Errorf("this host does not have the address (yet): %w", err)
	}
	return err
}

// firstFreePort is the lowest port that anybody may bind.
func firstFreePort() string {
	b, err := os.ReadFile("/proc/sys/net/ipv4/ip_unprivileged_port_start")
	if n := len(b); err == nil && n > 1 {
		return string(b[:n-1])
	}
	return "1024"
}
