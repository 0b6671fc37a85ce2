package remote_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/hotdeploy/hotdeploy/internal/sshtest"
	"github.com/hotdeploy/hotdeploy/internal/sshtest/opensshd"
	"github.com/hotdeploy/hotdeploy/remote"
)

// serverOptions are what both kinds of server know.
type serverOptions struct {
	authorized        []ssh.PublicKey
	userCAs           []ssh.PublicKey
	hostKey           sshtest.Key
	hostCert          *ssh.Certificate
	forbidStreamLocal bool
}

// server is one running SSH server of either kind.
type server struct {
	addr       string
	user       string
	hostKey    ssh.PublicKey
	knownHosts string
	drop       func() // cuts all connections
}

func (s server) port() int {
	_, port, _ := net.SplitHostPort(s.addr)
	var n int
	fmt.Sscan(port, &n)
	return n
}

type startServer func(t testing.TB, opts serverOptions) server

func startInProcess(t testing.TB, opts serverOptions) server {
	t.Helper()
	if opts.hostKey.Signer == nil {
		opts.hostKey = newKey(t)
	}
	hostKeys := []ssh.Signer{opts.hostKey.Signer}
	if opts.hostCert != nil {
		signer, err := ssh.NewCertSigner(opts.hostCert, opts.hostKey.Signer)
		if err != nil {
			t.Fatal(err)
		}
		hostKeys = append(hostKeys, signer)
	}
	s, err := sshtest.Start(sshtest.Options{AuthorizedKeys: opts.authorized, UserCAs: opts.userCAs,
		HostKeys: hostKeys, ForbidStreamLocal: opts.forbidStreamLocal, Log: t.Logf})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return server{s.Addr(), currentUser(t), s.HostKey(), s.KnownHosts(), s.Drop}
}

func startOpenSSH(t testing.TB, opts serverOptions) server {
	t.Helper()
	s := opensshd.Start(t, opensshd.Options{AuthorizedKeys: opts.authorized, UserCAs: opts.userCAs,
		HostKey: opts.hostKey, HostCert: opts.hostCert, ForbidStreamLocal: opts.forbidStreamLocal})
	return server{s.Addr, s.User, s.HostKey, s.KnownHosts(), s.DropAll}
}

// onEveryServer is the contract: what holds with one server holds with all.
func onEveryServer(t *testing.T, test func(t *testing.T, start startServer)) {
	t.Run("in-process", func(t *testing.T) { test(t, startInProcess) })
	t.Run("openssh", func(t *testing.T) { test(t, startOpenSSH) })
}

func currentUser(t testing.TB) string {
	t.Helper()
	u, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	return u.Username
}

func newKey(t testing.TB) sshtest.Key {
	t.Helper()
	k, err := sshtest.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func writeFile(t testing.TB, data []byte, mode os.FileMode) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, data, mode); err != nil {
		t.Fatal(err)
	}
	return path
}

// writeKey writes a private key as ssh-keygen does, but with a passphrase
// that is cheap to check: the race detector makes the usual cost seconds.
func writeKey(t testing.TB, k sshtest.Key, passphrase string) string {
	t.Helper()
	data, err := k.PEM("")
	if err != nil {
		t.Fatal(err)
	}
	path := writeFile(t, data, 0o600)
	if passphrase != "" {
		out, err := exec.Command("ssh-keygen", "-q", "-p", "-a", "1", "-P", "", "-N", passphrase, "-f", path).CombinedOutput()
		if errors.Is(err, exec.ErrNotFound) {
			opensshd.Skip(t, "there is no ssh-keygen")
		}
		if err != nil {
			t.Fatalf("ssh-keygen: %v: %s", err, out)
		}
	}
	return path
}

// newHost is a host that can be dialled: known, with a key that is let in.
func newHost(t testing.TB, start startServer) (remote.Host, server) {
	t.Helper()
	key := newKey(t)
	s := start(t, serverOptions{authorized: []ssh.PublicKey{key.Public()}})
	return hostOf(t, s, writeKey(t, key, "")), s
}

func hostOf(t testing.TB, s server, keyFile string) remote.Host {
	t.Helper()
	h := remote.Host{Name: "127.0.0.1", Port: s.port(), User: s.user,
		KnownHosts: []string{writeFile(t, []byte(s.knownHosts), 0o600)}}
	if keyFile != "" {
		h.IdentityFiles = []string{keyFile}
	}
	return h
}

func dial(t testing.TB, h remote.Host, opts remote.Options) *remote.Session {
	t.Helper()
	s, err := remote.Dial(t.Context(), h, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// relay stands between client and server and can stop forwarding without
// closing anything, as a dead line does.
type relay struct {
	ln net.Listener

	mu     sync.Mutex // protects what follows
	dead   chan struct{}
	passed int64 // bytes towards the server
	onPass func(total int64)
}

func newRelay(t testing.TB, target string) *relay {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{ln: ln, dead: make(chan struct{})}
	over := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			in, err := ln.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", target)
			if err != nil {
				in.Close()
				continue
			}
			wg.Go(func() { r.forward(out, in, true, over) })
			wg.Go(func() { r.forward(in, out, false, over) })
			wg.Go(func() { <-over; in.Close(); out.Close() })
		}
	})
	t.Cleanup(func() { ln.Close(); close(over); wg.Wait() })
	return r
}

func (r *relay) forward(dst, src net.Conn, up bool, over chan struct{}) {
	buf := make([]byte, 16<<10)
	for {
		n, err := src.Read(buf)
		select {
		case <-r.dead:
			<-over
			return
		default:
		}
		if up {
			r.count(int64(n))
		}
		if _, werr := dst.Write(buf[:n]); err != nil || werr != nil {
			dst.(*net.TCPConn).CloseWrite()
			return
		}
	}
}

func (r *relay) count(n int64) {
	r.mu.Lock()
	r.passed += n
	total, onPass := r.passed, r.onPass
	r.mu.Unlock()
	if onPass != nil {
		onPass(total)
	}
}

// after calls f when n bytes more have gone to the server.
func (r *relay) after(n int64, f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	limit := r.passed + n
	var once sync.Once
	r.onPass = func(total int64) {
		if total >= limit {
			once.Do(f)
		}
	}
}

func (r *relay) total() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.passed
}

// each calls f before each 16 KiB, or less, that go to the server.
func (r *relay) each(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.onPass = func(int64) { f() }
}

// die stops forwarding.
func (r *relay) die() { close(r.dead) }

func (r *relay) port() int { return r.ln.Addr().(*net.TCPAddr).Port }

// through makes a host one that is reached through the relay.
func (r *relay) through(h remote.Host) remote.Host {
	h.HostKeyAlias = "relayed"
	h.Port = r.port()
	return h
}

// relayed is a host behind a relay, which known_hosts knows by its alias.
func relayed(t testing.TB, start startServer) (remote.Host, server, *relay) {
	t.Helper()
	h, s := newHost(t, start)
	r := newRelay(t, s.addr)
	line := "relayed " + string(ssh.MarshalAuthorizedKey(s.hostKey))
	h.KnownHosts = []string{writeFile(t, []byte(line), 0o600)}
	return r.through(h), s, r
}

// quick are keepalives for tests in which a line lives for a while, however busy the machine is, and then dies.
var quick = remote.Options{KeepAlive: 100 * time.Millisecond, KeepAliveMax: 50}

// endless is a reader that blocks until its test ends.
func endless(t testing.TB) io.Reader {
	r, w := io.Pipe()
	t.Cleanup(func() { w.Close() })
	return r
}

func deadline(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}
