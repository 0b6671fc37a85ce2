package sockets

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// eachSocket looks at all sockets that a process has open, until each returns false. A process that has ended has none. One
// whose descriptors we may not see is an error.
func eachSocket(pid int, each func(fd int, inode uint64) bool) error {
	dir, err := os.Open(fmt.Sprintf("/proc/%d/fd", pid))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil && !errors.Is(err, unix.ESRCH) && !errors.Is(err, fs.ErrNotExist) { // it has ended meanwhile
		return err
	}
	return control(dir, func(at int) error {
		link := make([]byte, 64) // longer than any socket's
		for _, name := range names {
			n, err := unix.Readlinkat(at, name, link) // a stat would ask the file system, which may hang
			if err != nil {
				continue // closed meanwhile
			}
			inode, ok := socketInode(string(link[:n]))
			if fd, err := strconv.Atoi(name); ok && err == nil && !each(fd, inode) {
				return nil
			}
		}
		return nil
	})
}

// socketInode reads what /proc/PID/fd/N links to. No path begins so.
func socketInode(link string) (inode uint64, ok bool) {
	number, ok := strings.CutPrefix(link, "socket:[")
	number, closed := strings.CutSuffix(number, "]")
	inode, err := strconv.ParseUint(number, 10, 64)
	return inode, ok && closed && err == nil
}
