package main

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/hotdeploy/hotdeploy/internal/release"
	"github.com/hotdeploy/hotdeploy/internal/sshtest"
	"github.com/hotdeploy/hotdeploy/internal/sshtest/opensshd"
	"github.com/hotdeploy/hotdeploy/remote"
)

// cutter is a line to a server that breaks after so many bytes to it.
type cutter struct {
	ln net.Listener
	to string

	mu   sync.Mutex // protects what follows
	left int64      // until it breaks; negative: it does not
	sent int64      // to the server
}

func newCutter(t *testing.T, to string) *cutter {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &cutter{ln: ln, to: to, left: -1}
	ctx, end := context.WithCancel(context.Background())
	var all sync.WaitGroup
	t.Cleanup(func() { ln.Close(); end(); all.Wait() })
	all.Go(func() {
		for {
			near, err := ln.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("tcp", to)
			if err != nil {
				near.Close()
				continue
			}
			hangUp := func() { near.Close(); far.Close() }
			context.AfterFunc(ctx, hangUp)
			all.Go(func() { c.carry(far, near); hangUp() })
			all.Go(func() { io.Copy(near, far); hangUp() })
		}
	})
	return c
}

// carry ends when the line breaks.
func (c *cutter) carry(far, near net.Conn) {
	buf := make([]byte, 4<<10)
	for {
		n, err := near.Read(buf)
		c.mu.Lock()
		broken := c.left >= 0 && int64(n) >= c.left
		if broken {
			n, c.left = int(c.left), -1
		} else if c.left >= 0 {
			c.left -= int64(n)
		}
		c.sent += int64(n)
		c.mu.Unlock()
		if _, writeErr := far.Write(buf[:n]); writeErr != nil || err != nil || broken {
			return
		}
	}
}

// breakAfter breaks the next connection after so many bytes; negative: not at all. It returns what was sent since the last call.
func (c *cutter) breakAfter(n int64) (sent int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	sent, c.sent, c.left = c.sent, 0, n
	return sent
}

func TestPush_CutAnywhere_SendsNothingTwice(t *testing.T) {
	const cuts, payload = 100, 512 << 10
	w := newWorld(t)
	key, err := sshtest.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	pem, err := key.PEM("")
	if err != nil {
		t.Fatal(err)
	}
	w.write("id2", string(pem), 0o600)
	sshd := opensshd.Start(t, opensshd.Options{AuthorizedKeys: []ssh.PublicKey{key.Public()}})
	line := newCutter(t, sshd.Addr)
	w.write("known2", "cut "+string(ssh.MarshalAuthorizedKey(sshd.HostKey)), 0o600)
	h := remote.Host{Destination: "cut", Name: "127.0.0.1", Port: line.ln.Addr().(*net.TCPAddr).Port, User: sshd.User, HostKeyAlias: "cut",
		KnownHosts: []string{w.path("known2")}, IdentityFiles: []string{w.path("id2")}}
	open := func(ctx context.Context) (*remote.Line, error) {
		s, err := remote.Dial(ctx, h, remote.Options{})
		if err != nil {
			return nil, err
		}
		return &remote.Line{Client: remote.Control(s, "chat", w.path("run/control.sock")), Session: s}, nil
	}
	r := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 1))
	var broken, sent, had, again int64
	for i := range cuts {
		rel := w.random(fmt.Sprint(i), payload)
		line.breakAfter(r.Int64N(payload + 8<<10))
		first := &remote.Deployment{Name: "cut", Open: open, Reconnect: time.Nanosecond}
		if err := first.Deliver(t.Context(), rel); err != nil {
			broken++
		}
		first.Close()
		sent += line.breakAfter(-1)
		var got remote.Transfer
		next := &remote.Deployment{Name: "cut", Open: open, Report: remote.Report{Transfer: func(t remote.Transfer) { got = t }}}
		if _, err := next.Begin(t.Context()); err != nil {
			t.Fatalf("cut %d: %v", i, err)
		}
		arrived := w.arrived(rel.Digest)
		if err := next.Deliver(t.Context(), rel); err != nil {
			t.Fatalf("cut %d: the next push: %v", i, err)
		}
		next.Close()
		if over := arrived - got.Resumed; over*100 > arrived {
			t.Errorf("cut %d: %d bytes had arrived, %d of them were sent again", i, arrived, over)
		} else {
			again += max(over, 0)
		}
		had += arrived
	}
	t.Logf("%d of %d pushes broke, with %d bytes sent; %d of these had arrived, %d were sent again", broken, cuts, sent, had, again)
	if broken < cuts/2 || had < sent/5 { // sshd throws away what it has not passed on when a line breaks
		t.Error("that is no test of what it is for")
	}
}

// random packs a release that does not compress.
func (w *world) random(version string, n int) *release.Packed {
	w.t.Helper()
	b := make([]byte, n)
	rand.NewChaCha8([32]byte([]byte(fmt.Sprintf("%-32s", version)))).Read(b)
	w.write("random/run.sh", "#!/bin/sh\n", 0o755)
	w.write("random/data", string(b), 0o644)
	o := release.PackOptions{Dir: w.path("random"), Service: "chat", Version: version, Files: []string{"run.sh", "data"}}
	o.Spec.Run.Command = []string{"./run.sh"}
	o.Spec.SetDefaults()
	rel, err := release.Pack(w.t.Context(), o)
	if err != nil {
		w.t.Fatal(err)
	}
	return rel
}

// arrived is how much of a release's bundle the host has.
func (w *world) arrived(digest string) (n int64) {
	found, _ := filepath.Glob(w.path("srv/incoming/" + digest + "/bundle-*"))
	for _, name := range found {
		if fi, err := os.Stat(name); err == nil {
			n += fi.Size()
		}
	}
	return n
}
