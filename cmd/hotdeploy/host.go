package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/user"
	"slices"

	"github.com/spf13/cobra"

	"github.com/hotdeploy/hotdeploy/internal/api"
	"github.com/hotdeploy/hotdeploy/internal/config"
	"github.com/hotdeploy/hotdeploy/internal/release"
	"github.com/hotdeploy/hotdeploy/remote"
)

// host is one host of a verb.
type host struct {
	*app
	name    string // as the operator calls it
	service string
	socket  string
	d       *remote.Deployment
	answer  *hostAnswer
	told    *narrator
}

// project loads hotdeploy.toml. Without one it is nil, if --service says what else would be missing.
func (a *app) project() (*config.Project, error) {
	path := a.configFile
	if path == "" {
		var err error
		if path, err = config.Find("."); errors.Is(err, config.ErrNoProject) && a.service != "" {
			return nil, nil
		} else if err != nil {
			return nil, &usageError{err, "go to the app's project, or name its file with  --config FILE"}
		}
	}
	p, err := config.Load(path)
	if err != nil {
		return nil, &usageError{err, "correct it, and repeat the command: nothing was changed"}
	}
	if a.service != "" {
		if err := release.CheckService(a.service); err != nil {
			return nil, &usageError{fmt.Errorf("--service: %w", err), ""}
		}
		p.Service = a.service
	}
	return p, nil
}

// hosts finds out which hosts arg means; an empty arg is the project's only target.
func (a *app) hosts(p *config.Project, arg string) ([]*host, error) {
	target, err := p.Target(arg)
	if err != nil {
		return nil, &usageError{err, "HOST is user@host, an alias of ssh's configuration, or a target of hotdeploy.toml"}
	}
	service := a.service
	if service == "" && p != nil {
		service = p.Service
	}
	if service == "" {
		return nil, &usageError{errors.New("which service?"), "name it with  --service NAME"}
	}
	if err := release.CheckService(service); err != nil {
		return nil, &usageError{fmt.Errorf("--service: %w", err), ""}
	}
	if target.Socket == "" {
		target.Socket = socketOf(p, arg)
	}
	var list []*host
	for _, name := range target.Hosts {
		list = append(list, a.newHost(name, service, target.Socket))
	}
	return list, nil
}

// socketOf is the socket of the target that a host belongs to, for an operator who names the host instead.
func socketOf(p *config.Project, name string) string {
	if p == nil {
		return ""
	}
	if _, isTarget := p.Targets[name]; isTarget {
		return ""
	}
	for _, target := range slices.Sorted(maps.Keys(p.Targets)) {
		if t := p.Targets[target]; slices.Contains(t.Hosts, name) {
			return t.Socket
		}
	}
	return ""
}

func (a *app) newHost(name, service, socket string) *host {
	h := &host{app: a, name: name, service: service, socket: socket, answer: &hostAnswer{Host: name}}
	h.told = a.newNarrator(name)
	h.d = &remote.Deployment{Name: name, Open: h.open, By: by(), Leave: a.leave, Report: h.told.report()}
	return h
}

// by says who asks.
func by() string {
	name, machine := "somebody", "somewhere"
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	if m, err := os.Hostname(); err == nil {
		machine = m
	}
	return name + "@" + machine
}

// dial opens an SSH session.
func (h *host) dial(ctx context.Context) (*remote.Session, error) {
	o := remote.Options{ConfigFile: h.sshConfig, Keys: h.keys}
	if !h.completing {
		o.Prompt = terminalPrompt()
	}
	to, err := remote.Resolve(ctx, h.name, o)
	if err != nil {
		return nil, err
	}
	h.verbosely("connecting to %s as %s", to.Addr(), to.User)
	return remote.Dial(ctx, to, o)
}

func (h *host) open(ctx context.Context) (*remote.Line, error) {
	s, err := h.dial(ctx)
	if err != nil {
		return nil, err
	}
	return &remote.Line{Client: remote.Control(s, h.service, h.socket), Session: s}, nil
}

// begin opens the line and gives its client and the status.
func (h *host) begin(ctx context.Context) (*api.Client, api.Status, error) {
	st, err := h.d.Begin(ctx)
	if err != nil {
		return nil, st, err
	}
	return h.d.Line().Client, st, nil
}

func (h *host) say(format string, args ...any) { h.told.say(fmt.Sprintf(format, args...)) }

func (h *host) verbosely(format string, args ...any) {
	if h.verbose {
		h.say(format, args...)
	}
}

// tell prints a line of the answer, where that is not to be JSON.
func (h *host) tell(format string, args ...any) {
	if !h.json {
		fmt.Fprintln(h.stdout, inLine(h.name+": "+fmt.Sprintf(format, args...)))
	}
}

// each does the verb on one host after another and stops at the first failure.
func (a *app) each(hosts []*host, do func(h *host) error) error {
	a.answer.wanted = true
	var done []string
	for i, h := range hosts {
		if err := a.one(h, do); err != nil {
			a.notBegun(hosts[i+1:])
			if len(done) == 0 {
				return err
			}
			return &someHostsError{err, done, names(hosts[i+1:])}
		}
		done = append(done, h.name)
	}
	return nil
}

// notBegun is what the answer says of hosts whose turn never came.
func (a *app) notBegun(hosts []*host) {
	for _, h := range hosts {
		h.answer.Outcome, h.answer.NotBegun = api.NothingChanged, true
		a.answer.Hosts = append(a.answer.Hosts, h.answer)
	}
}

// one does the verb on one host, notes how it ended, and closes the line.
func (a *app) one(h *host, do func(h *host) error) error {
	a.answer.Hosts = append(a.answer.Hosts, h.answer)
	defer h.d.Close()
	err := do(h)
	h.told.finish()
	h.answer.Outcome = api.Done
	if err == nil {
		return nil
	}
	var usage *usageError
	if errors.As(err, &usage) {
		h.answer.Outcome = api.Usage
		return err
	}
	f := remote.Explain(h.name, err)
	if f.State == "" {
		f.State = "nothing was changed; what is serving could not be asked"
	}
	h.answer.Outcome, h.answer.Error = f.Outcome, newAnswerError(f.Error(), f.State, f.Hint, f)
	return &hostError{h.name, f}
}

func names(hosts []*host) (list []string) {
	for _, h := range hosts {
		list = append(list, h.name)
	}
	return list
}

// only is the one host of a verb that cannot go over several.
func only(hosts []*host) (*host, error) {
	if len(hosts) != 1 {
		return nil, &usageError{fmt.Errorf("that is %d hosts: say which one", len(hosts)), fmt.Sprintf("one of them:  %s", hosts[0].name)}
	}
	return hosts[0], nil
}

func firstOf(args []string) string {
	if len(args) == 0 {
		return ""
	}
	return args[0]
}

// onHosts makes a verb of what is done on each host that the first argument means.
func (a *app) onHosts(do func(ctx context.Context, h *host) error) func(*cobra.Command, []string) error {
	return runs(func(cmd *cobra.Command, args []string) error {
		p, err := a.project()
		if err != nil {
			return err
		}
		hosts, err := a.hosts(p, firstOf(args))
		if err != nil {
			return err
		}
		return a.each(hosts, func(h *host) error { return do(cmd.Context(), h) })
	})
}
