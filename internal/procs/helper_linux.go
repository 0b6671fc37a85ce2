package procs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The steps at which the helper can fail, as it reports them.
const (
	stepJoin  = "join"
	stepChdir = "chdir"
	stepExec  = "exec"

	maxReport = 64
	goOn      = 'g' // what the helper waits for
)

// LaunchMain is the child's half of Launch: it names itself in LISTEN_PID, which nobody else can know in time, and becomes the
// app. args are the descriptor of the line to Launch, the cgroup to join (or nothing), the working directory, the path and the
// app's argv. It never returns.
func LaunchMain(args []string) {
	report, err := -1, errors.New("too few arguments")
	if len(args) >= 5 {
		report, err = strconv.Atoi(args[0])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "launch: started by the supervisor only:", err)
		os.Exit(2)
	}
	step, err := become(report, args[1], args[2], args[3], args[4:])
	errno := syscall.EINVAL
	errors.As(err, &errno)
	unix.Write(report, []byte(step+" "+strconv.Itoa(int(errno))))
	os.Exit(127)
}

// become returns only if it fails.
func become(report int, join, dir, path string, argv []string) (step string, err error) {
	closeOnExec(report)
	if join != "" {
		if err := writeControl(filepath.Join(join, "cgroup.procs"), "0"); err != nil {
			return stepJoin, err
		}
	}
	if !mayGoOn(report) { // whoever started us died before he had written down that we are there
		os.Exit(0)
	}
	if dir != "" {
		if err := os.Chdir(dir); err != nil {
			return stepChdir, err
		}
	}
	env := withPid(os.Environ(), os.Getpid())
	runtime.LockOSThread() // the mask belongs to the thread, and the thread that calls execve gives its own to the app
	defaultSignals()
	return stepExec, syscall.Exec(path, argv, env)
}

// mayGoOn waits for Launch's word. The end of file means that nobody will ever say it.
func mayGoOn(report int) bool {
	var b [1]byte
	for {
		n, err := unix.Read(report, b[:])
		if err != unix.EINTR {
			return n == 1 && b[0] == goOn
		}
	}
}

// withPid tells the app that the sockets, and the watchdog, are meant for it (sd_listen_fds(3), sd_watchdog_enabled(3)).
func withPid(env []string, pid int) []string {
	has := func(name string) bool {
		return slices.ContainsFunc(env, func(kv string) bool { return strings.HasPrefix(kv, name+"=") })
	}
	if has("LISTEN_FDS") {
		env = append(env, "LISTEN_PID="+strconv.Itoa(pid))
	}
	if has("WATCHDOG_USEC") {
		env = append(env, "WATCHDOG_PID="+strconv.Itoa(pid))
	}
	return env
}

// closeOnExec marks everything from fd on: the line to Launch, and whatever a careless ancestor let through.
func closeOnExec(from int) {
	if unix.CloseRange(uint(from), ^uint(0), unix.CLOSE_RANGE_CLOEXEC) == nil {
		return
	}
	names, _ := os.ReadDir("/proc/self/fd") // before Linux 5.11
	for _, n := range names {
		if fd, err := strconv.Atoi(n.Name()); err == nil && fd >= from {
			unix.CloseOnExec(fd)
		}
	}
}

// defaultSignals undoes what execve would keep: ignored signals (nohup) and the thread's blocked ones. Handlers go by themselves.
func defaultSignals() {
	var action, now [4]uint64 // struct kernel_sigaction on 64-bit machines: the handler comes first, 0 is SIG_DFL, 1 SIG_IGN
	for sig := uintptr(1); sig <= 64; sig++ {
		unix.RawSyscall6(unix.SYS_RT_SIGACTION, sig, 0, uintptr(unsafe.Pointer(&now)), 8, 0, 0)
		if now[0] == 1 {
			unix.RawSyscall6(unix.SYS_RT_SIGACTION, sig, uintptr(unsafe.Pointer(&action)), 0, 8, 0, 0)
		}
	}
	unix.PthreadSigmask(unix.SIG_SETMASK, new(unix.Sigset_t), nil)
}
