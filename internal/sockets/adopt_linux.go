package sockets

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/hotdeploy/hotdeploy/internal/release"
)

// Adopt takes a socket that systemd passed, if it is what want asks for (ErrMismatch otherwise). The Socket owns f from then
// on; with an error f stays the caller's. Its path, if it has one, is systemd's to remove.
func Adopt(f *os.File, want release.Listener) (*Socket, error) {
	is, err := look(f)
	if err != nil {
		return nil, err
	}
	if err := is.matches(want); err != nil {
		return nil, err
	}
	return &Socket{Listener: want, File: f, Addr: is.address()}, nil
}

// Matches tells whether f is the socket that want asks for: type, family and address. ErrMismatch says what it is instead.
func Matches(f *os.File, want release.Listener) error {
	is, err := look(f)
	if err != nil {
		return err
	}
	return is.matches(want)
}

// found is what the kernel says of a socket.
type found struct {
	kind      int // SOCK_STREAM, SOCK_DGRAM
	listening bool
	onlyIPv6  bool
	at        netip.AddrPort // invalid for unix sockets
	path      string
}

func look(f *os.File) (is found, err error) {
	err = control(f, func(fd int) error {
		var accepts, domain int
		for _, o := range []struct {
			name  int
			value *int
		}{{unix.SO_TYPE, &is.kind}, {unix.SO_ACCEPTCONN, &accepts}, {unix.SO_DOMAIN, &domain}} {
			if *o.value, err = unix.GetsockoptInt(fd, unix.SOL_SOCKET, o.name); err != nil {
				return fmt.Errorf("descriptor %s is not a socket: %w", f.Name(), err)
			}
		}
		is.listening = accepts != 0
		if domain == unix.AF_INET6 {
			only, _ := unix.GetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY)
			is.onlyIPv6 = only != 0
		}
		sa, err := unix.Getsockname(fd)
		if err != nil {
			return os.NewSyscallError("getsockname", err)
		}
		is.at, is.path = address(sa)
		return nil
	})
	return is, err
}

func address(sa unix.Sockaddr) (at netip.AddrPort, path string) {
	switch a := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port)), ""
	case *unix.SockaddrInet6:
		ip := netip.AddrFrom16(a.Addr)
		if a.ZoneId != 0 {
			ip = ip.WithZone(zone(int(a.ZoneId)))
		}
		return netip.AddrPortFrom(ip, uint16(a.Port)), ""
	case *unix.SockaddrUnix:
		return netip.AddrPort{}, a.Name
	}
	return netip.AddrPort{}, ""
}

func zone(index int) string {
	if i, err := net.InterfaceByIndex(index); err == nil {
		return i.Name
	}
	return strconv.Itoa(index)
}

func (is found) address() string {
	if is.at.IsValid() {
		return is.at.String()
	}
	return is.path
}

func (is found) String() string {
	switch {
	case !is.at.IsValid() && is.path == "":
		return "a socket without an address"
	case !is.at.IsValid():
		return "unix " + is.path
	case is.kind == unix.SOCK_DGRAM:
		return "udp " + is.at.String()
	}
	return "tcp " + is.at.String()
}

func (is found) matches(want release.Listener) error {
	wantKind := unix.SOCK_STREAM
	if want.Network == "udp" {
		wantKind = unix.SOCK_DGRAM
	}
	switch {
	case is.kind != wantKind || is.at.IsValid() == (want.Network == "unix"):
		return fmt.Errorf("%w: it is %s", ErrMismatch, is)
	case wantKind == unix.SOCK_STREAM && !is.listening:
		return fmt.Errorf("%w: it is %s and does not listen", ErrMismatch, is)
	case want.Network == "unix":
		return is.matchesPath(want.Address)
	}
	return is.matchesAddress(want)
}

// matchesPath: where a relative path is below is systemd's business.
func (is found) matchesPath(want string) error {
	if is.path == want || (!filepath.IsAbs(want) && strings.HasSuffix(is.path, "/"+want)) {
		return nil
	}
	return fmt.Errorf("%w: it is %s", ErrMismatch, is)
}

func (is found) matchesAddress(want release.Listener) error {
	host, port, err := net.SplitHostPort(want.Address)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrMismatch, err)
	}
	four := is.at.Addr().Unmap().Is4()
	switch {
	case port != "0" && port != strconv.Itoa(int(is.at.Port())), want.Network == "tcp4" && !four, want.Network == "tcp6" && four,
		!is.matchesHost(host):
		return fmt.Errorf("%w: it is %s", ErrMismatch, is)
	case host == "" && want.Network != "tcp6" && is.onlyIPv6:
		return fmt.Errorf("%w: it is %s for IPv6 only (BindIPv6Only= of the .socket unit)", ErrMismatch, is)
	}
	return nil
}

func (is found) matchesHost(host string) bool {
	have := is.at.Addr().Unmap()
	if host == "" {
		return have.IsUnspecified()
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		return ip.Unmap() == have
	}
	ctx, cancel := context.WithTimeout(context.Background(), maxLookup)
	defer cancel()
	ips, _ := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	for _, ip := range ips {
		if ip.Unmap() == have {
			return true
		}
	}
	return false
}
