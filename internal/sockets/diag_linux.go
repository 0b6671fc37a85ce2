package sockets

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// The parts of linux/sock_diag.h, inet_diag.h and unix_diag.h that we need, with their layouts (sock_diag(7)).
const (
	byFamily = 20 // SOCK_DIAG_BY_FAMILY

	inetRequestSize = 56 // struct inet_diag_req_v2
	inetMessageSize = 72 // struct inet_diag_msg
	unixRequestSize = 24 // struct unix_diag_req
	unixMessageSize = 16 // struct unix_diag_msg

	showName, showPeer = 1, 4 // UDIAG_SHOW_NAME, UDIAG_SHOW_PEER
	attrName, attrPeer = 0, 2 // UNIX_DIAG_NAME, UNIX_DIAG_PEER
)

// The states of sockets, in TCP's numbers also where it is not TCP.
const (
	established = 1
	timeWait    = 6
	listening   = 10

	anyState  = 0xffff
	connected = anyState &^ (1<<listening | 1<<timeWait)
)

var native = binary.NativeEndian

// inetSocket is one as the kernel sees it.
type inetSocket struct {
	state         uint8
	local, remote netip.AddrPort
	uid           uint32
	inode         uint64 // zero: no process has it, as before it is accepted
}

// eachInet asks for the sockets of one family and protocol with that local port, and that remote one unless it is zero. The kernel
// does the choosing.
func eachInet(family, protocol uint8, states uint32, local, remote uint16, each func(inetSocket)) error {
	req := make([]byte, inetRequestSize)
	req[0], req[1] = family, protocol
	native.PutUint32(req[4:], states)
	binary.BigEndian.PutUint16(req[8:], local)
	binary.BigEndian.PutUint16(req[10:], remote)
	return ask(req, unix.NLM_F_DUMP, func(m []byte) {
		if s, ok := parseInet(m); ok && s.local.Port() == local {
			each(s)
		}
	})
}

// findInet asks for the one TCP socket with both addresses; false if there is none.
func findInet(local, remote netip.AddrPort) (inetSocket, bool, error) {
	req := make([]byte, inetRequestSize)
	req[0], req[1] = unix.AF_INET6, unix.IPPROTO_TCP
	if local.Addr().Is4() {
		req[0] = unix.AF_INET // finds the connections of dual-stack listeners too
	}
	native.PutUint32(req[4:], anyState)
	binary.BigEndian.PutUint16(req[8:], local.Port())
	binary.BigEndian.PutUint16(req[10:], remote.Port())
	copy(req[12:28], local.Addr().AsSlice())
	copy(req[28:44], remote.Addr().AsSlice())
	native.PutUint64(req[48:], ^uint64(0)) // INET_DIAG_NOCOOKIE
	var found inetSocket
	var ok bool
	err := ask(req, 0, func(m []byte) { found, ok = parseInet(m) })
	if errors.Is(err, unix.ENOENT) {
		err = nil
	}
	return found, ok && found.state != listening, err // without a connection the kernel finds the listener
}

func parseInet(m []byte) (inetSocket, bool) {
	if len(m) < inetMessageSize {
		return inetSocket{}, false
	}
	addr := func(b []byte) netip.Addr {
		if m[0] == unix.AF_INET {
			return netip.AddrFrom4([4]byte(b[:4]))
		}
		return netip.AddrFrom16([16]byte(b[:16])).Unmap()
	}
	return inetSocket{
		state:  m[1],
		local:  netip.AddrPortFrom(addr(m[8:]), binary.BigEndian.Uint16(m[4:])),
		remote: netip.AddrPortFrom(addr(m[24:]), binary.BigEndian.Uint16(m[6:])),
		uid:    native.Uint32(m[64:]),
		inode:  uint64(native.Uint32(m[68:])),
	}, true
}

// eachUnix asks for the unix stream sockets in the given states that have the path. An accepted socket has its listener's.
func eachUnix(path string, states uint32, each func(inode uint64)) error {
	return ask(unixRequest(states, 0, showName), unix.NLM_F_DUMP, func(m []byte) {
		name, ok := unixAttr(m, attrName)
		for len(name) > 0 && name[len(name)-1] == 0 {
			name = name[:len(name)-1]
		}
		if ok && string(name) == path && m[1] == unix.SOCK_STREAM {
			each(uint64(native.Uint32(m[4:])))
		}
	})
}

// unixPeer asks for the inode of the socket that is connected to ours; zero: no process has it.
func unixPeer(inode uint64) (peer uint64, err error) {
	err = ask(unixRequest(anyState, uint32(inode), showPeer), 0, func(m []byte) {
		if b, ok := unixAttr(m, attrPeer); ok && len(b) >= 4 {
			peer = uint64(native.Uint32(b))
		}
	})
	return peer, err
}

func unixRequest(states, inode, show uint32) []byte {
	req := make([]byte, unixRequestSize)
	req[0] = unix.AF_UNIX
	native.PutUint32(req[4:], states)
	native.PutUint32(req[8:], inode)
	native.PutUint32(req[12:], show)
	native.PutUint64(req[16:], ^uint64(0)) // no cookie
	return req
}

// unixAttr is an attribute of a unix_diag message (netlink(7): length, type, value, padding to four).
func unixAttr(m []byte, want uint16) ([]byte, bool) {
	for attrs := m[min(unixMessageSize, len(m)):]; len(attrs) >= 4; {
		size, kind := int(native.Uint16(attrs)), native.Uint16(attrs[2:])
		if size < 4 || size > len(attrs) {
			break
		}
		if kind == want {
			return attrs[4:size], true
		}
		attrs = attrs[min((size+3)&^3, len(attrs)):]
	}
	return nil, false
}

// ask sends one request and hands each message of the answer to each, which must not keep it. The kernel answers at once
// and piece by piece, so memory is bounded; the time limit is for a kernel that does not keep its word.
func ask(req []byte, flags uint16, each func([]byte)) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 10}); err != nil {
		return os.NewSyscallError("setsockopt", err)
	}
	msg := make([]byte, unix.SizeofNlMsghdr, unix.SizeofNlMsghdr+len(req))
	native.PutUint32(msg[0:], uint32(cap(msg)))
	native.PutUint16(msg[4:], byFamily)
	native.PutUint16(msg[6:], unix.NLM_F_REQUEST|flags)
	if err := unix.Sendto(fd, append(msg, req...), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return os.NewSyscallError("sendto", err)
	}
	buf := make([]byte, 64<<10) // the kernel's pieces are at most half as large
	for {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return os.NewSyscallError("recvfrom", err)
		}
		done, err := split(buf[:n], each)
		if done || err != nil || flags&unix.NLM_F_DUMP == 0 {
			return err
		}
	}
}

// split takes a piece of an answer apart. done: it was the last one.
func split(b []byte, each func([]byte)) (done bool, err error) {
	for len(b) >= unix.SizeofNlMsghdr {
		size, kind := int(native.Uint32(b)), native.Uint16(b[4:])
		if size < unix.SizeofNlMsghdr || size > len(b) {
			return true, errors.New("sock_diag: malformed answer")
		}
		m := b[unix.SizeofNlMsghdr:size]
		switch kind {
		case unix.NLMSG_DONE:
			return true, nil
		case unix.NLMSG_ERROR:
			if len(m) < 4 {
				return true, errors.New("sock_diag: malformed error")
			}
			if errno := -int32(native.Uint32(m)); errno != 0 {
				return true, fmt.Errorf("sock_diag: %w", syscall.Errno(errno))
			}
		case byFamily:
			each(m)
		}
		b = b[min((size+3)&^3, len(b)):]
	}
	return false, nil
}
