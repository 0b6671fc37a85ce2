package release

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// maxSocketPath is what fits in a sockaddr_un with its closing zero.
const maxSocketPath = 107

var (
	listenerForm = regexp.MustCompile(`^[a-z][a-z0-9_-]{0,63}$`)
	modeForm     = regexp.MustCompile(`^0?[0-7]{3}$`)
	hostForm     = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]{0,252})$`)
	networks     = []string{"tcp", "tcp4", "tcp6", "udp", "unix"}
)

// Perm is the mode of a unix socket's file.
func (l Listener) Perm() fs.FileMode {
	if m, err := strconv.ParseUint(l.Mode, 8, 9); err == nil {
		return fs.FileMode(m)
	}
	return 0o660
}

func listenField(i int, key string) string { return fmt.Sprintf("listen[%d].%s", i, key) }

func checkListeners(listeners []Listener, p *problems) {
	if len(listeners) > maxListeners {
		p.add("listen", "%d of them, more than the %d allowed", len(listeners), maxListeners)
		return
	}
	for i, l := range listeners {
		if err := l.checkName(listeners[:i]); err != nil {
			p.add(listenField(i, "name"), "%v", err)
		}
		if !slices.Contains(networks, l.Network) {
			p.add(listenField(i, "network"), "%s: must be one of %s", quote(l.Network), strings.Join(networks, ", "))
		} else if err := l.checkAddress(listeners[:i]); err != nil {
			p.add(listenField(i, "address"), "%s: %v", quote(l.Address), err)
		}
		if err := l.checkMode(); err != nil {
			p.add(listenField(i, "mode"), "%s: %v", quote(l.Mode), err)
		}
	}
}

func (l *Listener) checkName(before []Listener) error {
	if !listenerForm.MatchString(l.Name) {
		return fmt.Errorf("%s: has 1 to 64 of a-z, 0-9, _ and -, and begins with a letter", quote(l.Name))
	}
	if slices.ContainsFunc(before, func(o Listener) bool { return o.Name == l.Name }) {
		return fmt.Errorf("%s: another listener has that name", quote(l.Name))
	}
	return nil
}

func (l *Listener) checkAddress(before []Listener) error {
	var err error
	if l.Network == "unix" {
		err = checkSocketPath(l.Address)
	} else {
		err = checkHostPort(l.Network, l.Address)
	}
	if err != nil {
		return err
	}
	for _, o := range before {
		if o.Network == l.Network && o.Address == l.Address && !anyPort(l.Address) {
			return fmt.Errorf("listener %s has that address", quote(o.Name))
		}
	}
	return nil
}

func (l *Listener) checkMode() error {
	switch {
	case l.Mode == "":
		return nil
	case l.Network != "unix":
		return errors.New(`is only for network = "unix"`)
	case !modeForm.MatchString(l.Mode):
		return errors.New(`must be octal permissions, as in "0660"`)
	}
	return nil
}

func anyPort(address string) bool { return strings.HasSuffix(address, ":0") }

func checkHostPort(network, address string) error {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return errors.New(`must be host:port, as in ":8080" or "127.0.0.1:8080"`)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || strconv.FormatUint(n, 10) != port {
		return errors.New("the port must be a number from 0 to 65535")
	}
	if host == "" {
		return nil
	}
	ip, err := netip.ParseAddr(host)
	switch {
	case err != nil && !hostForm.MatchString(host):
		return errors.New("the host must be an IP address or a name")
	case err == nil && network == "tcp4" && !ip.Unmap().Is4(), err == nil && network == "tcp6" && ip.Unmap().Is4():
		return fmt.Errorf("the IP address is not one for %s", network)
	case ip.Zone() != "" && !hostForm.MatchString(ip.Zone()):
		return errors.New("the zone must be a network interface's name")
	}
	return nil
}

// checkSocketPath does not know the service's name: the manifest's Validate looks at the length once more, with it.
func checkSocketPath(p string) error {
	if err := checkText(p, maxSocketPath); err != nil {
		return err
	}
	switch {
	case p == "" || p == "/":
		return errors.New("must be the socket's path")
	case p[0] == '@':
		return errors.New("abstract sockets are not supported: write a path")
	case path.Clean(p) != p || p == "." || p == ".." || strings.HasPrefix(p, "../"):
		return errors.New(`must be clean, without "..": absolute, or relative to /run/<service>/`)
	}
	return nil
}
