package sockets

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"

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
		var st unix.Stat_t
		for _, name := range names {
			if unix.Fstatat(at, name, &st, 0) != nil || st.Mode&unix.S_IFMT != unix.S_IFSOCK {
				continue // closed meanwhile, or something else
			}
			if fd, err := strconv.Atoi(name); err == nil && !each(fd, st.Ino) {
				return nil
			}
		}
		return nil
	})
}
