//go:build unix

package systemd

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
)

// startWith runs a role with files as descriptors 3 and up.
func startWith(t *testing.T, role string, files []*os.File, env ...string) string {
	t.Helper()
	child := roleCommand(role, env...)
	child.ExtraFiles = files
	var out bytes.Buffer
	child.Stdout, child.Stderr = &out, &out
	if err := child.Run(); err != nil {
		t.Fatalf("%s: %v\n%s", role, err, out.String())
	}
	return strings.TrimSpace(out.String())
}

func passListener(t *testing.T) *os.File {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f, err := ln.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close(); f.Close() })
	return f
}

func TestListeners_OrderNamesAndNothingLeftForChildren(t *testing.T) {
	files := []*os.File{passListener(t), passListener(t), passListener(t)}
	for _, mode := range []string{"nonblock=false", "nonblock=true"} { // shared with older processes: it stays as it was
		got := startWith(t, "list listeners", files, "LISTEN_PID=self", "LISTEN_FDS=3", "LISTEN_FDNAMES=web::web", "LISTEN_PIDFDID=1", "SET="+mode)
		want := "web cloexec MODE\nLISTEN_FD_4 cloexec MODE\nweb cloexec MODE\nenvironment: \nsecond call: 0"
		if want = strings.ReplaceAll(want, "MODE", mode); got != want {
			t.Errorf("got\n%s\nwant\n%s", got, want)
		}
	}
}

func TestListeners_NonePassed_IsAnEmptyList(t *testing.T) {
	for name, env := range map[string][]string{
		"no variables":         nil,
		"for some other child": {"LISTEN_PID=1", "LISTEN_FDS=1"},
		"not a number":         {"LISTEN_PID=self", "LISTEN_FDS=x"},
		"a negative number":    {"LISTEN_PID=self", "LISTEN_FDS=-1"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := startWith(t, "list listeners", nil, env...); got != "environment: \nsecond call: 0" {
				t.Error(got)
			}
		})
	}
}

func TestListeners_AnnouncedButNotPassed_IsAnError(t *testing.T) {
	got := startWith(t, "miss a listener", []*os.File{passListener(t)}, "LISTEN_PID=self", "LISTEN_FDS=300", "LISTEN_FDNAMES=web")
	if !strings.Contains(got, "passed by systemd") {
		t.Errorf("got %q", got)
	}
}

func init() {
	roles["list listeners"] = listListeners
	roles["miss a listener"] = func() error {
		if files, err := Listeners(); err == nil {
			return fmt.Errorf("%d files and no error", len(files))
		} else {
			fmt.Println(err)
		}
		return nil
	}
}

func listListeners() error {
	for fd := 3; fd < 6 && os.Getenv("SET") == "nonblock=true"; fd++ {
		syscall.SetNonblock(fd, true)
	}
	files, err := Listeners()
	if err != nil {
		return err
	}
	for _, f := range files {
		flags, err := descriptorFlags(f)
		if err != nil {
			return err
		}
		fmt.Println(f.Name(), flags)
	}
	var left []string
	for _, line := range os.Environ() {
		if strings.HasPrefix(line, "LISTEN_") {
			left = append(left, line)
		}
	}
	again, err := Listeners()
	fmt.Printf("environment: %s\nsecond call: %d\n", strings.Join(left, " "), len(again))
	return err
}

func descriptorFlags(f *os.File) (string, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return "", err
	}
	var fdFlags, status uintptr
	var e1, e2 syscall.Errno
	err = raw.Control(func(fd uintptr) {
		fdFlags, _, e1 = syscall.Syscall(syscall.SYS_FCNTL, fd, syscall.F_GETFD, 0)
		status, _, e2 = syscall.Syscall(syscall.SYS_FCNTL, fd, syscall.F_GETFL, 0)
	})
	if err != nil || e1 != 0 || e2 != 0 {
		return "", errors.Join(err, e1, e2)
	}
	name := "inheritable"
	if fdFlags&syscall.FD_CLOEXEC != 0 {
		name = "cloexec"
	}
	return fmt.Sprintf("%s nonblock=%t", name, status&syscall.O_NONBLOCK != 0), nil
}
