package systemd

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
)

// listen turns the address into the options by which systemd binds it, with
// the same meaning that it has for net.Listen.
func (s SocketSpec) listen(unit UnitSpec) ([]option, error) {
	kind, family := "ListenStream", strings.TrimPrefix(s.Network, "tcp")
	switch s.Network {
	case "tcp", "tcp4", "tcp6":
	case "udp", "udp4", "udp6":
		kind, family = "ListenDatagram", strings.TrimPrefix(s.Network, "udp")
	case "unix":
		return s.listenUnix(unit)
	default:
		return nil, fmt.Errorf("network %q: not tcp, tcp4, tcp6, udp, udp4, udp6 or unix", s.Network)
	}
	if s.Mode != 0 {
		return nil, errors.New("a mode is for unix sockets only")
	}
	addr, err := s.inetAddress(family)
	if err != nil {
		return nil, err
	}
	only := "both"
	if family == "6" {
		only = "ipv6-only"
	}
	return []option{{kind, escapePercent(addr)}, {"BindIPv6Only", only}}, nil
}

func (s SocketSpec) inetAddress(family string) (string, error) {
	host, portText, err := net.SplitHostPort(s.Address)
	if err != nil {
		return "", fmt.Errorf("address %q: %w", s.Address, err)
	}
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil || port == 0 {
		return "", fmt.Errorf("address %q: port is not a number from 1 to 65535", s.Address)
	}
	if host == "" {
		return map[string]string{
			"":  strconv.FormatUint(port, 10), // both families, or the one that the host has
			"4": netip.AddrPortFrom(netip.IPv4Unspecified(), uint16(port)).String(),
			"6": netip.AddrPortFrom(netip.IPv6Unspecified(), uint16(port)).String(),
		}[family], nil
	}
	ip, err := netip.ParseAddr(host)
	if err != nil {
		return "", fmt.Errorf("address %q: host is not an IP address (systemd looks up no names)", s.Address)
	}
	if (family == "4" && !ip.Is4()) || (family == "6" && !ip.Is6()) {
		return "", fmt.Errorf("address %q: not of network %s", s.Address, s.Network)
	}
	if strings.ContainsFunc(ip.Zone(), func(r rune) bool { return !isPlain(r) }) {
		return "", fmt.Errorf("address %q: odd zone", s.Address)
	}
	return netip.AddrPortFrom(ip, uint16(port)).String(), nil
}

func isPlain(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_.@", r)
}

func (s SocketSpec) listenUnix(unit UnitSpec) ([]option, error) {
	if err := checkPath("socket", s.Address); err != nil {
		return nil, err
	}
	if len(s.Address) > 107 {
		return nil, fmt.Errorf("socket path %s: longer than the 107 bytes that an address has room for", s.Address)
	}
	if runtime := runtimeDirectory(unit); strings.HasPrefix(s.Address, runtime+"/") {
		return nil, fmt.Errorf("socket path %s: %s goes away with the service, a socket of systemd's must not", s.Address, runtime)
	}
	if s.Mode == 0 || s.Mode&^0o777 != 0 {
		return nil, fmt.Errorf("mode %#o: not from 0001 to 0777", uint32(s.Mode))
	}
	return []option{
		{"ListenStream", escapePercent(s.Address)},
		{"SocketUser", unit.User},
		{"SocketGroup", unit.Group},
		{"SocketMode", fmt.Sprintf("%04o", uint32(s.Mode))},
	}, nil
}
