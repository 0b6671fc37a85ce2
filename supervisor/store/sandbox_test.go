package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Under systemd's RestrictSUIDSGID= the setgid bit cannot be set. It must be inherited then, or who uploads with a strict
// umask makes files that the service cannot read.
func TestInASandbox_UploadsStillBelongToTheGroup(t *testing.T) {
	for _, umask := range []string{"0", "7", "27", "77"} {
		dir := t.TempDir()
		incoming := filepath.Join(dir, "incoming")
		must(t, os.Mkdir(incoming, 0o700))
		must(t, os.Chmod(incoming, 0o770|os.ModeSetgid)) // as set-up did
		out, err := childCommand(t, "sandboxed", "", dir, umask).CombinedOutput()
		if strings.Contains(string(out), "cannot sandbox") {
			cannot(t, "%s", out)
		}
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		_, _, digest := one.manifest(t)
		if fi, err := os.Stat(filepath.Join(incoming, digest, "parts")); err != nil || fi.Mode() != os.ModeDir|os.ModeSetgid|0o770 {
			t.Errorf("umask %s: %v, %v", umask, fi.Mode(), err)
		}
	}
}

func init() {
	children["sandboxed"] = func(args []string) error {
		var umask int
		fmt.Sscanf(args[1], "%o", &umask)
		unix.Umask(umask)
		if err := forbidSetgid(); err != nil {
			return fmt.Errorf("cannot sandbox: %w", err)
		}
		if err := os.Chmod(args[0], os.ModeSetgid|0o755); !errors.Is(err, os.ErrPermission) {
			return fmt.Errorf("cannot sandbox: chmod: %w", err)
		}
		s, err := Open(args[0], "chat")
		if err != nil {
			return err
		}
		plan(childT{}, s, one)
		if now := unix.Umask(0); now != umask {
			return fmt.Errorf("the umask became %#o", now)
		}
		return s.Close()
	}
}

// forbidSetgid does for all threads what RestrictSUIDSGID= does, as far as chmod goes.
func forbidSetgid() error {
	const load, ifEqual, ifSet, ret = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, unix.BPF_JMP | unix.BPF_JEQ, unix.BPF_JMP | unix.BPF_JSET, unix.BPF_RET
	filter := []unix.SockFilter{
		{Code: load, K: 0}, // the number of the system call
		{Code: ifEqual, K: unix.SYS_FCHMODAT, Jt: 1},
		{Code: ifEqual, K: unix.SYS_FCHMODAT2, Jf: 2},
		{Code: load, K: 16 + 2*8}, // its third argument
		{Code: ifSet, K: unix.S_ISGID, Jt: 1},
		{Code: ret, K: unix.SECCOMP_RET_ALLOW},
		{Code: ret, K: unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)},
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&program)))
	if errno != 0 {
		return errno
	}
	return nil
}
