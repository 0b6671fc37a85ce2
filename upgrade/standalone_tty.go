package upgrade

import (
	"os"
	"os/signal"
	"syscall"
)

// This file tells the two meanings of SIGHUP apart: somebody asks for an upgrade, or the terminal is gone. The kernel takes the terminal away before it sends
// the signal.

// nohup is set for the processes that follow one that was started to survive its terminal (nohup(1)): taking SIGHUP over has lost that.
const nohup = "HOTDEPLOY_NOHUP"

// hasTerminal says whether this process has a controlling terminal.
func hasTerminal() bool {
	f, err := os.OpenFile("/dev/tty", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		return false
	}
	f.Close()
	return true
}

// noteNohup is to be called before SIGHUP is taken over.
func noteNohup() {
	if signal.Ignored(syscall.SIGHUP) {
		os.Setenv(nohup, "1")
	}
}

// hangUp ends what a terminal's end would have ended, but in good order.
func (s *standalone) hangUp() {
	s.terminal = false
	if os.Getenv(nohup) != "" {
		return
	}
	s.u.opt.Log("upgrade: the terminal is gone: ending")
	s.u.stopOnce.Do(func() { close(s.u.stop) })
}
