package procs

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// NoCgroup is the Spec.Cgroup of a group that shall not have one.
const NoCgroup = "none"

// Spec is a process tree to start.
type Spec struct {
	// Helper is the argv of a program that calls LaunchMain with what Launch appends to it, as in {"/proc/self/exe", "launch"}.
	// Without it the program is started directly: it gets no LISTEN_PID, and Files must be empty.
	Helper []string
	Name   string // of its cgroup; a number is appended if there is one already
	Cgroup string // in which directory to make its cgroup; empty: the delegated one if there is one; or NoCgroup

	Path   string     // what is executed; Find looks it up
	Args   []string   // argv, the name included
	Env    []string   // the whole environment but LISTEN_PID and WATCHDOG_PID; of equal names the last one counts
	Dir    string     // working directory
	Files  []*os.File // become fd 3 and up, in this order; they stay the caller's, and their blocking mode is left alone
	Stdout *os.File   // stays the caller's, but is switched to blocking mode, as programs expect; nil is /dev/null, as
	Stderr *os.File   // standard input always is

	// Born is called when the process is there, and before it becomes the app: what Born returns nil for runs, what it refuses never
	// does. If this program dies in it, or before it, the process ends by itself. It needs a Helper.
	Born func(*Group) error
}

// refused is an error of Spec.Born: no other way of starting is tried.
type refused struct{ error }

func (r refused) Unwrap() error { return r.error }

// Launch starts spec's process and returns when it has been executed. A refused execution is an *ExecError. The group is the
// caller's: wait for Done, then Kill what is left of it, then Remove.
func Launch(spec Spec) (*Group, error) {
	if spec.Path == "" || len(spec.Args) == 0 || (len(spec.Helper) == 0 && len(spec.Files) > 0) {
		return nil, errors.New("start a process: no path, no argv, or files without a helper")
	}
	if os.Getpid() == 1 { // in a container every orphan comes to us
		if err := adoptOrphans(); err != nil {
			return nil, err
		}
	}
	dir, err := newCgroup(spec)
	if err == nil {
		g, err := launchInCgroup(spec, dir)
		if err == nil || isFinal(err) || errors.Is(err, unix.EAGAIN) { // no process, wherever
			return g, err
		}
	} else if isFinal(err) {
		return nil, err
	}
	// Not delegated, or delegated in vain (clone3 is filtered, the hierarchy is threaded): the tree is found without it.
	t, err := newSession()
	if err != nil {
		return nil, err
	}
	return launch(spec, t, 0, "")
}

// launchInCgroup lets the kernel make the process right inside the cgroup; where the system call for that is forbidden
// (RestrictNamespaces= takes clone3 away) the helper joins it before it becomes the app.
func launchInCgroup(spec Spec, dir string) (*Group, error) {
	f, err := os.Open(dir)
	if err != nil {
		removeCgroup(dir)
		return nil, err
	}
	defer f.Close()
	t := &cgroupTree{dir: dir}
	g, err := launch(spec, t, int(f.Fd()), "") // a directory has no blocking mode that Fd could change
	if err != nil && !isFinal(err) && len(spec.Helper) > 0 {
		g, err = launch(spec, t, 0, dir)
	}
	if err != nil {
		removeCgroup(dir)
	}
	return g, err
}

// isFinal tells an error that no other way of starting would avoid, or that will be over at some time: a generation must not be without its
// cgroup because of that.
func isFinal(err error) bool {
	var exec *ExecError
	var no refused
	return errors.As(err, &exec) || errors.As(err, &no) || errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) || errors.Is(err, unix.ENOMEM)
}

// launch starts one process into tree t. cgroupFD is the cgroup to be born in, join the one that the helper enters.
func launch(spec Spec, t tree, cgroupFD int, join string) (*Group, error) {
	report, theirs, err := reportPair()
	if err != nil {
		return nil, err
	}
	defer report.Close()
	defer theirs.Close()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	pidfd := -1
	attr := &syscall.ProcAttr{Dir: spec.Dir, Env: t.env(lastOfEach(spec.Env)), Sys: &syscall.SysProcAttr{Setsid: true, PidFD: &pidfd}}
	if cgroupFD > 0 {
		attr.Sys.UseCgroupFD, attr.Sys.CgroupFD = true, cgroupFD
	}
	path, argv, files := spec.Path, spec.Args, []*os.File{null, orNull(spec.Stdout, null), orNull(spec.Stderr, null)}
	if err := withFDs(files, setBlocking); err != nil {
		return nil, err
	}
	if len(spec.Helper) > 0 {
		attr.Dir = "" // the helper goes there, and can tell if it cannot
		files = append(append(files, spec.Files...), theirs)
		path, argv = spec.Helper[0], helperArgs(spec, join)
	}
	g, err := start(path, argv, files, attr, t)
	if err != nil {
		return nil, startError(spec, cgroupFD > 0, err)
	}
	theirs.Close()
	err = letGo(report, g, spec)
	if err == nil {
		err = execReport(report, spec)
	}
	if err != nil {
		report.Close() // a helper that still waits for its word ends with it
		<-g.done
		g.forget()
		return nil, err
	}
	return g, nil
}

// reportPair is the line between Launch and LaunchMain: a byte one way, which lets the helper go on, and a report the other way.
func reportPair() (ours, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	unix.SetNonblock(fds[0], true) // so that waiting for the helper costs no thread
	return os.NewFile(uintptr(fds[0]), "report"), os.NewFile(uintptr(fds[1]), "report"), nil
}

