package sockets

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

func TestCloseConnections_ClosesAllOfOneGenerationWithoutItsHelp(t *testing.T) {
	eachNetwork(t, func(t *testing.T, s *Socket) {
		older, newer := startApp(t, nil, s.File), startApp(t, nil, s.File)
		gone, kept := accepted(t, s, older, 20), accepted(t, s, newer, 5)
		n, err := CloseConnections(t.Context(), older.pids(), nil, []*Socket{s}, 20*time.Millisecond)
		if n != 20 || err != nil {
			t.Errorf("closed %d, %v", n, err)
		}
		for i, c := range gone {
			c.SetReadDeadline(time.Now().Add(time.Minute))
			if _, err := c.Read(make([]byte, 1)); err != io.EOF {
				t.Errorf("connection %d reads %v", i, err)
			}
		}
		for i, c := range kept {
			c.SetReadDeadline(time.Unix(1, 0))
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("connection %d of the newer generation reads %v", i, err)
			}
		}
		accepted(t, s, older, 1) // the listener is not hurt
		if n, err := CloseConnections(t.Context(), nil, nil, []*Socket{s}, time.Hour); n != 0 || err != nil {
			t.Errorf("of nobody: %d, %v", n, err)
		}
	})
}

// A connection that is on its way to another generation, or has just arrived there, is open in both.
func TestCloseConnections_LeavesWhatAnotherProcessHas(t *testing.T) {
	eachNetwork(t, func(t *testing.T, s *Socket) {
		older := startApp(t, nil, s.File)
		conns := accepted(t, s, older, 20)
		held, err := closable(older.pids(), []*Socket{s})
		if err != nil || len(held) != 20 {
			t.Fatalf("%d, %v", len(held), err)
		}
		pidfd, err := unix.PidfdOpen(older.cmd.Process.Pid, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(pidfd)
		var moved []int
		for _, c := range held[:5] { // this process is the other generation
			fd, err := unix.PidfdGetfd(pidfd, c.fd, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(fd)
			moved = append(moved, fd)
		}
		n, err := CloseConnections(t.Context(), older.pids(), func() []int { return []int{os.Getpid()} }, []*Socket{s}, 0)
		if n != 15 || err != nil {
			t.Errorf("closed %d, %v", n, err)
		}
		for _, fd := range moved { // each client is to read something: a byte, or the end
			if _, err := unix.Write(fd, []byte{1}); err != nil {
				t.Error(err)
			}
		}
		alive := 0
		for _, c := range conns {
			c.SetReadDeadline(time.Now().Add(time.Minute))
			if n, err := c.Read(make([]byte, 1)); n == 1 {
				alive++
			} else if err != io.EOF {
				t.Error(err)
			}
		}
		if alive != 5 {
			t.Errorf("%d are open, want 5", alive)
		}
	})
}

func TestCloseConnections_ClosesOneAfterTheOther(t *testing.T) {
	s := bind(t, "tcp", "127.0.0.1:0")
	a := startApp(t, nil, s.File)
	conns := accepted(t, s, a, 50)
	over := 500 * time.Millisecond
	began, done := time.Now(), make(chan struct{})
	go func() {
		defer close(done)
		if n, err := CloseConnections(t.Context(), a.pids(), nil, []*Socket{s}, over); n != len(conns) || err != nil {
			t.Errorf("%d, %v", n, err)
		}
		if took := time.Since(began); took < over*9/10 {
			t.Errorf("it took %v only", took)
		}
	}()
	defer func() { <-done }() // it tells this test what it finds
	newest := -1              // of those that are closed
	for returned := false; !returned; {
		select {
		case <-done:
			returned = true
		default:
		}
		newest = -1
		for i := len(conns) - 1; i >= 0; i-- { // who comes before a closed one, and is looked at after it, is closed
			if ended := hasEnd(t, conns[i]); ended && newest < 0 {
				newest = i
			} else if !ended && newest >= 0 {
				t.Fatalf("connection %d is open, and %d is not", i, newest)
			}
		}
	}
	if newest != len(conns)-1 {
		t.Errorf("the last one that is closed is %d", newest)
	}
}

// hasEnd looks whether the other side has closed, without waiting for it.
func hasEnd(t *testing.T, c net.Conn) bool {
	t.Helper()
	raw, err := c.(syscall.Conn).SyscallConn()
	n := -1
	if err == nil {
		err = raw.Control(func(fd uintptr) { n, _, _ = unix.Recvfrom(int(fd), make([]byte, 1), unix.MSG_PEEK|unix.MSG_DONTWAIT) })
	}
	if err != nil {
		t.Fatal(err)
	}
	return n == 0
}

func TestCloseConnections_EndsWithItsContext(t *testing.T) {
	s := bind(t, "tcp", "127.0.0.1:0")
	a := startApp(t, nil, s.File)
	conns := accepted(t, s, a, 10)
	why := errors.New("the generation has ended")
	ctx, cancel := context.WithCancelCause(t.Context())
	go func() { // when the first is closed
		conns[0].Read(make([]byte, 1))
		cancel(why)
	}()
	n, err := CloseConnections(ctx, a.pids(), nil, []*Socket{s}, time.Hour)
	if n != 1 || !errors.Is(err, why) {
		t.Errorf("%d, %v", n, err)
	}
	for _, c := range conns[1:] {
		c.SetReadDeadline(time.Unix(1, 0))
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("another one reads %v", err)
		}
	}
}

func TestCloseConnections_DescriptorThatIsAnotherFileByNowIsLeftAlone(t *testing.T) {
	s := bind(t, "tcp", "127.0.0.1:0")
	a := startApp(t, nil, s.File)
	c := accepted(t, s, a, 1)[0]
	all, err := closable(a.pids(), []*Socket{s})
	if err != nil || len(all) != 1 {
		t.Fatal(all, err)
	}
	pidfd, err := unix.PidfdOpen(a.pids()[0], 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pidfd)
	all[0].inode++
	if err := all[0].shutdown(map[int]int{a.pids()[0]: pidfd}); err == nil {
		t.Error("it was shut down")
	}
	c.SetReadDeadline(time.Unix(1, 0))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("it reads %v", err)
	}
}

func TestSpread_IsEven(t *testing.T) {
	for _, tt := range []struct {
		n    int
		over time.Duration
		want []time.Duration
	}{
		{0, time.Hour, nil},
		{1, time.Hour, []time.Duration{0}},
		{4, time.Minute, []time.Duration{0, 15 * time.Second, 30 * time.Second, 45 * time.Second}},
		{3, 0, []time.Duration{0, 0, 0}},
	} {
		synctest.Test(t, func(t *testing.T) {
			began := time.Now()
			var got []time.Duration
			if err := spread(t.Context(), tt.n, tt.over, func(int) { got = append(got, time.Since(began)) }); err != nil {
				t.Error(err)
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("%d over %v: at %v, want %v", tt.n, tt.over, got, tt.want)
			}
		})
	}
	synctest.Test(t, func(t *testing.T) { // one that is slow does not delay those after it
		began := time.Now()
		var last time.Duration
		spread(t.Context(), 10, 10*time.Second, func(i int) {
			if last = time.Since(began); i == 3 {
				time.Sleep(4 * time.Second)
			}
		})
		if last != 9*time.Second {
			t.Errorf("the last was at %v", last)
		}
	})
}
