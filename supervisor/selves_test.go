package supervisor

import (
	"net"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/hotdeploy/hotdeploy/internal/release"
)

// selves are apps that the test binary can be, for misbehaviour that is not worth a flag of wsecho.
var selves = map[string]func(){}

// self lets a release start one of them.
func self(name string) change {
	return func(s *release.Spec) {
		exe, err := os.Executable()
		if err != nil {
			panic(err)
		}
		s.Run.Command = []string{exe, "app", name}
	}
}

// notify is a datagram to the supervisor, as an app sends it: it waits for room in the queue.
func notify(state string) {
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: os.Getenv("NOTIFY_SOCKET"), Net: "unixgram"})
	if err != nil {
		panic(err)
	}
	defer c.Close()
	if _, err := c.Write([]byte(state)); err != nil {
		panic(err)
	}
}

func untilSIGTERM() {
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	<-term
}

// lessThanSlow is not enough for "slow but alive" unless it gets more.
const lessThanSlow = 4 * time.Second

func init() {
	selves["slow but alive"] = func() { // it takes longer than it may, and says so
		notify("EXTEND_TIMEOUT_USEC=60000000")
		time.Sleep(lessThanSlow + time.Second)
		notify("READY=1")
		untilSIGTERM()
	}
	selves["ready by a child"] = func() {
		if os.Getenv("CHILD") != "" {
			notify("READY=1\nSTATUS=said by a child")
			untilSIGTERM() // whose word it was can be told only while it lives
			return
		}
		_, err := os.StartProcess("/proc/self/exe", os.Args, &os.ProcAttr{Env: append(os.Environ(), "CHILD=1"), Files: []*os.File{nil, os.Stdout, os.Stderr}})
		if err != nil {
			panic(err)
		}
		untilSIGTERM()
	}
	selves["much to say at the end"] = func() {
		notify("READY=1")
		untilSIGTERM()
		for range 100 {
			notify("STATUS=still saying good bye")
		}
	}
}
