package sshtest

import (
	"io"
	"net"
	"strconv"
	"sync"

	"golang.org/x/crypto/ssh"
)

func (s *Server) serveTCP(nc ssh.NewChannel) {
	var to struct {
		Host       string
		Port       uint32
		OriginHost string
		OriginPort uint32
	}
	if err := ssh.Unmarshal(nc.ExtraData(), &to); err != nil {
		nc.Reject(ssh.ConnectionFailed, "malformed request")
		return
	}
	s.forward(nc, s.opts.ForbidTCP, "tcp", net.JoinHostPort(to.Host, strconv.Itoa(int(to.Port))))
}

func (s *Server) serveStreamLocal(nc ssh.NewChannel) {
	var to struct {
		Path      string
		Reserved0 string
		Reserved1 uint32
	}
	if err := ssh.Unmarshal(nc.ExtraData(), &to); err != nil {
		nc.Reject(ssh.ConnectionFailed, "malformed request")
		return
	}
	s.forward(nc, s.opts.ForbidStreamLocal, "unix", to.Path)
}

func (s *Server) forward(nc ssh.NewChannel, forbidden bool, network, address string) {
	if forbidden {
		nc.Reject(ssh.Prohibited, "administratively prohibited")
		return
	}
	conn, err := net.Dial(network, address)
	if err != nil {
		s.log("forward: %v", err)
		nc.Reject(ssh.ConnectionFailed, "connect failed")
		return
	}
	defer conn.Close()
	ch, requests, err := nc.Accept()
	if err != nil {
		return
	}
	defer ch.Close()
	go ssh.DiscardRequests(requests)
	splice(ch, conn)
}

// splice copies both ways until both have ended; an end of one way is
// passed on, so that a half-closed connection stays usable.
func splice(ch ssh.Channel, conn net.Conn) {
	var wg sync.WaitGroup
	wg.Go(func() {
		io.Copy(ch, conn)
		ch.CloseWrite()
	})
	wg.Go(func() {
		io.Copy(conn, ch)
		conn.(interface{ CloseWrite() error }).CloseWrite()
	})
	wg.Wait()
}