// letGo is the moment from which the process may be the app.
func letGo(report *os.File, g *Group, spec Spec) error {
	if len(spec.Helper) == 0 {
		return nil
	}
	if spec.Born != nil {
		if err := spec.Born(g); err != nil {
			return refused{err}
		}
	}
	if _, err := report.Write([]byte{goOn}); err != nil {
		return fmt.Errorf("talk to the launch helper: %w", err)
	}
	return nil
}

func orNull(f, null *os.File) *os.File {
	if f == nil {
		return null
	}
	return f
}

// start makes the process and knows it before it can be reaped as a stranger.
func start(path string, argv []string, files []*os.File, attr *syscall.ProcAttr, t tree) (*Group, error) {
	groups.Lock()
	defer groups.Unlock()
	var pid int
	err := withFDs(files, func(fds []uintptr) (err error) {
		attr.Files = fds
		pid, _, err = syscall.StartProcess(path, argv, attr)
		return err
	})
	if err != nil {
		return nil, err
	}
	g := &Group{pid: pid, tree: t, done: make(chan struct{})}
	if g.main, err = pollablePidfd(*attr.Sys.PidFD); err != nil {
		syscall.Kill(pid, syscall.SIGKILL) // not reaped yet: it is still this one
		syscall.Wait4(pid, nil, 0, nil)
		return nil, fmt.Errorf("watch process %d (pidfds need Linux 5.4): %w", pid, err)
	}
	if s, ok := readStat(pid); ok { // it is there, if only as a zombie
		g.started = s.started
	}
	t.born(pid)
	groups.living[pid] = g
	go g.wait() // ends with the process
	return g, nil
}

// startError tells a program that could not be executed from everything else. In a cgroup the refusal may be the cgroup's.
func startError(spec Spec, inCgroup bool, err error) error {
	if inCgroup {
		return fmt.Errorf("start in a cgroup: %w", err)
	}
	if len(spec.Helper) > 0 {
		return fmt.Errorf("start the launch helper %s: %w", spec.Helper[0], err)
	}
	if spec.Dir != "" {
		if _, statErr := os.Stat(spec.Dir); statErr != nil {
			return &ExecError{Path: spec.Dir, Chdir: true, Err: err}
		}
	}
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, os.ErrPermission) || errors.Is(err, syscall.ENOEXEC) {
		return &ExecError{Path: spec.Path, Err: err}
	}
	return fmt.Errorf("start %s: %w", spec.Path, err)
}

// withFDs calls do with the descriptors of files. They are not taken out with Fd, which would switch what Go polls to blocking
// mode, and with it the same open socket in every other process.
func withFDs(files []*os.File, do func([]uintptr) error) error {
	return eachFD(files, nil, do)
}

func eachFD(files []*os.File, fds []uintptr, do func([]uintptr) error) error {
	if len(files) == 0 {
		return do(fds)
	}
	raw, err := files[0].SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	if err := raw.Control(func(fd uintptr) { inner = eachFD(files[1:], append(fds, fd), do) }); err != nil {
		return err
	}
	return inner
}

// setBlocking: a pipe that Go made is non-blocking, and a program that meets EAGAIN on its standard output loses what it
// wanted to say.
func setBlocking(fds []uintptr) error {
	for _, fd := range fds {
		flags, err := unix.FcntlInt(fd, unix.F_GETFL, 0)
		if err == nil && flags&unix.O_NONBLOCK != 0 {
			err = unix.SetNonblock(int(fd), false)
		}
		if err != nil {
			return os.NewSyscallError("fcntl", err)
		}
	}
	return nil
}

// lastOfEach drops all but the last of entries with equal names, as a shell's assignments would, and what only the helper
// can know.
func lastOfEach(env []string) []string {
	seen := map[string]bool{"LISTEN_PID": true, "LISTEN_PIDFDID": true, "WATCHDOG_PID": true}
	var out []string
	for _, kv := range slices.Backward(env) {
		name, _, _ := strings.Cut(kv, "=")
		if !seen[name] {
			seen[name] = true
			out = append(out, kv)
		}
	}
	slices.Reverse(out)
	return out
}

// helperArgs is the command line that LaunchMain takes apart.
func helperArgs(spec Spec, join string) []string {
	args := append(slices.Clone(spec.Helper), strconv.Itoa(3+len(spec.Files)), join, spec.Dir, spec.Path)
	return append(args, spec.Args...)
}

// execReport waits until the helper has become the app: then its end of the pipe closes by itself. Before that it says
// why it cannot.
func execReport(report *os.File, spec Spec) error {
	b, err := io.ReadAll(io.LimitReader(report, maxReport))
	if err != nil {
		return fmt.Errorf("hear from the launch helper: %w", err)
	}
	if len(b) == 0 {
		return nil
	}
	step, number, _ := strings.Cut(string(b), " ")
	errno, _ := strconv.Atoi(number)
	switch step {
	case stepExec:
		return &ExecError{Path: spec.Path, Err: syscall.Errno(errno)}
	case stepChdir:
		return &ExecError{Path: spec.Dir, Chdir: true, Err: syscall.Errno(errno)}
	}
	return fmt.Errorf("the launch helper cannot %s: %w", step, syscall.Errno(errno))
}
