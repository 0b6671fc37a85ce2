package supervisor

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/hotdeploy/hotdeploy/internal/api"
	"github.com/hotdeploy/hotdeploy/internal/release"
	"github.com/hotdeploy/hotdeploy/internal/sockets"
)

// socket is a listening socket with the number of its users: each living generation that has it, and the committed release.
type socket struct {
	*sockets.Socket
	users       int
	fromSystemd bool
}

// listenerSet owns the listening sockets. It belongs to the loop.
type listenerSet struct {
	runDir string
	closed func(*socket) // is told of each one that is closed; on the loop
	passed []*os.File    // by systemd, not matched yet
	open   []*socket
}

func newListenerSet(runDir string, passed []*os.File, closed func(*socket)) *listenerSet {
	return &listenerSet{runDir: runDir, passed: passed, closed: closed}
}

// acquire returns the sockets for ls in their order: those that are open already, those that systemd passed, and new
// ones bound here. Each gets one more user; on an error nothing has changed.
func (l *listenerSet) acquire(ls []release.Listener) ([]*socket, error) {
	var got []*socket
	for _, want := range ls {
		k, err := l.find(want)
		if err != nil {
			l.release(got)
			return nil, listenError(want, err)
		}
		k.users++
		got = append(got, k)
	}
	return got, nil
}

func (l *listenerSet) find(want release.Listener) (*socket, error) {
	for _, k := range l.open {
		if k.Listener.Network == want.Network && k.Listener.Address == want.Address {
			return k, nil // whatever an earlier release called it
		}
	}
	for i, f := range l.passed {
		if f.Name() != want.Name {
			continue
		}
		adopted, err := sockets.Adopt(f, want)
		if err != nil {
			return nil, fmt.Errorf("systemd's socket of that name is another one: %w", err)
		}
		l.passed = append(l.passed[:i:i], l.passed[i+1:]...)
		return l.add(&socket{Socket: adopted, users: 1, fromSystemd: true}), nil // systemd's own stay open: one user for ever
	}
	bound, err := sockets.Bind(want, l.runDir)
	if err != nil {
		return nil, err
	}
	return l.add(&socket{Socket: bound}), nil
}

func (l *listenerSet) add(k *socket) *socket {
	l.open = append(l.open, k)
	return k
}

// release gives sockets back. One without users is closed, and a client that comes now is refused.
func (l *listenerSet) release(ks []*socket) {
	for _, k := range ks {
		if k.users--; k.users > 0 {
			continue
		}
		l.open = slices.DeleteFunc(l.open, func(o *socket) bool { return o == k })
		k.Close()
		l.closed(k)
	}
}

// closeAll is for the end of the daemon.
func (l *listenerSet) closeAll() {
	for _, k := range l.open {
		k.Close()
	}
	for _, f := range l.passed {
		f.Close()
	}
	l.open, l.passed = nil, nil
}

func listenError(want release.Listener, err error) error {
	e := api.ErrListen.With(fmt.Sprintf("listener %s (%s %s): %v", want.Name, want.Network, want.Address, err))
	switch {
	case errors.Is(err, sockets.ErrInUse):
		e.Hint = "stop what holds it, or choose another address in hotdeploy.toml"
	case errors.Is(err, sockets.ErrPermission):
		e.Hint = "let the service bind it: hotdeploy setup HOST (it grants CAP_NET_BIND_SERVICE when hotdeploy.toml names a port below 1024)"
	}
	return e
}
