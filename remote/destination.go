package remote

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"unicode"
)

const (
	maxDestination = 1024
	maxHostName    = 255
)

// destination is what the operator typed, taken apart. An empty user and a
// zero port are for the configuration to say.
type destination struct {
	user string
	host string
	port int
}

// parseDestination takes [ssh://][user@]host[:port] apart. An IPv6 address
// with a port stands in brackets.
func parseDestination(text string) (destination, error) {
	d, err := splitDestination(text)
	if err == nil {
		err = d.validate()
	}
	if err != nil {
		return destination{}, fmt.Errorf("%q is %w: %w", clip(text, 80), ErrDestination, err)
	}
	return d, nil
}

func splitDestination(text string) (destination, error) {
	var d destination
	if len(text) > maxDestination {
		return d, fmt.Errorf("longer than %d bytes", maxDestination)
	}
	rest, isURL := strings.CutPrefix(text, "ssh://")
	if isURL {
		rest = strings.TrimSuffix(rest, "/")
	}
	if i := strings.LastIndexByte(rest, '@'); i >= 0 {
		if d.user, rest = rest[:i], rest[i+1:]; d.user == "" {
			return d, fmt.Errorf("the user before @ is missing")
		}
	}
	host, port, err := splitPort(rest)
	if err != nil {
		return d, err
	}
	d.host = host
	if port != "" {
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 {
			return d, fmt.Errorf("port %q is not between 1 and 65535", port)
		}
		d.port = int(n)
	}
	return d, nil
}

// splitPort splits host:port; an IPv6 address out of brackets has no port.
func splitPort(text string) (host, port string, err error) {
	if inner, ok := strings.CutPrefix(text, "["); ok {
		host, after, ok := strings.Cut(inner, "]")
		if _, err := netip.ParseAddr(host); !ok || err != nil {
			return "", "", fmt.Errorf("no address between the brackets")
		}
		if after == "" {
			return host, "", nil
		}
		if port, ok = strings.CutPrefix(after, ":"); !ok || port == "" {
			return "", "", fmt.Errorf("%q after the brackets is not a port", after)
		}
		return host, port, nil
	}
	switch strings.Count(text, ":") {
	case 0:
		return text, "", nil
	case 1:
		host, port, _ = strings.Cut(text, ":")
		if port == "" {
			return "", "", fmt.Errorf("the port after : is missing")
		}
		return host, port, nil
	}
	if _, err := netip.ParseAddr(text); err != nil {
		return "", "", fmt.Errorf("more than one colon, and not an IPv6 address")
	}
	return text, "", nil
}

// validate refuses what ssh would take for an option and, like ssh, what a
// shell would take for more than a word: a ProxyCommand may contain it.
func (d destination) validate() error {
	switch {
	case d.host == "":
		return fmt.Errorf("the host is missing")
	case len(d.host) > maxHostName || len(d.user) > maxHostName:
		return fmt.Errorf("a name longer than %d bytes", maxHostName)
	}
	if err := validWord("host", d.host); err != nil {
		return err
	}
	return validWord("user", d.user)
}

func validWord(what, word string) error {
	if strings.HasPrefix(word, "-") {
		return fmt.Errorf("the %s begins with -", what)
	}
	bad := "'`\"$;&<>|(){}*?!#\\"
	if what == "user" { // DOMAIN\user is a name
		bad = strings.TrimSuffix(bad, "\\")
		if strings.HasSuffix(word, "\\") {
			return fmt.Errorf("the user ends in a backslash")
		}
	}
	for _, r := range word {
		if unicode.IsSpace(r) || !unicode.IsPrint(r) || strings.ContainsRune(bad, r) {
			return fmt.Errorf("the %s contains %q", what, r)
		}
	}
	return nil
}

// clip shortens what an error quotes.
func clip(text string, n int) string {
	if len(text) <= n {
		return text
	}
	return strings.ToValidUTF8(text[:n], "") + "..."
}
