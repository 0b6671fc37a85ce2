package main

import (
	"fmt"
	"net"
	"os"

	"github.com/coreos/go-systemd/v22/activation"
	"golang.org/x/sys/unix"
)

// sockets is what the app serves on, sorted by what it speaks there.
type sockets struct {
	http  []net.Listener
	lines []net.Listener
	dgram []net.PacketConn
}

// openSockets takes what was passed to us, or binds addr when nothing was.
// also, if not empty, is bound in any case.
func openSockets(addr, also string) (s sockets, err error) {
	files := activation.Files(false)
	for _, f := range files {
		if err := s.adopt(f); err != nil {
			return s, fmt.Errorf("inherited socket %q (fd %d): %w", f.Name(), f.Fd(), err)
		}
	}
	if len(files) == 0 {
		if err := s.bind(addr); err != nil {
			return s, err
		}
	}
	if also != "" {
		return s, s.bind(also)
	}
	return s, nil
}

func (s *sockets) bind(addr string) error {
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return err // says "listen tcp ADDR: bind: ..." already
	}
	s.http = append(s.http, ln)
	return nil
}

// adopt takes one inherited socket and closes f: the listener has a duplicate.
// Closing that later does not touch the supervisor's copy, so the queue lives.
func (s *sockets) adopt(f *os.File) error {
	defer f.Close()
	kind, err := unix.GetsockoptInt(int(f.Fd()), unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil {
		return fmt.Errorf("reading its type: %w", err)
	}
	if kind == unix.SOCK_DGRAM {
		pc, err := net.FilePacketConn(f)
		if err == nil {
			s.dgram = append(s.dgram, pc)
		}
		return err
	}
	ln, err := net.FileListener(f)
	if err != nil {
		return err
	}
	if ln.Addr().Network() == "unix" {
		s.lines = append(s.lines, ln)
	} else {
		s.http = append(s.http, ln)
	}
	return nil
}
