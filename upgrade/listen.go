package upgrade

import (
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
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
//
// Connections go to the listener of the same name in the other release. Without [Named] the name is the host's, or made of network and address; the
// second listener with the same one is told apart by a number, so the order of the calls counts then.
//
// A process that nobody supervises hands on what it has bound, by network and address as they are written here. It alone unlinks the path of a unix socket, when it ends
// for good. Until then the address stays bound, even if the listener is closed.
func (u *Upgrader) Listen(network, address string, opts ...ListenOption) (net.Listener, error) {
	c := listenConfig{protocol: HTTP()}
	for _, o := range opts {
		o.apply(&c)
	}
	if network == "unixpacket" {
		c.protocol = None() // what we put back together is a stream
	}
	base, name, err := u.socket(c.name, network, address)
	if err != nil {
		return nil, fmt.Errorf("upgrade: listen on %s %q: %w", network, address, err)
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	l := newListener(base, u.uniqueLocked(name, network, address), c.protocol)
	l.paused = u.waiting
	u.listeners = append(u.listeners, l)
	return l, nil
}

// uniqueLocked is the name of the next listener.
func (u *Upgrader) uniqueLocked(name, network, address string) string {
	if name == "" {
		name = network + ":" + address
	}
	unique := name
	for n := 2; slices.ContainsFunc(u.listeners, func(l *listener) bool { return l.name == unique }); n++ {
		unique = fmt.Sprintf("%s#%d", name, n)
	}
	return unique
}

// socket finds or makes what Listen wraps, and its name.
func (u *Upgrader) socket(name, network, address string) (socketListener, string, error) {
	name, f, err := u.inherited.take(name, network, address)
	if err != nil {
		return nil, "", err
	}
	base, err := u.bind(f, network, address)
	if err != nil {
		return nil, "", err
	}
	s, ok := base.(socketListener)
	if !ok {
		base.Close()
		return nil, "", errors.New("not a stream socket")
	}
	return s, name, nil
}

func (u *Upgrader) bind(f *os.File, network, address string) (net.Listener, error) {
	switch {
	case f != nil: // the path of a unix socket is the supervisor's
		defer f.Close()
		return net.FileListener(f)
	case u.alone != nil:
		return u.alone.listen(network, address)
	}
	return net.Listen(network, address)
}

// ListenPacket returns the inherited datagram socket with that name or address, or binds it. Both releases have the same socket, and the kernel
// one queue for it: the old one reads until connections begin to move, the new one from then on (under a supervisor from Ready on: for a moment either may), and what comes
// in between waits in the kernel, whose buffer (net.core.rmem_default, SetReadBuffer) is all that can overflow. What the app answers to a datagram that it
// has read still goes out: the process does not end before whoever has read it reads again, or Options.Patience is over. After SIGTERM reads wait until Close; if no
// other process has the socket it is closed.
func (u *Upgrader) ListenPacket(network, address string, opts ...ListenOption) (net.PacketConn, error) {
	var c listenConfig
	for _, o := range opts {
		o.apply(&c)
	}
	p, err := u.packetSocket(c.name, network, address)
	if err != nil {
		return nil, fmt.Errorf("upgrade: listen on %s %q: %w", network, address, err)
	}
	g := gated(p)
	if g == nil {
		p.Close()
		return nil, fmt.Errorf("upgrade: listen on %s %q: neither udp nor unixgram", network, address)
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.waiting || u.control != nil && !u.ready {
		g.pause()
	}
	u.packets = append(u.packets, g)
	return g, nil
}

func (u *Upgrader) packetSocket(name, network, address string) (net.PacketConn, error) {
	_, f, err := u.inherited.take(name, network, address)
	switch {
	case err != nil:
		return nil, err
	case f != nil:
		defer f.Close()
		return net.FilePacketConn(f)
	case u.alone != nil:
		return u.alone.listenPacket(network, address)
	}
	return net.ListenPacket(network, address)
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
		return "", nil, fmt.Errorf("none of the inherited sockets is meant (%s): say which with Named", in.textLocked())
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
