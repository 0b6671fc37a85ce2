package supervisor

import (
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// peerListener accepts only peers that may command the service: root, the service's own user, members of the
// socket's group. File permissions say so already; the kernel's word on who is there says it again. At most limit peers are
// connected at once; one more waits in the queue.
type peerListener struct {
	net.Listener
	slots chan struct{}
	logf  func(string, ...any)
}

func newPeerListener(ln net.Listener, limit int, logf func(string, ...any)) net.Listener {
	return &peerListener{ln, make(chan struct{}, limit), logf}
}

func (l *peerListener) Accept() (net.Conn, error) {
	for {
		l.slots <- struct{}{}
		c, err := l.Listener.Accept()
		if err != nil {
			<-l.slots
			return nil, err
		}
		uid, err := allowed(c.(*net.UnixConn))
		if err != nil {
			l.logf("refused a peer on the control socket: %v", err)
			c.Close()
			<-l.slots
			continue
		}
		return &peerConn{Conn: c, uid: uid, leave: sync.OnceFunc(func() { <-l.slots })}, nil
	}
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

// allowed asks the kernel whose uid is there, and refuses who may not command (SO_PEERCRED, SO_PEERGROUPS; unix(7), socket(7)).
func allowed(c *net.UnixConn) (uid int, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	var groups []int
	var credErr error
	err = raw.Control(func(fd uintptr) {
		if cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); credErr == nil {
			groups, credErr = peerGroups(int(fd))
		}
	})
	if err != nil || credErr != nil {
		return 0, fmt.Errorf("who it is cannot be told: %w", firstOf(err, credErr))
	}
	if cred.Uid == 0 || int(cred.Uid) == os.Getuid() || int(cred.Gid) == os.Getgid() || slices.Contains(groups, os.Getgid()) {
		return int(cred.Uid), nil
	}
	return 0, fmt.Errorf("uid %d is neither root, nor uid %d, nor a member of group %d", cred.Uid, os.Getuid(), os.Getgid())
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
