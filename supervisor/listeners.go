package supervisor

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"

	"github.com/hotdeploy/hotdeploy/internal/api"
	"github.com/hotdeploy/hotdeploy/internal/release"
	"github.com/hotdeploy/hotdeploy/internal/sockets"
)

// socket is a listening socket with the number of its users: each living generation that has it, and the committed release.
type socket struct {
	*sockets.Socket
	as          release.Listener // as the committed release calls it; the first one to have it otherwise
	users       int
	fromSystemd bool
	id          int            // for the ledger and the fd store
	recorded    sockets.Record // likewise
	lost        bool           // nobody has a descriptor of it any more but the generations that serve on it
}

// listenerSet owns the listening sockets. It belongs to the loop.
type listenerSet struct {
	runDir string
	closed func(*socket) // is told of each one that is closed; on the loop
	passed []*os.File    // by systemd, not matched yet
	open   []*socket
	lastID int
}

func newListenerSet(runDir string, passed []*os.File, closed func(*socket)) *listenerSet {
	return &listenerSet{runDir: runDir, passed: passed, closed: closed}
}

// lend returns the sockets for ls in their order: those that are open already, those that systemd passed, and new ones, bound
// here and not on the loop, since that may ask the network for a name. Each gets one more user; on an error nothing has
// changed. The caller owns s.busy, or nobody can have it yet.
func (s *Supervisor) lend(ls []release.Listener) ([]*socket, error) {
	s.unkeepClosed()
	var lent []*socket
	var err error
	s.do(func() { lent, err = s.listeners.find(ls) })
	if err != nil {
		return nil, err
	}
	var bound []*socket
	for i, k := range lent {
		if k != nil {
			continue
		}
		b, err := s.bind(ls[i], s.opt.Config.RunDir)
		if err != nil {
			s.do(func() { err = s.listeners.refused(ls[i], lent, err) })
			for _, k := range bound {
				k.Close()
			}
			return nil, err
		}
		lent[i] = &socket{Socket: b, as: ls[i], users: 1, recorded: b.Record()}
		bound = append(bound, lent[i])
	}
	s.do(func() {
		for _, k := range bound {
			k.id = s.listeners.nextID()
		}
	})
	for _, k := range bound {
		s.keep(listenerName(k.id), k.File)
	}
	s.do(func() { s.listeners.open = append(s.listeners.open, bound...) })
	return lent, nil
}

func (l *listenerSet) nextID() int {
	l.lastID++
	return l.lastID
}

// find returns the sockets for ls as far as they are there, with one more user, and nil where one must be bound.
func (l *listenerSet) find(ls []release.Listener) ([]*socket, error) {
	found := make([]*socket, len(ls))
	for _, sameName := range []bool{true, false} { // two with port 0 differ by nothing but their names
		for i, want := range ls {
			if found[i] == nil {
				found[i] = l.match(want, sameName, found)
			}
		}
	}
	for i, want := range ls {
		if found[i] != nil {
			continue
		}
		adopted, err := l.adopt(want)
		if err != nil {
			return nil, listenError(want, err)
		}
		found[i] = adopted
	}
	for _, k := range found {
		if k != nil {
			k.users++
		}
	}
	return found, nil
}

// match finds an open socket at want's address that is not taken yet, whatever an earlier release called it.
func (l *listenerSet) match(want release.Listener, sameName bool, taken []*socket) *socket {
	for _, k := range l.open {
		if k.Listener.Network == want.Network && l.address(k.Listener) == l.address(want) &&
			(k.as.Name == want.Name || !sameName) && !slices.Contains(taken, k) {
			return k
		}
	}
	return nil
}

// address is where a listener is, however it was written.
func (l *listenerSet) address(of release.Listener) string {
	if of.Network == "unix" && !filepath.IsAbs(of.Address) {
		return filepath.Join(l.runDir, of.Address)
	}
	return of.Address
}

