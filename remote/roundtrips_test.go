package remote_test

import (
	"context"
	"net"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/hotdeploy/hotdeploy/internal/sshtest"
	"github.com/hotdeploy/hotdeploy/remote"
)

// turns is a line that counts how often the client speaks after the server has: each time it had to wait for a round trip.
type turns struct {
	ln net.Listener

	mu       sync.Mutex // protects what follows
	answered bool       // the server spoke last
	n        int
}

func newTurns(t *testing.T, target string) *turns {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := &turns{ln: ln, answered: true}
	var wg sync.WaitGroup
	ctx, end := context.WithCancel(context.Background())
	t.Cleanup(func() { ln.Close(); end(); wg.Wait() })
	wg.Go(func() {
		for {
			up, err := ln.Accept()
			if err != nil {
				return
			}
			down, err := net.Dial("tcp", target)
			if err != nil {
				up.Close()
				return
			}
			context.AfterFunc(ctx, func() { up.Close(); down.Close() })
			wg.Go(func() { l.pass(down, up, false) })
			wg.Go(func() { l.pass(up, down, true) })
		}
	})
	return l
}

func (l *turns) pass(to, from net.Conn, answer bool) {
	defer to.Close()
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			l.mu.Lock()
			if l.answered && !answer {
				l.n++
			}
			l.answered = answer
			l.mu.Unlock()
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// since gives the turns since the last call.
func (l *turns) since() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := l.n
	l.n = 0
	return n
}

func TestPush_UnchangedRelease_TakesTwoRoundTripsAfterLogin(t *testing.T) {
	r := newRig(t, sshtest.Options{})
	rel := packed(t, "2")
	if _, err := r.d.Push(t.Context(), rel); err != nil {
		t.Fatal(err)
	}
	r.d.Close()
	l := newTurns(t, r.ssh.Addr())
	h := sshHost(t, r.ssh, sshtest.Options{})
	h.KnownHosts = []string{tempFile(t, []byte("turns "+string(ssh.MarshalAuthorizedKey(r.ssh.HostKey()))))}
	h.HostKeyAlias, h.Port = "turns", l.ln.Addr().(*net.TCPAddr).Port
	r.d.Open = func(ctx context.Context) (*remote.Line, error) {
		s, err := remote.Dial(ctx, h, remote.Options{KeepAlive: time.Hour}) // or its questions count too
		if err != nil {
			return nil, err
		}
		l.since()
		return &remote.Line{Client: remote.Control(s, "chat", r.socket), Session: s}, nil
	}
	res, err := r.d.Push(t.Context(), rel)
	if err != nil || !res.Already {
		t.Fatalf("result %+v, %v; want Already", res, err)
	}
	if n := l.since(); n != 2 {
		t.Errorf("it took %d round trips after the login", n)
	}
}
