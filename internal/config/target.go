package config

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// ErrNoTarget is a command that does not say where to, and a project that does not either.
var ErrNoTarget = errors.New("no target")

// Hosts says where arg points: to a target's hosts, else to itself as one destination. An empty arg means the only target.
func (p *Project) Hosts(arg string) ([]string, error) {
	t, err := p.Target(arg)
	return t.Hosts, err
}

// Target is what Hosts looks up, with the target's other settings. It works without a project too.
func (p *Project) Target(arg string) (Target, error) {
	if p == nil {
		p = &Project{}
	}
	if arg == "" {
		return p.onlyTarget()
	}
	if t, ok := p.Targets[arg]; ok {
		return t, nil
	}
	if err := CheckDestination(arg); err != nil {
		return Target{}, err
	}
	return Target{Hosts: []string{arg}}, nil
}

func (p *Project) onlyTarget() (Target, error) {
	names := slices.Sorted(maps.Keys(p.Targets))
	switch len(names) {
	case 0:
		return Target{}, fmt.Errorf("%w: name a host, or write [targets.production] with its hosts in %s", ErrNoTarget, FileName)
	case 1:
		return p.Targets[names[0]], nil
	}
	return Target{}, fmt.Errorf("%w: say which one: %s", ErrNoTarget, strings.Join(names, ", "))
}

// CheckDestination is the rule for what is given to SSH as a host: nothing that it could take for an option or that hides
// something in a message.
func CheckDestination(d string) error {
	user, host, ok := strings.Cut(d, "@")
	if !ok {
		host = d
	}
	odd := func(r rune) bool { return r == utf8.RuneError || unicode.IsSpace(r) || unicode.IsControl(r) }
	switch {
	case d == "" || host == "" || ok && user == "":
		return fmt.Errorf("%q: must be a host, user@host or user@host:port", d)
	case len(d) > 512:
		return fmt.Errorf("%q...: longer than 512 bytes", d[:60])
	case strings.HasPrefix(d, "-") || strings.HasPrefix(host, "-"):
		return fmt.Errorf("%q: a host does not begin with -", d)
	case strings.ContainsFunc(d, odd):
		return fmt.Errorf("%q: a host has no spaces or control characters in it", d)
	}
	return nil
}
