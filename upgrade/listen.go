package upgrade

import (
	"context"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// ListenOption says more about a listener: a [Protocol], or [Named].
type ListenOption interface{ apply(*listenConfig) }

type listenConfig struct {
	name     string
	protocol Protocol
}

func (p Protocol) apply(c *listenConfig) { c.protocol = p }

type named string

func (n named) apply(c *listenConfig) { c.name = string(n) }

// Named says which of the inherited sockets is meant: the name of [[listen]] in hotdeploy.toml, FileDescriptorName= of systemd.
func Named(name string) ListenOption { return named(name) }

// Listen returns the inherited listener with that name or address, or binds it if nothing was inherited. One that was inherited alone is taken
// whatever the address says: then the host has decided. Its Accept returns new connections and those of the release before.
func (u *Upgrader) Listen(network, address string, opts ...ListenOption) (net.Listener, error) {
	c := listenConfig{protocol: HTTP()}
	for _, o := range opts {
		o.apply(&c)
	}
	name, f, err := u.inherited.take(c.name, network, address)
	if err != nil {
		return nil, err
	}
	var base net.Listener
	if f != nil {
		defer f.Close()
		base, err = net.FileListener(f)
	} else {
		base, err = new(net.ListenConfig).Listen(context.Background(), network, address)
	}
	if err != nil {
		return nil, err
	}
	s, ok := base.(socketListener)
	if !ok {
		base.Close()
		return nil, fmt.Errorf("upgrade: listen on %s %s: not a stream socket", network, address)
	}
	if x, ok := base.(*net.UnixListener); ok && f != nil {
		x.SetUnlinkOnClose(false) // the path is the supervisor's
	}
	if name == "" {
		name = network + ":" + address
	}
	l := newListener(s, name, c.protocol)
	u.mu.Lock()
	defer u.mu.Unlock()
	u.listeners = append(u.listeners, l)
	return l, nil
}

// ListenPacket returns the inherited datagram socket with that name or address, or binds it. During an upgrade both releases read from it, and each datagram goes
// to one of them; at SIGTERM ours is closed.
func (u *Upgrader) ListenPacket(network, address string, opts ...ListenOption) (net.PacketConn, error) {
	var c listenConfig
	for _, o := range opts {
		o.apply(&c)
	}
	_, f, err := u.inherited.take(c.name, network, address)
	if err != nil {
		return nil, err
	}
	var p net.PacketConn
	if f != nil {
		defer f.Close()
		p, err = net.FilePacketConn(f)
	} else {
		p, err = net.ListenPacket(network, address)
	}
	if err != nil {
		return nil, err
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.packets = append(u.packets, p)
	return p, nil
}

// inheritance is the sockets that systemd or a supervisor has passed (sd_listen_fds(3)) and nobody has taken yet.
type inheritance struct {
	mu      sync.Mutex
	sockets []inheritedSocket
	any     bool // there were some
}

type inheritedSocket struct {
	name   string
	fd     int
	packet bool
	addr   net.Addr
}

const firstFD = 3

// inherit reads the environment and takes what is meant for us alone out of it.
func inherit() (*inheritance, error) {
	in := &inheritance{}
	pid, count, names := os.Getenv("LISTEN_PID"), os.Getenv("LISTEN_FDS"), strings.Split(os.Getenv("LISTEN_FDNAMES"), ":")
	if count == "" || pid != "" && pid != strconv.Itoa(os.Getpid()) {
		return in, nil
	}
	n, err := strconv.Atoi(count)
	if err != nil || n < 0 || n > 1024 {
		return nil, fmt.Errorf("upgrade: LISTEN_FDS=%q: not a number of sockets", count)
	}
	for _, name := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		os.Unsetenv(name)
	}
	for i := range n {
		fd := firstFD + i
		unix.CloseOnExec(fd)
		kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
		if err != nil {
			return nil, fmt.Errorf("upgrade: inherited descriptor %d: %w", fd, os.NewSyscallError("getsockopt", err))
		}
		s := inheritedSocket{fd: fd, packet: kind == unix.SOCK_DGRAM}
		if sa, err := unix.Getsockname(fd); err == nil {
			s.addr = address(sa)
		}
		if i < len(names) {
			s.name = names[i]
		}
		in.sockets = append(in.sockets, s)
	}
	in.any = n > 0
	return in, nil
}

// take returns the socket that is meant; nil without an error: bind it yourself.
func (in *inheritance) take(name, network, address string) (string, *os.File, error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	packet := strings.HasPrefix(network, "udp") || network == "unixgram"
	at, alike := -1, []int{}
	for i, s := range in.sockets {
		if s.packet != packet {
			continue
		}
		alike = append(alike, i)
		if name != "" && s.name == name || name == "" && at < 0 && isAt(s.addr, network, address) {
			at = i
		}
	}
	if at < 0 && name == "" && len(alike) == 1 {
		at = alike[0]
	}
	if at < 0 {
		if !in.any {
			return name, nil, nil
		}
		return "", nil, fmt.Errorf("upgrade: listen on %s %s: none of the inherited sockets is meant (%s): say which with Named", network, address, in.textLocked())
	}
	s := in.sockets[at]
	in.sockets = append(in.sockets[:at], in.sockets[at+1:]...)
	return s.name, os.NewFile(uintptr(s.fd), s.name), nil
}

func (in *inheritance) textLocked() string {
	var list []string
	for _, s := range in.sockets {
		list = append(list, fmt.Sprintf("%s on %v", s.name, s.addr))
	}
	if list == nil {
		return "no more are left"
	}
	return strings.Join(list, ", ")
}

// isAt compares a bound address with what an app asks for.
func isAt(bound net.Addr, network, address string) bool {
	switch b := bound.(type) {
	case *net.UnixAddr:
		return strings.HasPrefix(network, "unix") && b.Name == address
	case *net.TCPAddr:
		host, port, err := net.SplitHostPort(address)
		if err != nil || strings.HasPrefix(network, "unix") || port != strconv.Itoa(b.Port) {
			return false
		}
		ip := net.ParseIP(host)
		return ip == nil || ip.IsUnspecified() || ip.Equal(b.IP)
	}
	return false
}
