package remote_test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/crypto/ssh"

	"github.com/hotdeploy/hotdeploy/remote"
)

// shortDir is a directory whose sockets have short names.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "hd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// echoSocket answers each connection with what it sends.
func echoSocket(t *testing.T) string {
	t.Helper()
	path := filepath.Join(shortDir(t), "s")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() { io.Copy(c, c); c.Close() }()
		}
	}()
	return path
}

func checkEcho(t *testing.T, c net.Conn) {
	t.Helper()
	defer c.Close()
	message := bytes.Repeat([]byte("hello "), 100_000)
	go func() {
		c.Write(message)
		c.(interface{ CloseWrite() error }).CloseWrite()
	}()
	got, err := io.ReadAll(c)
	if err != nil || !bytes.Equal(got, message) {
		t.Errorf("got %d of %d bytes, %v", len(got), len(message), err)
	}
}

func TestDialUnix_ReachesTheSocket(t *testing.T) {
	onEveryServer(t, func(t *testing.T, start startServer) {
		h, _ := newHost(t, start)
		c, err := dial(t, h, remote.Options{}).DialUnix(deadline(t), echoSocket(t))
		if err != nil {
			t.Fatal(err)
		}
		checkEcho(t, c)
	})
}

func TestDialUnix_SaysWhyNot(t *testing.T) {
	onEveryServer(t, func(t *testing.T, start startServer) {
		h, _ := newHost(t, start)
		s := dial(t, h, remote.Options{})
		dead := filepath.Join(shortDir(t), "dead socket's")
		ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: dead})
		if err != nil {
			t.Fatal(err)
		}
		ln.SetUnlinkOnClose(false)
		ln.Close()
		expectSocketError(t, s, dead, remote.SocketDead)
		expectSocketError(t, s, filepath.Join(shortDir(t), "absent"), remote.SocketAbsent)
		if _, err := s.DialUnix(deadline(t), "relative"); !errors.Is(err, remote.ErrNeverRan) {
			t.Errorf("a relative path: got %v", err)
		}
	})
}

func TestDialUnix_ForbiddenIsNotTakenForAbsent(t *testing.T) {
	onEveryServer(t, func(t *testing.T, start startServer) {
		key := newKey(t)
		srv := start(t, serverOptions{authorized: []ssh.PublicKey{key.Public()}, forbidStreamLocal: true})
		s := dial(t, hostOf(t, srv, writeKey(t, key, "")), remote.Options{})
		expectSocketError(t, s, echoSocket(t), remote.SocketForbidden)
	})
}

func expectSocketError(t *testing.T, s *remote.Session, path string, want remote.SocketReason) {
	t.Helper()
	_, err := s.DialUnix(deadline(t), path)
	var e *remote.ErrSocket
	if !errors.As(err, &e) || e.Reason != want || !errors.Is(err, remote.ErrNeverRan) {
		t.Errorf("%s: got %v, want %v", path, err, want)
	}
}

func TestDialCommand_IsAConnection(t *testing.T) {
	onEveryServer(t, func(t *testing.T, start startServer) {
		h, _ := newHost(t, start)
		c, err := dial(t, h, remote.Options{}).DialCommand(deadline(t), []string{"cat"})
		if err != nil {
			t.Fatal(err)
		}
		checkEcho(t, c)
	})
}

func TestDialCommand_ThatFailsShowsInTheRead(t *testing.T) {
	onEveryServer(t, func(t *testing.T, start startServer) {
		h, _ := newHost(t, start)
		c, err := dial(t, h, remote.Options{}).DialCommand(deadline(t), []string{"hotdeployd-that-is-not-there", "dial"})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_, err = c.Read(make([]byte, 1))
		var exit *remote.ExitError
		if !errors.As(err, &exit) || exit.Status != 127 || exit.Stderr == "" {
			t.Errorf("got %v", err)
		}
	})
}

// The library forgets a channel that is opened in the very moment in which the line ends, and would wait for ever.
func TestDialUnix_InTheMomentInWhichTheLineEnds(t *testing.T) {
	h, _ := newHost(t, startInProcess)
	socket := echoSocket(t)
	ctx := deadline(t)
	for range 200 {
		s := dial(t, h, remote.Options{})
		opened, ended := make(chan struct{}, 1), make(chan error, 4)
		for range cap(ended) {
			go func() {
				for {
					c, err := s.DialUnix(ctx, socket)
					if err != nil {
						ended <- err
						return
					}
					c.Close()
					select {
					case opened <- struct{}{}:
					default:
					}
				}
			}()
		}
		<-opened // they are at it
		s.Close()
		for range cap(ended) {
			if err := <-ended; !errors.Is(err, remote.ErrClosed) {
				t.Fatal(err)
			}
		}
	}
}
