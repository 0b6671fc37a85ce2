package remote_test

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/hotdeploy/hotdeploy/internal/api"
	"github.com/hotdeploy/hotdeploy/remote"
)

func TestLine_DeadOneIsNoticedByWhateverWaits(t *testing.T) {
	onEveryServer(t, func(t *testing.T, start startServer) {
		t.Parallel() // it waits for seconds
		h, _, r := relayed(t, start)
		s := dial(t, h, quick)
		started := make(chan struct{}, 1)
		out := writerFunc(func(p []byte) (int, error) { started <- struct{}{}; return len(p), nil })
		ran := make(chan error, 1)
		go func() { ran <- s.Run(context.Background(), []string{"sh", "-c", "echo; cat"}, endless(t), out, nil) }()
		conn, err := s.DialCommand(deadline(t), []string{"cat"})
		if err != nil {
			t.Fatal(err)
		}
		read := make(chan error, 1)
		go func() { _, err := conn.Read(make([]byte, 1)); read <- err }()
		select {
		case <-started:
		case <-s.Done():
			t.Fatalf("lost: %v", s.Err())
		}
		r.die()
		for what, got := range map[string]chan error{"Run": ran, "Read": read} {
			if err := <-got; !errors.Is(err, remote.ErrLineLost) || errors.Is(err, remote.ErrNeverRan) {
				t.Errorf("%s: got %v", what, err)
			}
		}
		<-s.Done()
		if !errors.Is(s.Err(), remote.ErrLineLost) {
			t.Errorf("got %v", s.Err())
		}
		err = s.Run(deadline(t), []string{"true"}, nil, nil, nil)
		if !errors.Is(err, remote.ErrLineLost) || !errors.Is(err, remote.ErrNeverRan) {
			t.Errorf("after that: got %v", err)
		}
	})
}

func TestLine_QuietOneStaysUp(t *testing.T) {
	onEveryServer(t, func(t *testing.T, start startServer) {
		h, _, r := relayed(t, start)
		s := dial(t, h, remote.Options{KeepAlive: 5 * time.Millisecond, KeepAliveMax: 10_000})
		// twenty keepalives have passed both ways when so much has gone up
		passed := make(chan struct{})
		r.after(20*50, func() { close(passed) })
		select {
		case <-passed:
		case <-s.Done():
			t.Fatalf("lost: %v", s.Err())
		case <-deadline(t).Done():
			t.Fatal("no keepalives")
		}
		if err := s.Run(deadline(t), []string{"true"}, nil, nil, nil); err != nil {
			t.Error(err)
		}
	})
}

// TestLine_SlowOneIsNotTakenForADeadOne: the keepalive waits behind megabytes
// of upload, but the upload's own answers are signs of life.
func TestLine_SlowOneIsNotTakenForADeadOne(t *testing.T) {
	onEveryServer(t, func(t *testing.T, start startServer) {
		t.Parallel() // it waits for seconds
		h, _, r := relayed(t, start)
		tick := time.NewTicker(100 * time.Millisecond) // for each 16 KiB: what SSH sends at once, 2 MiB, takes 13 s
		defer tick.Stop()
		s := dial(t, h, remote.Options{KeepAlive: 100 * time.Millisecond, KeepAliveMax: 100})
		over := make(chan struct{})
		defer close(over)
		r.each(func() {
			select {
			case <-tick.C:
			case <-over:
			}
		})
		part := partOf(randomBytes(5<<19, 1))
		if err := remote.Upload(deadline(t), s, t.TempDir(), []remote.Part{part}, nil); err != nil {
			t.Error(err)
		}
	})
}

func TestLine_CutByTheServerIsLost(t *testing.T) {
	onEveryServer(t, func(t *testing.T, start startServer) {
		h, srv := newHost(t, start)
		s := dial(t, h, remote.Options{})
		out := writerFunc(func(p []byte) (int, error) { go srv.drop(); return len(p), nil })
		err := s.Run(deadline(t), []string{"sh", "-c", "echo; cat"}, endless(t), out, nil)
		if !errors.Is(err, remote.ErrLineLost) {
			t.Errorf("got %v", err)
		}
	})
}

func TestLine_ClosedByUsIsNotLost(t *testing.T) {
	h, _ := newHost(t, startInProcess)
	s := dial(t, h, remote.Options{})
	s.Close()
	<-s.Done()
	err := s.Run(deadline(t), []string{"true"}, nil, nil, nil)
	if !errors.Is(err, remote.ErrClosed) || errors.Is(err, remote.ErrLineLost) || !errors.Is(err, remote.ErrNeverRan) {
		t.Errorf("got %v", err)
	}
}

func TestDial_ServerThatSaysNothingIsUnreachable(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	h, _ := newHost(t, startInProcess)
	h.Port = ln.Addr().(*net.TCPAddr).Port
	var unreachable *remote.ErrUnreachable
	if _, err := remote.Dial(deadline(t), h, remote.Options{ConnectTimeout: 50 * time.Millisecond}); !errors.As(err, &unreachable) {
		t.Errorf("got %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	go func() { // the first is that of above
		ln.Accept()
		ln.Accept()
		cancel()
	}()
	if _, err := remote.Dial(ctx, h, remote.Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// Whatever notices a lost line says so once, and in words.
func TestLine_LostIsSaidOnceAndInWords(t *testing.T) {
	onEveryServer(t, func(t *testing.T, start startServer) {
		h, srv := newHost(t, start)
		s := dial(t, h, remote.Options{})
		conn, err := s.DialCommand(deadline(t), []string{"cat"})
		if err != nil {
			t.Fatal(err)
		}
		client := remote.Control(s, "chat", t.TempDir()+"/control.sock")
		defer client.Close()
		srv.drop()
		_, readErr := conn.Read(make([]byte, 1))
		_, statusErr := client.Status(deadline(t))
		_, dialErr := s.DialUnix(deadline(t), "/run/nothing.sock")
		for what, err := range map[string]error{
			"read": readErr, "status": statusErr, "dial": dialErr, "session": s.Err(),
			"run":  s.Run(deadline(t), []string{"true"}, nil, nil, nil),
			"over": &api.LineError{Op: "GET /v1/status", Sent: true, Err: readErr},
		} {
			if err == nil {
				t.Errorf("%s: nothing was lost", what)
				continue
			}
			text := err.Error()
			for _, word := range []string{"closed network connection", "unexpected packet", "<nil>", "EOF"} {
				if strings.Contains(text, word) {
					t.Errorf("%s: %q", what, text)
				}
			}
			if n := strings.Count(text, "the line was lost"); n != 1 {
				t.Errorf("%s: %q says it %d times", what, text, n)
			}
		}
	})
}