// adopt takes the socket that systemd passed under want's name; nil if there is none.
func (l *listenerSet) adopt(want release.Listener) (*socket, error) {
	for i, f := range l.passed {
		if f.Name() != want.Name {
			continue
		}
		adopted, err := sockets.Adopt(f, want)
		if err != nil {
			return nil, fmt.Errorf("systemd's socket of that name is another one: %w", err)
		}
		l.passed = append(l.passed[:i:i], l.passed[i+1:]...)
		k := &socket{Socket: adopted, as: want, users: 1, fromSystemd: true, id: l.nextID(), recorded: adopted.Record()} // systemd's own stay open: one user for ever
		l.open = append(l.open, k)
		return k, nil
	}
	return nil, nil
}

// share gives each of ks, which are open, one more user.
func (l *listenerSet) share(ks []*socket) []*socket {
	for _, k := range ks {
		k.users++
	}
	return slices.Clone(ks)
}

// refused gives back what was found when one of them could not be bound, and says why in words of the release.
func (l *listenerSet) refused(want release.Listener, found []*socket, err error) error {
	for _, k := range found {
		if k != nil && slices.Contains(l.open, k) {
			l.release([]*socket{k})
		}
	}
	e := listenError(want, err)
	if own := l.atPort(want); own != nil && errors.Is(err, sockets.ErrInUse) {
		e.Message = fmt.Sprintf("listener %s (%s %s): listener %s of this service has that port, as %s %s", want.Name, want.Network, want.Address,
			own.as.Name, own.Listener.Network, own.Listener.Address)
		e.Hint = "leave its network and address as they are, or stop the service before such a push: hotdeploy stop"
	}
	return e
}

// atPort is an open socket of ours with the port of want.
func (l *listenerSet) atPort(want release.Listener) *socket {
	_, port, err := net.SplitHostPort(want.Address)
	for _, k := range l.open {
		_, p, openErr := net.SplitHostPort(k.Addr)
		if err == nil && openErr == nil && p == port && (k.Listener.Network == "udp") == (want.Network == "udp") {
			return k
		}
	}
	return nil
}

// rename lets held, the sockets of the release that is committed now, be what that release says: their names, and the modes of
// unix sockets that are ours.
func (l *listenerSet) rename(held []*socket, as []release.Listener, logf func(string, ...any)) {
	for i, k := range held {
		if k.as.Network == "unix" && !k.fromSystemd && as[i].Perm() != k.as.Perm() {
			if err := os.Chmod(k.Addr, as[i].Perm()); err != nil {
				logf("listener %s: %v", as[i].Name, err)
			}
		}
		k.as = as[i]
	}
}

// ordered are the open sockets: those of the committed release in its order, then the others.
func (l *listenerSet) ordered(held []*socket) []*socket {
	list := slices.Clone(held)
	for _, k := range l.open {
		if !slices.Contains(held, k) {
			list = append(list, k)
		}
	}
	return list
}

// release gives sockets back. One without users is closed, and a client that comes now is refused.
func (l *listenerSet) release(ks []*socket) {
	for _, k := range ks {
		if k.users--; k.users > 0 {
			continue
		}
		l.open = slices.DeleteFunc(l.open, func(o *socket) bool { return o == k })
		k.Close()
		if !k.lost {
			l.closed(k)
		}
	}
}

// closeAll is for the end of the daemon. Sockets that the next one may find in the fd store are left alone.
func (l *listenerSet) closeAll() {
	for _, k := range l.open {
		k.Close()
	}
	for _, f := range l.passed {
		f.Close()
	}
	l.open, l.passed = nil, nil
}

func listenError(want release.Listener, err error) *api.Error {
	e := api.ErrListen.With(fmt.Sprintf("listener %s (%s %s): %v", want.Name, want.Network, want.Address, err))
	switch {
	case errors.Is(err, sockets.ErrInUse):
		e.Hint = "stop what holds it, or choose another address in hotdeploy.toml"
	case errors.Is(err, sockets.ErrPermission):
		e.Hint = "let the service bind it: hotdeploy setup HOST (it grants CAP_NET_BIND_SERVICE when hotdeploy.toml names a port below 1024); " +
			"if that was done, the daemon that runs is from before it: hotdeploy restart HOST --daemon"
	}
	return e
}
