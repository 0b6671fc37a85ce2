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
		for !waitsIn("Accept") {
			<-time.After(time.Millisecond) // nothing tells
		}
		l.pause()
		returns(t, l.rest, func() { // or it would block for ever
			go func() { <-accepted }()
			net.Dial("tcp", l.Addr().String())
		})
		l.proceed()
	}
}

func TestPackets_SomebodyMakesTheSocketBlocking_ReadsCanStillBeCalledOff(t *testing.T) {
	conn, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	p := gated(conn)
	defer p.Close()
	client, err := net.Dial("udp", p.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	read := make(chan struct{})
	go func() {
		for {
			if _, _, err := p.ReadFrom(make([]byte, 10)); err != nil {
				return
			}
			read <- struct{}{}
		}
	}()
	for range 20 {
		if err := control(conn, func(fd uintptr) { unix.SetNonblock(int(fd), false) }); err != nil {
			t.Fatal(err)
		}
		say(t, client, "hello")
		<-read
		for !waitsIn("ReadFrom") {
			<-time.After(time.Millisecond) // nothing tells
		}
		returns(t, p.pause, func() {
			go func() { <-read }()
			say(t, client, "wake up")
		})
		p.proceed()
	}
}

// returns waits for what waits itself for a call that may block in the kernel; free ends that.
func returns(t *testing.T, f, free func()) {
	t.Helper()
	returned := make(chan struct{})
	go func() { defer close(returned); f() }()
	select {
	case <-returned:
	case <-within(t).Done():
		free()
		t.Fatal("a call blocks in the kernel")
	}
}

// waitsIn tells whether such a call waits: in the poller, or in the kernel.
func waitsIn(call string) bool {
	b := make([]byte, 1<<20)
	waiting := regexp.MustCompile(`\[(IO wait|syscall)[^\]]*\]:\n([^\n]+\n)*internal/poll\.\(\*FD\)\.` + call)
	return waiting.Match(b[:runtime.Stack(b, true)])
}
