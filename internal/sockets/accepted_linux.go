package sockets

import (
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

// AcceptedBy tells of a connection that this program opened to a listener on this host whether it was accepted yet, and
// whether the owner is one of pids. So a probe knows that the answer comes from the new generation although the old one accepts
// on the same socket. It does not wait. A connection that the other side has closed already counts as not accepted.
func AcceptedBy(conn net.Conn, pids []int) (owner, accepted bool, err error) {
	inode, err := peerInode(conn)
	if err != nil || inode == 0 {
		return false, false, err
	}
	for _, pid := range pids {
		err := eachSocket(pid, func(_ int, i uint64) bool { owner = i == inode; return !owner })
		if err != nil {
			return false, true, fmt.Errorf("sockets of process %d: %w", pid, err)
		}
		if owner {
			break
		}
	}
	return owner, true, nil
}

// peerInode is the inode of the socket at the other end, zero while no process has it.
func peerInode(conn net.Conn) (uint64, error) {
	switch c := conn.(type) {
	case *net.UnixConn:
		var st unix.Stat_t
		if err := control(c, func(fd int) error { return unix.Fstat(fd, &st) }); err != nil {
			return 0, err
		}
		return unixPeer(st.Ino)
	case *net.TCPConn:
		return tcpPeer(addrPort(c.RemoteAddr()), addrPort(c.LocalAddr()))
	}
	return 0, fmt.Errorf("who accepted a %T cannot be told", conn)
}

func addrPort(a net.Addr) netip.AddrPort {
	at := a.(*net.TCPAddr).AddrPort()
	return netip.AddrPortFrom(at.Addr().Unmap().WithZone(""), at.Port())
}

// tcpPeer asks for the socket at server, which is connected to client. Where that one cannot be asked for, since it is bound
// to an interface (fe80::), all with its ports are looked at.
func tcpPeer(server, client netip.AddrPort) (inode uint64, err error) {
	s, ok, err := findInet(server, client)
	if ok || err != nil {
		return s.inode, err
	}
	family := uint8(unix.AF_INET6)
	if server.Addr().Is4() {
		family = unix.AF_INET
	}
	err = eachInet(family, unix.IPPROTO_TCP, connected, server.Port(), client.Port(), func(s inetSocket) {
		if s.local == server && s.remote == client {
			inode = s.inode
		}
	})
	return inode, err
}
