package sockets

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// linux/unix_diag.h
const (
	unixRequestSize = 24 // struct unix_diag_req
	unixMessageSize = 16 // struct unix_diag_msg
	showPeer        = 4  // UDIAG_SHOW_PEER
	attrPeer        = 2  // UNIX_DIAG_PEER
)

// unixPeer asks for the inode of the socket at the other end of c; zero: not accepted yet.
func unixPeer(c *net.UnixConn) (uint64, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var st unix.Stat_t
	var statErr error
	if err := raw.Control(func(fd uintptr) { statErr = unix.Fstat(int(fd), &st) }); err != nil || statErr != nil {
		return 0, errors.Join(err, statErr)
	}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return 0, os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	ne := binary.NativeEndian
	req := make([]byte, unix.SizeofNlMsghdr+unixRequestSize)
	ne.PutUint32(req[0:], uint32(len(req)))
	ne.PutUint16(req[4:], sockDiagByFamily)
	ne.PutUint16(req[6:], unix.NLM_F_REQUEST)
	body := req[unix.SizeofNlMsghdr:]
	body[0] = unix.AF_UNIX
	ne.PutUint32(body[4:], allStates)
	ne.PutUint32(body[8:], uint32(st.Ino))
	ne.PutUint32(body[12:], showPeer)
	ne.PutUint32(body[16:], ^uint32(0)) // no cookie
	ne.PutUint32(body[20:], ^uint32(0))
	if err := unix.Sendto(fd, req, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return 0, os.NewSyscallError("sendto", err)
	}
	buf := make([]byte, 4096)
	n, _, err := unix.Recvfrom(fd, buf, 0)
	if err != nil {
		return 0, os.NewSyscallError("recvfrom", err)
	}
	msgs, err := syscall.ParseNetlinkMessage(buf[:n])
	if err != nil || len(msgs) == 0 {
		return 0, fmt.Errorf("unix_diag: malformed answer: %v", err)
	}
	m := msgs[0]
	if m.Header.Type == unix.NLMSG_ERROR {
		return 0, fmt.Errorf("unix_diag: %w", syscall.Errno(-int32(ne.Uint32(m.Data))))
	}
	for attrs := m.Data[min(unixMessageSize, len(m.Data)):]; len(attrs) >= 4; {
		size := int(ne.Uint16(attrs))
		if size < 4 || size > len(attrs) {
			break
		}
		if ne.Uint16(attrs[2:]) == attrPeer && size >= 8 {
			return uint64(ne.Uint32(attrs[4:])), nil
		}
		attrs = attrs[min((size+3)&^3, len(attrs)):]
	}
	return 0, nil
}
