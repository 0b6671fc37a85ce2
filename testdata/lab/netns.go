package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// namespace runs functions on one OS thread that lives in a network namespace. A socket belongs
// to the namespace in which it was made, whoever uses it later; so only its making, which does
// not block, is done on that thread.
type namespace struct {
	path string
	work chan func()
	done chan struct{}
}

// errClosed: the lab is closed.
var errClosed = errors.New("the lab is closed")

func enterNamespace(path string) (*namespace, error) {
	ns := &namespace{path: path, work: make(chan func()), done: make(chan struct{})}
	entered := make(chan error, 1)
	go ns.serve(entered)
	if err := <-entered; err != nil {
		return nil, fmt.Errorf("enter the lab's network: %w", err)
	}
	return ns, nil
}

// serve never unlocks its thread: the runtime ends it with the goroutine, and nobody gets a
// thread that is in the wrong network.
func (ns *namespace) serve(entered chan<- error) {
	runtime.LockOSThread()
	err := setns(ns.path)
	entered <- err
	if err != nil {
		return
	}
	for {
		select {
		case f := <-ns.work:
			f()
		case <-ns.done:
			return
		}
	}
}

func setns(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Setns(int(f.Fd()), unix.CLONE_NEWNET)
}

func (ns *namespace) leave() { close(ns.done) }

// do runs f in the namespace and waits for it. f must not block.
func (ns *namespace) do(f func()) error {
	ran := make(chan struct{})
	select {
	case ns.work <- func() { f(); close(ran) }:
		<-ran
		return nil
	case <-ns.done:
		return errClosed
	}
}

// Listen opens a server in the lab's network, where machines reach it at HostIP.
func (l *Lab) Listen(network, addr string) (net.Listener, error) {
	var ln net.Listener
	var err error
	if e := l.ns.do(func() { ln, err = net.Listen(network, addr) }); e != nil {
		return nil, e
	}
	return ln, err
}

// DialContext connects over TCP from this process to a machine, by address or by name ("vm1:80").
// It fits http.Transport, websocket.Dialer and the like, and thousands of calls may be under way.
func (l *Lab) DialContext(ctx context.Context, network, addr string) (net.Conn, error) {
	conn, err := l.dial(ctx, network, addr)
	if err != nil {
		return nil, &net.OpError{Op: "dial", Net: network, Err: fmt.Errorf("%s: %w", addr, err)}
	}
	return conn, nil
}

func (l *Lab) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	if !strings.HasPrefix(network, "tcp") {
		return nil, net.UnknownNetworkError(network)
	}
	to, err := l.resolve(addr)
	if err != nil {
		return nil, err
	}
	f, err := l.ns.socket(to)
	if err != nil {
		return nil, err
	}
	defer f.Close() // FileConn makes a copy
	if err := connected(ctx, f); err != nil {
		return nil, err
	}
	return net.FileConn(f)
}

func (l *Lab) resolve(addr string) (netip.AddrPort, error) {
	host, portText, err := net.SplitHostPort(addr)
	if err != nil {
		return netip.AddrPort{}, err
	}
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("port %q: %w", portText, err)
	}
	for _, m := range l.Machines {
		if m.Name == host {
			host = m.IP
		}
	}
	ip, err := netip.ParseAddr(host)
	if err != nil || !ip.Is4() {
		return netip.AddrPort{}, fmt.Errorf("%q is neither a machine nor an IPv4 address", host)
	}
	return netip.AddrPortFrom(ip, uint16(port)), nil
}

// socket makes a socket in the namespace and starts to connect it.
func (ns *namespace) socket(to netip.AddrPort) (*os.File, error) {
	var fd int
	var err error
	if e := ns.do(func() {
		fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	}); e != nil {
		return nil, e
	}
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	err = unix.Connect(fd, &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())})
	if err != nil && !errors.Is(err, unix.EINPROGRESS) {
		unix.Close(fd)
		return nil, os.NewSyscallError("connect", err)
	}
	return os.NewFile(uintptr(fd), "tcp "+to.String()), nil // non-blocking, so the runtime polls it
}

// connected waits for the outcome of a connect under way.
func connected(ctx context.Context, f *os.File) error {
	stop := context.AfterFunc(ctx, func() { _ = f.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var outcome error
	err = raw.Write(func(fd uintptr) bool { outcome = connectState(int(fd)); return !errors.Is(outcome, unix.EINPROGRESS) })
	if err != nil {
		return errors.Join(context.Cause(ctx), err)
	}
	return outcome
}

// connectState is nil when connected, EINPROGRESS when not yet known.
func connectState(fd int) error {
	code, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil {
		return os.NewSyscallError("getsockopt", err)
	}
	if code != 0 {
		return os.NewSyscallError("connect", unix.Errno(code))
	}
	// No error yet and no peer yet: still under way.
	if _, err := unix.Getpeername(fd); errors.Is(err, unix.ENOTCONN) {
		return unix.EINPROGRESS
	}
	return nil
}
