package sockets

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Connections counts the connections that came through ls and are open in one of pids, for any app. One that is open in several of
// them counts once. UDP has none. It reads the descriptors of every process, about 2 µs each.
func Connections(pids []int, ls []*Socket) (int, error) {
	inodes, err := acceptedInodes(ls)
	if err != nil || len(inodes) == 0 {
		return 0, err
	}
	held := map[uint64]bool{}
	for _, pid := range pids {
		err := eachSocket(pid, func(_ int, inode uint64) {
			if inodes[inode] {
				held[inode] = true
			}
		})
		if err != nil {
			return 0, err
		}
	}
	return len(held), nil
}

func acceptedInodes(ls []*Socket) (map[uint64]bool, error) {
	inodes := map[uint64]bool{}
	for _, s := range ls {
		if err := s.accepted(inodes); err != nil {
			return nil, fmt.Errorf("connections of %s: %w", s.Listener.Name, err)
		}
	}
	return inodes, nil
}

// eachSocket reads the descriptors of a process. One that has ended has none.
func eachSocket(pid int, each func(fd int, inode uint64)) error {
	dir, err := os.Open(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil && !errors.Is(err, syscall.ESRCH) && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	raw, err := dir.SyscallConn()
	if err != nil {
		return err
	}
	var link [64]byte
	return raw.Control(func(at uintptr) {
		for _, name := range names {
			n, err := unix.Readlinkat(int(at), name, link[:])
			if err != nil {
				continue // closed meanwhile
			}
			if s, ok := bytes.CutPrefix(link[:n], []byte("socket:[")); ok {
				inode, err1 := strconv.ParseUint(string(bytes.TrimSuffix(s, []byte("]"))), 10, 64)
				fd, err2 := strconv.Atoi(name)
				if err1 == nil && err2 == nil {
					each(fd, inode)
				}
			}
		}
	})
}

// AcceptedBy tells of a connection that we opened to a listener on this host whether it was accepted yet, and whether it is
// theirs: open in one of pids. So a probe knows that the answer comes from the new generation although the old one accepts on the same socket.
func AcceptedBy(conn net.Conn, pids []int) (theirs, accepted bool, err error) {
	inode, err := peerInode(conn)
	if err != nil || inode == 0 {
		return false, false, err
	}
	for _, pid := range pids {
		if err := eachSocket(pid, func(_ int, i uint64) { theirs = theirs || i == inode }); err != nil {
			return false, true, err
		}
	}
	return theirs, true, nil
}

// peerInode is the inode of the socket at the other end, zero while nobody has accepted it.
func peerInode(conn net.Conn) (uint64, error) {
	switch c := conn.(type) {
	case *net.UnixConn:
		return unixPeer(c)
	case *net.TCPConn:
		local, remote := c.LocalAddr().(*net.TCPAddr), c.RemoteAddr().(*net.TCPAddr)
		var inode uint64
		for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} { // a dual-stack listener's connections are AF_INET6
			err := dumpTCP(family, uint16(remote.Port), uint16(local.Port), allStates&^(1<<stateListen), func(t tcpSocket) {
				if t.inode != 0 {
					inode = t.inode
				}
			})
			if err != nil {
				return 0, err
			}
		}
		return inode, nil
	}
	return 0, fmt.Errorf("cannot tell who accepted a %T", conn)
}

// CloseConnections closes the connections that came through ls and are open in one of pids, spread evenly over a time, whatever
// the app is: it duplicates each descriptor (pidfd_getfd(2)) and shuts the connection down. It returns how many it
// closed; an error means that the kernel forbids it, or that ctx ended.
func CloseConnections(ctx context.Context, pids []int, ls []*Socket, over time.Duration) (int, error) {
	inodes, err := acceptedInodes(ls)
	if err != nil {
		return 0, err
	}
	type held struct{ pid, fd int }
	var all []held
	for _, pid := range pids {
		err := eachSocket(pid, func(fd int, inode uint64) {
			if inodes[inode] {
				delete(inodes, inode)
				all = append(all, held{pid, fd})
			}
		})
		if err != nil {
			return 0, err
		}
	}
	if len(all) == 0 {
		return 0, nil
	}
	tick := time.NewTicker(max(over/time.Duration(len(all)), time.Microsecond))
	defer tick.Stop()
	for i, h := range all {
		if i > 0 && over > 0 {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return i, ctx.Err()
			}
		}
		if err := shutdown(h.pid, h.fd, ls); err != nil {
			return i, err
		}
	}
	return len(all), nil
}

// shutdown ends the connection behind another process's descriptor. The number may be another file's by now: only what is
// still a connected socket on one of our ports is touched.
func shutdown(pid, fd int, ls []*Socket) error {
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil // it ended, and its connections with it
	}
	defer unix.Close(pidfd)
	dup, err := unix.PidfdGetfd(pidfd, fd, 0)
	switch {
	case errors.Is(err, unix.EBADF), errors.Is(err, unix.ESRCH):
		return nil // closed meanwhile
	case err != nil:
		return os.NewSyscallError("pidfd_getfd", err)
	}
	defer unix.Close(dup)
	sa, err := unix.Getsockname(dup)
	if err != nil {
		return nil
	}
	addr, port := sockaddr(sa)
	for _, s := range ls {
		if (port != "" && port == strconv.Itoa(int(s.port()))) || (port == "" && addr == s.Addr) {
			if listening, _ := unix.GetsockoptInt(dup, unix.SOL_SOCKET, unix.SO_ACCEPTCONN); listening == 0 {
				unix.Shutdown(dup, unix.SHUT_RDWR)
			}
			return nil
		}
	}
	return nil
}
