package procs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// Spec is a process to start.
type Spec struct {
	Helper []string // argv of the launch helper, which calls LaunchMain with what follows
	Name   string   // of its cgroup, unique among ours
	Path   string   // what is executed; no search
	Args   []string // argv, the name included
	Env    []string // the whole environment but LISTEN_PID
	Dir    string
	Files  []*os.File // become fd 3 and up, in this order; they stay the caller's
	Stdout *os.File   // likewise
	Stderr *os.File
}

// ExecError is a start command that the kernel refused to execute. It wraps the errno: errors.Is works with os.ErrNotExist and
// os.ErrPermission.
type ExecError struct {
	Path string
	Err  error
}

func (e *ExecError) Error() string {
	switch {
	case errors.Is(e.Err, syscall.ENOENT):
		if _, err := os.Stat(e.Path); err == nil {
			return fmt.Sprintf("%s: its interpreter is not on this host", e.Path)
		}
		return e.Path + ": no such file"
	case errors.Is(e.Err, os.ErrPermission):
		return e.Path + ": not executable"
	case errors.Is(e.Err, syscall.ENOEXEC):
		return e.Path + ": not a program for this machine (no #! line?)"
	}
	return e.Path + ": " + e.Err.Error()
}

func (e *ExecError) Unwrap() error { return e.Err }

// Launch starts spec's process and returns when it has been executed. A refused execution is an *ExecError. The group is the
// caller's: wait for Done, then Kill what is left of it, then Remove.
func Launch(spec Spec) (*Group, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	defer w.Close()
	report := 3 + len(spec.Files) // the helper's end of the pipe; it closes by itself when the app is executed
	argv := append(append([]string(nil), spec.Helper[1:]...), strconv.Itoa(report), spec.Path)
	cmd := exec.Command(spec.Helper[0], append(argv, spec.Args...)...)
	cmd.Env, cmd.Dir = spec.Env, spec.Dir
	cmd.Stdout, cmd.Stderr = spec.Stdout, spec.Stderr
	cmd.ExtraFiles = append(append([]*os.File(nil), spec.Files...), w)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	g := &Group{cmd: cmd, done: make(chan struct{})}
	if g.cgroup, err = makeCgroup(spec.Name); err != nil {
		return nil, err
	}
	if err := g.startInCgroup(); err != nil {
		g.Remove()
		return nil, fmt.Errorf("start the launch helper: %w", err)
	}
	g.pid = cmd.Process.Pid
	go g.wait()
	w.Close()
	if err := execReport(r); err != nil {
		<-g.done
		g.Remove()
		return nil, &ExecError{Path: spec.Path, Err: err}
	}
	return g, nil
}

// startInCgroup starts the process right inside its cgroup, so that nothing it forks can be missed.
func (g *Group) startInCgroup() error {
	if g.cgroup == "" {
		// Orphans of the tree become our children, so that they can be found and reaped.
		if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
			return os.NewSyscallError("prctl", err)
		}
		return g.cmd.Start()
	}
	dir, err := os.Open(g.cgroup)
	if err != nil {
		return err
	}
	defer dir.Close()
	raw, err := dir.SyscallConn()
	if err != nil {
		return err
	}
	var startErr error
	err = raw.Control(func(fd uintptr) {
		g.cmd.SysProcAttr.UseCgroupFD, g.cmd.SysProcAttr.CgroupFD = true, int(fd)
		startErr = g.cmd.Start()
	})
	return errors.Join(err, startErr)
}

// execReport is nil at end of file: the pipe was closed by a successful execution.
func execReport(r *os.File) error {
	var errno [4]byte
	_, err := io.ReadFull(r, errno[:])
	switch {
	case err == io.EOF:
		return nil
	case err != nil:
		return err
	}
	return syscall.Errno(binary.LittleEndian.Uint32(errno[:]))
}

// LaunchMain is the launch helper: it names itself in LISTEN_PID, which nobody else can know in time, and becomes the app. args
// are the report pipe's descriptor, the path and the app's argv. It never returns.
func LaunchMain(args []string) {
	if len(args) < 3 {
		fmt.Fprintln(os.Stderr, "launch: started by hotdeployd only")
		os.Exit(2)
	}
	report, err := strconv.Atoi(args[0])
	if err != nil {
		fmt.Fprintln(os.Stderr, "launch: started by hotdeployd only")
		os.Exit(2)
	}
	signal.Reset()
	unix.CloseOnExec(report)
	env := os.Environ()
	if _, ok := os.LookupEnv("LISTEN_FDS"); ok {
		env = append(env, "LISTEN_PID="+strconv.Itoa(os.Getpid()))
	}
	err = syscall.Exec(args[1], args[2:], env)
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		errno = syscall.EINVAL
	}
	unix.Write(report, binary.LittleEndian.AppendUint32(nil, uint32(errno)))
	os.Exit(127)
}
