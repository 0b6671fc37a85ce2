package sockets

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/hotdeploy/hotdeploy/internal/release"
)

// The part of linux/sock_diag.h and linux/inet_diag.h that we need; layouts as in sock_diag(7).
const (
	sockDiagByFamily = 20
	requestSize      = 56 // struct inet_diag_req_v2
	messageSize      = 72 // struct inet_diag_msg
	stateListen      = 10 // TCP_LISTEN
	allStates        = 0xfff
)

// tcpSocket is one TCP socket as the kernel sees it.
type tcpSocket struct {
	uid   uint32
	inode uint64 // zero: not accepted yet
}

// dumpTCP asks for the TCP sockets of one family with that local port; the kernel filters. dport zero means any.
func dumpTCP(family uint8, sport, dport uint16, states uint32, each func(tcpSocket)) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	req := make([]byte, unix.SizeofNlMsghdr+requestSize)
	ne := binary.NativeEndian
	ne.PutUint32(req[0:], uint32(len(req)))
	ne.PutUint16(req[4:], sockDiagByFamily)
	ne.PutUint16(req[6:], unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	body := req[unix.SizeofNlMsghdr:]
	body[0], body[1] = family, unix.IPPROTO_TCP
	ne.PutUint32(body[4:], states)
	binary.BigEndian.PutUint16(body[8:], sport)
	binary.BigEndian.PutUint16(body[10:], dport)
	if err := unix.Sendto(fd, req, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return os.NewSyscallError("sendto", err)
	}
	buf := make([]byte, 64<<10)
	for {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return os.NewSyscallError("recvfrom", err)
		}
		msgs, err := syscall.ParseNetlinkMessage(buf[:n])
		if err != nil {
			return err
		}
		for _, m := range msgs {
			switch m.Header.Type {
			case unix.NLMSG_DONE:
				return nil
			case unix.NLMSG_ERROR:
				if len(m.Data) >= 4 {
					return fmt.Errorf("sock_diag: %w", syscall.Errno(-int32(ne.Uint32(m.Data))))
				}
				return errors.New("sock_diag: malformed error")
			case sockDiagByFamily:
				if d := m.Data; len(d) >= messageSize {
					// The kernel compares ports on its side; comparing again costs nothing and survives kernels that do not.
					if binary.BigEndian.Uint16(d[4:]) != sport || (dport != 0 && binary.BigEndian.Uint16(d[6:]) != dport) {
						continue
					}
					each(tcpSocket{uid: ne.Uint32(d[64:]), inode: uint64(ne.Uint32(d[68:]))})
				}
			}
		}
	}
}

// accepted collects the inodes of the connections that came through s and were accepted by somebody.
func (s *Socket) accepted(inodes map[uint64]bool) error {
	switch s.Listener.Network {
	case "udp":
		return nil
	case "unix":
		return eachUnix(s.Addr, func(inode uint64, state string) {
			if state == "03" && inode != 0 { // SS_CONNECTED
				inodes[inode] = true
			}
		})
	}
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		err := dumpTCP(family, s.port(), 0, allStates&^(1<<stateListen), func(t tcpSocket) {
			if t.inode != 0 {
				inodes[t.inode] = true
			}
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// eachUnix reads /proc/net/unix: an accepted socket carries the path of its listener (unix(7)).
func eachUnix(path string, each func(inode uint64, state string)) error {
	f, err := os.Open("/proc/net/unix")
	if err != nil {
		return err
	}
	defer f.Close()
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		fields := strings.Fields(sc.Text()) // Num RefCount Protocol Flags Type St Inode Path
		if len(fields) >= 8 && fields[7] == path {
			if inode, err := strconv.ParseUint(fields[6], 10, 64); err == nil {
				each(inode, fields[5])
			}
		}
	}
	return sc.Err()
}

// holder says who has a listener's address, as far as we may see it.
func holder(l release.Listener) string {
	_, p, err := net.SplitHostPort(l.Address)
	if err != nil || l.Network == "udp" {
		return ""
	}
	n, err := strconv.ParseUint(p, 10, 16)
	if err != nil {
		return ""
	}
	port := uint16(n)
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		var found *tcpSocket
		err := dumpTCP(family, port, 0, 1<<stateListen, func(t tcpSocket) { found = &t })
		if err == nil && found != nil {
			if pid, name := findHolder(found.inode); pid != 0 {
				return fmt.Sprintf(": %s (pid %d) has it", name, pid)
			}
			return fmt.Sprintf(": a process of uid %d has it", found.uid)
		}
	}
	return ""
}

// findHolder looks through the processes that we may look into.
func findHolder(inode uint64) (pid int, name string) {
	d, err := os.ReadDir("/proc")
	if err != nil {
		return 0, ""
	}
	for _, e := range d {
		p, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		found := false
		eachSocket(p, func(_ int, i uint64) { found = found || i == inode })
		if found {
			comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", p))
			return p, strings.TrimSpace(string(comm))
		}
	}
	return 0, ""
}
