package sockets

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Connections counts the connections that came through ls and are open in one of pids, for any app. One that is open in several
// of them counts once. UDP has none. An error means that the number is unknown.
func Connections(pids []int, ls []*Socket) (int, error) {
	counts, err := ConnectionsOf(map[int][]int{0: pids}, ls)
	return counts[0], err
}

// ConnectionsOf counts for several generations with one look at the kernel's tables: pids by generation, and the listeners of all of
// them. A connection that two generations have open counts for both. A generation whose number is unknown is not in the
// result, and the error tells why.
func ConnectionsOf(pids map[int][]int, ls []*Socket) (map[int]int, error) {
	accepted, err := acceptedOn(ls)
	if err != nil {
		return nil, err
	}
	counts := make(map[int]int, len(pids))
	var errs []error
	for generation, its := range pids {
		held, err := heldBy(its, accepted)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		counts[generation] = len(held)
	}
	return counts, errors.Join(errs...)
}

// acceptedOn are the inodes of all connections that came through ls and that some process has.
func acceptedOn(ls []*Socket) (map[uint64]bool, error) {
	inodes := map[uint64]bool{}
	add := func(inode uint64) {
		if inode != 0 {
			inodes[inode] = true
		}
	}
	for _, s := range ls {
		if err := s.eachConnection(add); err != nil {
			return nil, fmt.Errorf("connections of listener %s: %w", s.Listener.Name, err)
		}
	}
	return inodes, nil
}

func (s *Socket) eachConnection(each func(inode uint64)) error {
	switch s.Listener.Network {
	case "udp":
		return nil
	case "unix":
		return eachUnix(s.Addr, 1<<established, each)
	}
	family, err := s.family()
	if err != nil {
		return err
	}
	return eachInet(family, unix.IPPROTO_TCP, connected, s.port(), 0, func(c inetSocket) { each(c.inode) })
}

// family is the one of s and of the connections that come through it, IPv4 ones on a dual-stack listener included.
func (s *Socket) family() (family uint8, err error) {
	err = control(s.File, func(fd int) error {
		domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
		family = uint8(domain)
		return err
	})
	return family, err
}

// place is where a process has a socket.
type place struct{ pid, fd int }

// heldBy tells which of the accepted sockets are open in one of pids, and in which descriptor.
func heldBy(pids []int, accepted map[uint64]bool) (map[uint64]place, error) {
	held := map[uint64]place{}
	if len(accepted) == 0 {
		return held, nil
	}
	for _, pid := range pids {
		err := eachSocket(pid, func(fd int, inode uint64) bool {
			if accepted[inode] {
				held[inode] = place{pid, fd}
			}
			return true
		})
		if err != nil {
			return nil, fmt.Errorf("sockets of process %d: %w", pid, err)
		}
	}
	return held, nil
}
