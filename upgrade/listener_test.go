package upgrade

import (
	"net"
	"regexp"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The socket's mode belongs to everybody who has it.
func TestListener_SomebodyMakesTheSocketBlocking_AcceptCanStillBeCalledOff(t *testing.T) {
	l := newTestListener(t, Lines())
	accepted := make(chan net.Conn)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			accepted <- c
		}
	}()
	for range 20 {
		if err := control(l.base, func(fd uintptr) { unix.SetNonblock(int(fd), false) }); err != nil {
			t.Fatal(err)
		}
		client, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		(<-accepted).Close()
		for !acceptWaits() {
			<-time.After(time.Millisecond) // nothing tells
		}
		l.pause()
		rests := make(chan struct{})
		go func() { defer close(rests); l.rest() }()
		select {
		case <-rests:
		case <-within(t).Done():
			go func() { <-accepted }()
			net.Dial("tcp", l.Addr().String()) // or it would for ever
			t.Fatal("an Accept blocks in the kernel")
		}
		l.proceed()
	}
}

var waitingAccept = regexp.MustCompile(`\[(IO wait|syscall)[^\]]*\]:\n([^\n]+\n)*internal/poll\.\(\*FD\)\.Accept`)

// acceptWaits tells whether an Accept waits: in the poller, or in the kernel.
func acceptWaits() bool {
	b := make([]byte, 1<<20)
	return waitingAccept.Match(b[:runtime.Stack(b, true)])
}
