package sshtest

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"
)

// Options say whom the server lets in and what it lets them do. The zero
// value lets nobody in.
type Options struct {
	// Addr is where it listens; empty means a free port of 127.0.0.1.
	Addr string
	// AuthorizedKeys may log in, under any user name.
	AuthorizedKeys []ssh.PublicKey
	// UserCAs sign certificates that may log in as their principals.
	UserCAs []ssh.PublicKey
	// Password, where it is set, is accepted too, both as a password and
	// as the answer to the one keyboard-interactive question.
	Password string
	// HostKeys are what the server proves itself with: a signer of
	// [ssh.NewCertSigner] presents a host certificate. Empty means a new
	// ed25519 key.
	HostKeys []ssh.Signer
	// Dir is where commands start and what relative SFTP paths are
	// relative to; empty means the directory of the process.
	Dir string
	// Env is added to the environment of commands.
	Env []string
	// What is forbidden is answered as a strict sshd answers it.
	ForbidStreamLocal, ForbidTCP, ForbidExec, ForbidSFTP bool
	// Log gets one line for each thing that happens; nil means nobody.
	Log func(format string, args ...any)
}

// Server is a running server. [Server.Close] ends it.
type Server struct {
	opts   Options
	config *ssh.ServerConfig
	ln     net.Listener
	wg     sync.WaitGroup // the accept loop and all connections

	mu     sync.Mutex // protects what follows
	closed bool
	conns  map[net.Conn]bool
	cmds   map[*command]bool
}

// Start listens and serves until [Server.Close].
func Start(opts Options) (*Server, error) {
	if len(opts.HostKeys) == 0 {
		key, err := NewKey()
		if err != nil {
			return nil, err
		}
		opts.HostKeys = []ssh.Signer{key.Signer}
	}
	if opts.Addr == "" {
		opts.Addr = "127.0.0.1:0"
	}
	ln, err := net.Listen("tcp", opts.Addr)
	if err != nil {
		return nil, fmt.Errorf("listen for ssh: %w", err)
	}
	s := &Server{opts: opts, config: serverConfig(opts), ln: ln,
		conns: map[net.Conn]bool{}, cmds: map[*command]bool{}}
	s.wg.Go(s.accept)
	return s, nil
}

// Addr is the host:port it listens on.
func (s *Server) Addr() string { return s.ln.Addr().String() }

// Port is the port of [Server.Addr].
func (s *Server) Port() int { return s.ln.Addr().(*net.TCPAddr).Port }

// HostKey is the first host key; of a certificate, the key inside.
func (s *Server) HostKey() ssh.PublicKey {
	key := s.opts.HostKeys[0].PublicKey()
	if cert, ok := key.(*ssh.Certificate); ok {
		return cert.Key
	}
	return key
}

// KnownHosts is the line for known_hosts that trusts this server.
func (s *Server) KnownHosts() string {
	return knownhosts.Line([]string{s.Addr()}, s.HostKey()) + "\n"
}

// Drop cuts all connections as a failing network does: without a word of
// SSH. The server goes on listening.
func (s *Server) Drop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		c.Close()
	}
}

// Close stops listening, cuts all connections, kills the commands that
// still run in them, and waits for all of it.
func (s *Server) Close() error {
	s.mu.Lock()
	s.closed = true
	for cmd := range s.cmds {
		cmd.kill()
	}
	s.mu.Unlock()
	err := s.ln.Close()
	s.Drop()
	s.wg.Wait()
	return err
}

func (s *Server) log(format string, args ...any) {
	if s.opts.Log != nil {
		s.opts.Log(format, args...)
	}
}

func (s *Server) accept() {
	for {
		conn, err := s.ln.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			s.log("accept: %v", err)
			return
		}
		if !s.track(conn) {
			conn.Close()
			return
		}
		s.wg.Go(func() { s.serve(conn) })
	}
}

// track makes a connection one that Drop and Close reach; false means that
// the server is closing.
func (s *Server) track(conn net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.conns[conn] = true
	return true
}

func (s *Server) untrack(conn net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, conn)
}

// serve owns conn until it ends.
func (s *Server) serve(conn net.Conn) {
	defer s.untrack(conn)
	defer conn.Close()
	sc, channels, requests, err := ssh.NewServerConn(conn, s.config)
	if err != nil {
		s.log("%s: %v", conn.RemoteAddr(), err)
		return
	}
	s.log("%s: %s is in", conn.RemoteAddr(), sc.User())
	go ssh.DiscardRequests(requests) // answers keepalives; ends with sc
	var wg sync.WaitGroup
	for nc := range channels {
		wg.Go(func() { s.serveChannel(nc) })
	}
	wg.Wait()
}

func (s *Server) serveChannel(nc ssh.NewChannel) {
	switch nc.ChannelType() {
	case "session":
		s.serveSession(nc)
	case "direct-tcpip":
		s.serveTCP(nc)
	case "direct-streamlocal@openssh.com":
		s.serveStreamLocal(nc)
	default:
		nc.Reject(ssh.UnknownChannelType, "unknown channel type "+strings.ToValidUTF8(nc.ChannelType(), "?"))
	}
}
