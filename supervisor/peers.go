package supervisor

import (
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// peerListener accepts only peers that may command the service: root, the service's own user, members of the
// socket's group. File permissions say so already; the kernel's word on who is there says it again. At most maxControl peers are
// connected at once, of them maxApps processes of the app itself: one more waits in the queue, one more of the app's is sent away, so that
// it does not stand in an operator's way.
//
// Some descriptors are kept for the case that none is left, so that an operator can still ask why.
type peerListener struct {
	net.Listener
	slots, apps chan struct{}
	isApp       func(pid int) bool
	refused     *seldom

	mu     sync.Mutex // protects the fields below
	kept   []*os.File
	closed bool
}

const (
	maxControl = 64 // connections at once
	maxApps    = 8
	maxKept    = 4 // a command and whoever watches it
)

func newPeerListener(ln net.Listener, isApp func(pid int) bool, logf func(string, ...any)) net.Listener {
	l := &peerListener{Listener: ln, isApp: isApp, slots: make(chan struct{}, maxControl), apps: make(chan struct{}, maxApps),
		refused: &seldom{to: logf, every: time.Minute}}
	l.keepSome()
	return l
}

// keepSome opens what useKept closes. Without a descriptor there is none to keep, until a peer leaves.
func (l *peerListener) keepSome() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for !l.closed && len(l.kept) < maxKept {
		f, err := os.Open(os.DevNull)
		if err != nil {
			return
		}
		l.kept = append(l.kept, f)
	}
}

// useKept tells whether there is a descriptor now.
func (l *peerListener) useKept() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.kept) == 0 {
		return false
	}
	l.kept[0].Close()
	l.kept = l.kept[1:]
	return true
}

func (l *peerListener) Accept() (net.Conn, error) {
	for {
		l.slots <- struct{}{}
		c, err := l.Listener.Accept()
		if errors.Is(err, unix.EMFILE) && l.useKept() {
			c, err = l.Listener.Accept()
		}
		if err != nil {
			<-l.slots
			return nil, err
		}
		p, err := l.admit(c)
		if err == nil {
			return p, nil
		}
		l.refused.logf("refused a peer on the control socket: %v", err)
		c.Close()
		<-l.slots
		l.keepSome()
	}
}

// admit is about who c is. The slot is c's.
func (l *peerListener) admit(c net.Conn) (*peerConn, error) {
	cred, err := allowed(c.(*net.UnixConn))
	if err != nil {
		return nil, err
	}
	leave := func() { <-l.slots; l.keepSome() }
	isApp := l.isApp(int(cred.Pid))
	// A child that connects and ends, and leaves the connection to others, must not get around a limit. A pid of 0 is one of another namespace. This is asked
	// last: whoever lives now lived when isApp was asked.
	if !isApp && cred.Pid > 0 && hasEnded(int(cred.Pid)) {
		return nil, fmt.Errorf("pid %d has ended, and whose it was cannot be told", cred.Pid)
	}
	if isApp {
		select {
		case l.apps <- struct{}{}:
			leave = func() { <-l.apps; <-l.slots; l.keepSome() }
		default:
			return nil, fmt.Errorf("pid %d is the app's, which has %d connections already", cred.Pid, maxApps)
		}
	}
	return &peerConn{Conn: c, uid: int(cred.Uid), leave: sync.OnceFunc(leave)}, nil
}

func (l *peerListener) Close() error {
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	for l.useKept() {
	}
	return l.Listener.Close()
}

type peerConn struct {
	net.Conn
	uid   int // of the peer
	leave func()
}

// peerUID is the key under which a request's context has its peer's uid.
type peerUID struct{}

func (c *peerConn) Close() error {
	defer c.leave()
	return c.Conn.Close()
}

// allowed asks the kernel who is there, and refuses who may not command (SO_PEERCRED, SO_PEERGROUPS; unix(7), socket(7)).
func allowed(c *net.UnixConn) (cred *unix.Ucred, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	var groups []int
	var credErr error
	err = raw.Control(func(fd uintptr) {
		if cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); credErr == nil {
			groups, credErr = peerGroups(int(fd))
		}
	})
	if err != nil || credErr != nil {
		return nil, fmt.Errorf("who it is cannot be told: %w", firstOf(err, credErr))
	}
	if cred.Uid == 0 || int(cred.Uid) == os.Getuid() || int(cred.Gid) == os.Getgid() || slices.Contains(groups, os.Getgid()) {
		return cred, nil
	}
	return nil, fmt.Errorf("uid %d is neither root, nor uid %d, nor a member of group %d", cred.Uid, os.Getuid(), os.Getgid())
}

func firstOf(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// peerGroups are the supplementary groups of the peer.
func peerGroups(fd int) ([]int, error) {
	const most = 1024
	var gids [most]uint32
	size := uint32(unsafe.Sizeof(gids))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_PEERGROUPS,
		uintptr(unsafe.Pointer(&gids)), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return nil, os.NewSyscallError("getsockopt", errno)
	}
	groups := make([]int, size/4)
	for i := range groups {
		groups[i] = int(gids[i])
	}
	return groups, nil
}
