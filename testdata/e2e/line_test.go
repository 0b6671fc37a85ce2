package e2e

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/hotdeploy/hotdeploy/testdata/lab"
)

// line is the wire between the operator and one machine's sshd, in a test's hands: it can fall silent, like a pulled
// cable, or break with a reset, at once or when so many bytes have gone to the machine.
type line struct {
	to *lab.Machine
	ln net.Listener

	mu    sync.Mutex    // protects what follows
	dead  chan struct{} // not nil: silent until it is closed
	conns map[net.Conn]bool
	sent  int64  // bytes to the machine, over all connections
	limit int64  // 0: none
	cut   func() // at the limit, once
}

// newLine puts a wire before a machine and returns it with an ssh configuration in which the machine's name leads over it.
func newLine(t *testing.T, to *lab.Machine) (*line, string) {
	t.Helper()
	ln, err := world.Listen("tcp", world.HostIP()+":0")
	must(t, err)
	l := &line{to: to, ln: ln, conns: map[net.Conn]bool{}}
	done := make(chan struct{})
	go func() { defer close(done); l.serve() }()
	t.Cleanup(func() {
		ln.Close()
		l.restore()
		l.reset()
		<-done
	})
	_, port, err := net.SplitHostPort(ln.Addr().String())
	must(t, err)
	config := filepath.Join(t.TempDir(), "ssh_config")
	must(t, os.WriteFile(config, fmt.Appendf(nil, "Host %s\n\tHostName %s\n\tPort %s\n\tHostKeyAlias %s\n\tUser root\n\tIdentityFile %s\n\tUserKnownHostsFile %s\n",
		to.Name, world.HostIP(), port, to.Name, world.KeyFile(), world.KnownHosts()), 0o600))
	return l, config
}

func (l *line) serve() {
	var all sync.WaitGroup
	defer all.Wait()
	for {
		near, err := l.ln.Accept()
		if err != nil {
			return
		}
		all.Go(func() { l.join(near) })
	}
}

// join carries bytes between near and the machine until one of them ends.
func (l *line) join(near net.Conn) {
	defer near.Close()
	l.pass()
	far, err := world.DialContext(context.Background(), "tcp", l.to.Addr(22))
	if err != nil {
		return
	}
	defer far.Close()
	l.keep(near, far, true)
	defer l.keep(near, far, false)
	var both sync.WaitGroup
	both.Go(func() { l.carry(far, near, true) })
	both.Go(func() { l.carry(near, far, false) })
	both.Wait()
}

func (l *line) carry(to, from net.Conn, up bool) {
	defer to.(*net.TCPConn).CloseWrite()
	buf := make([]byte, 16<<10)
	for {
		n, err := from.Read(buf)
		if up {
			l.count(to, from, buf[:n])
		} else {
			l.pass()
			_, _ = to.Write(buf[:n]) // the next Read tells
		}
		if err != nil {
			l.pass() // not even the end is heard over a dead line
			return
		}
	}
}

// count sends p to the machine; at the limit it cuts between two bytes. What was under way when the line fell silent arrives when it heals, unless
// its sender has hung up meanwhile: a host that is gone sends nothing again.
func (l *line) count(to, from net.Conn, p []byte) {
	l.pass()
	l.mu.Lock()
	before := l.limit - l.sent
	var cut func()
	if l.limit > 0 && l.cut != nil && before <= int64(len(p)) {
		cut, l.cut = l.cut, nil
	}
	l.sent += int64(len(p))
	l.mu.Unlock()
	if cut != nil {
		_, _ = to.Write(p[:max(before, 0)])
		p = p[max(before, 0):]
		cut()
		l.pass()
		if hungUp(from) {
			return
		}
	}
	_, _ = to.Write(p)
}

// hungUp tells whether the other side has ended a connection, without reading from it.
func hungUp(c net.Conn) (yes bool) {
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		return true
	}
	err = raw.Control(func(fd uintptr) {
		n, _, err := unix.Recvfrom(int(fd), make([]byte, 1), unix.MSG_PEEK|unix.MSG_DONTWAIT)
		yes = err == unix.ECONNRESET || err == nil && n == 0
	})
	return yes || err != nil
}

// pass blocks while the line is silent.
func (l *line) pass() {
	l.mu.Lock()
	dead := l.dead
	l.mu.Unlock()
	if dead != nil {
		<-dead
	}
}

func (l *line) keep(a, b net.Conn, add bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range []net.Conn{a, b} {
		if add {
			l.conns[c] = true
		} else {
			delete(l.conns, c)
		}
	}
}

// cutAfter does cut as soon as so many bytes more have gone to the machine.
func (l *line) cutAfter(bytes int64, cut func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.limit, l.cut = l.sent+bytes, cut
}

// total is how many bytes have gone to the machine.
func (l *line) total() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.sent
}

// silence lets nothing pass any more, in either direction; new connections get no answer.
func (l *line) silence() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.dead == nil {
		l.dead = make(chan struct{})
	}
}

// restore ends the silence.
func (l *line) restore() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.dead != nil {
		close(l.dead)
		l.dead = nil
	}
}

// reset breaks every connection, on both sides; new ones are fine.
func (l *line) reset() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for c := range l.conns {
		_ = c.(*net.TCPConn).SetLinger(0)
		c.Close()
	}
}
