package upgrade_test

import (
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// openTerminal makes one: what hangs it up, and what a process gets.
func openTerminal(t *testing.T) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { master.Close() })
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|syscall.O_NOCTTY, 0); err != nil {
		t.Fatal(err)
	}
	return master, slave
}

// In a terminal SIGHUP has two meanings.
func TestAlone_InATerminal(t *testing.T) {
	for _, tc := range []struct {
		name  string
		words []string // before the app
		goes  bool     // the app ends with the terminal
	}{
		{"by itself", nil, true},
		{"from a shell", []string{"sh", "-c", `"$@" & while read x; do :; done`, "sh"}, true},
		{"with nohup, from a shell", []string{"sh", "-c", `nohup "$@" & while read x; do :; done`, "sh"}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			master, slave := openTerminal(t)
			l := prepareLone(t)
			if tc.words != nil {
				l.cmd.Args = append(tc.words, l.binary)
				l.cmd.Path, l.cmd.Err = exec.LookPath("sh")
			}
			l.cmd.Stdin = slave
			l.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
			l.start()
			slave.Close()
			l.upgrade() // somebody asks
			l.upgrade()
			d := l.load(5, 0)
			serves := l.readPID()
			master.Close()
			l.signal(serves, syscall.SIGHUP) // as a shell that knows jobs does
			if tc.goes {
				l.out.await(t, "the terminal is gone: ending")
				l.unnoticed(d) // it drains
				<-l.out.ended
				return
			}
			l.beat(d)
			l.upgrade()
			l.unnoticed(d)
		})
	}
}
