package remote_test

import (
	"context"
	"io"
	"os"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/hotdeploy/hotdeploy/remote"
)

var ourGoroutine = regexp.MustCompile(`hotdeploy/remote\.(\(\*(Session|running|upload|pipeline|dialer|patience|proxyConn|agentKeys)\)|openAgent|startProxy)`)

// goroutinesOf are the stacks of goroutines that belong to a session.
func goroutinesOf() (stacks []string) {
	buf := make([]byte, 4<<20)
	buf = buf[:runtime.Stack(buf, true)]
	for _, stack := range strings.Split(string(buf), "\n\n") {
		if ourGoroutine.MatchString(stack) {
			stacks = append(stacks, stack)
		}
	}
	return stacks
}

func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skip("no /proc")
	}
	return len(entries)
}

// TestSession_LeavesNothingBehind: what was begun and abandoned in every
// way ends with the session.
func TestSession_LeavesNothingBehind(t *testing.T) {
	onEveryServer(t, func(t *testing.T, start startServer) {
		h, srv, r := relayed(t, start)
		before := openFiles(t)
		s := dial(t, h, quick)
		ctx, cancel := context.WithCancel(t.Context())
		conn, err := s.DialCommand(ctx, []string{"cat"})
		if err != nil {
			t.Fatal(err)
		}
		read := make(chan struct{})
		go func() { defer close(read); conn.Read(make([]byte, 1)) }()
		ran := make(chan struct{})
		input, endInput := io.Pipe()
		go func() { defer close(ran); s.Run(ctx, []string{"cat"}, input, nil, nil) }()
		if err := remote.Upload(ctx, s, t.TempDir(), []remote.Part{partOf(randomBytes(1<<20, 1))}, nil); err != nil {
			t.Fatal(err)
		}
		r.after(1<<20, cancel)
		remote.Upload(ctx, s, t.TempDir(), []remote.Part{partOf(randomBytes(8<<20, 1))}, nil)
		<-ran
		endInput.Close() // until then its Read is ours to wait for
		r.die()
		<-read
		<-s.Done()
		s.Close()
		srv.drop()                                                                             // its files count too where it is in this process
		settled := func() bool { return len(goroutinesOf()) == 0 && openFiles(t) <= before+2 } // the relay's own two
		for limit := time.Now().Add(20 * time.Second); !settled() && time.Now().Before(limit); {
			runtime.Gosched()
		}
		if left := goroutinesOf(); len(left) > 0 {
			t.Errorf("left behind:\n%s", strings.Join(left, "\n\n"))
		}
		if now := openFiles(t); now > before+2 {
			t.Errorf("%d files are open, %d were", now, before)
		}
	})
}
