package sockets

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/hotdeploy/hotdeploy/internal/release"
)

// holder tells who has a listener's port, as far as we may see it, as in " by nginx (pid 812)"; nothing if that is unknown.
func holder(l release.Listener) string {
	host, p, err := net.SplitHostPort(l.Address)
	if err != nil {
		return ""
	}
	port, err := strconv.ParseUint(p, 10, 16)
	if err != nil {
		return ""
	}
	want, _ := netip.ParseAddr(host) // a name is as good as everywhere
	protocol := uint8(unix.IPPROTO_TCP)
	if l.Network == "udp" {
		protocol = unix.IPPROTO_UDP
	}
	listeners, others := map[uint64]uint32{}, map[uint64]uint32{}
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		eachInet(family, protocol, anyState&^(1<<timeWait), uint16(port), 0, func(s inetSocket) {
			switch {
			case s.inode == 0 || !overlap(want.Unmap(), s.local.Addr()):
			case s.state == listening:
				listeners[s.inode] = s.uid
			default:
				others[s.inode] = s.uid
			}
		})
	}
	if len(listeners) == 0 {
		listeners = others // a port can also be taken by a connection that starts from it
	}
	return describe(listeners)
}

// overlap tells whether sockets on both addresses would be in each other's way.
func overlap(a, b netip.Addr) bool {
	return !a.IsValid() || a.IsUnspecified() || b.IsUnspecified() || a.WithZone("") == b.WithZone("")
}

// holderOfPath tells the same of a unix socket.
func holderOfPath(path string) string {
	inodes := map[uint64]uint32{}
	eachUnix(path, 1<<listening, func(inode uint64) { inodes[inode] = unknownUser })
	return describe(inodes)
}

const unknownUser = ^uint32(0)

// describe names processes that have one of the sockets, or else their users.
func describe(inodes map[uint64]uint32) string {
	const most = 3
	if names := owners(inodes); len(names) > most {
		return fmt.Sprintf(" by %s and %d more", strings.Join(names[:most], ", "), len(names)-most)
	} else if len(names) > 0 {
		return " by " + strings.Join(names, " and ")
	}
	for _, uid := range inodes {
		if uid != unknownUser {
			return fmt.Sprintf(" by a process of uid %d", uid)
		}
	}
	return ""
}

// owners looks through all processes that we may look into.
func owners(inodes map[uint64]uint32) []string {
	if len(inodes) == 0 {
		return nil
	}
	all, _ := os.ReadDir("/proc")
	var names []string
	for _, e := range all {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		eachSocket(pid, func(_ int, inode uint64) bool {
			if _, has := inodes[inode]; !has {
				return true
			}
			comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
			names = append(names, fmt.Sprintf("%s (pid %d)", printable(strings.TrimSpace(string(comm))), pid))
			return false
		})
	}
	return names
}

// printable: a process chooses its name itself, and ours goes to terminals.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if strconv.IsPrint(r) {
			return r
		}
		return '?'
	}, s)
}
