package systemd

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func listenNotify(t *testing.T) *NotifySocket {
	t.Helper()
	s, err := NotifyListen(filepath.Join(t.TempDir(), "notify.sock"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	t.Setenv("NOTIFY_SOCKET", s.Path())
	return s
}

func sendRaw(t *testing.T, s *NotifySocket, data string, fds ...int) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Sendmsg(fd, []byte(data), unix.UnixRights(fds...), &unix.SockaddrUnix{Name: s.Path()}, 0); err != nil {
		t.Fatal(err)
	}
}

func TestNotifySocket_HearsTheNotifier(t *testing.T) {
	s := listenNotify(t)
	var n Notifier
	for _, c := range []struct {
		send func() error
		want Message
	}{
		{func() error { return n.Ready("") }, Message{Ready: true}},
		{func() error { return n.Ready("serving 1.4.2") }, Message{Ready: true, Status: "serving 1.4.2"}},
		{func() error { return n.Status("a\nSTOPPING=1") }, Message{Status: "a STOPPING=1"}},
		{func() error { return n.Stopping("bye") }, Message{Stopping: true, Status: "bye"}},
		{n.Watchdog, Message{Watchdog: true}},
		{func() error { return n.ExtendTimeout(90 * time.Second) }, Message{Extend: 90 * time.Second}},
		{func() error { return n.MainPID(77) }, Message{MainPID: 77}},
	} {
		if err := c.send(); err != nil {
			t.Fatal(err)
		}
		m, from, err := s.Recv(t.Context())
		if err != nil || m != c.want {
			t.Errorf("Recv = %+v, %v; want %+v", m, err, c.want)
		}
		if want := (Sender{os.Getpid(), os.Getuid(), os.Getgid()}); from != want {
			t.Errorf("sender %+v, want %+v", from, want)
		}
	}
}

func TestNotifySocket_TellsProcessesApart(t *testing.T) {
	s := listenNotify(t)
	child := roleCommand("notify ready")
	child.Stderr = os.Stderr
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	m, from, err := s.Recv(t.Context())
	if err != nil || !m.Ready || from.PID != child.Process.Pid {
		t.Errorf("Recv = %+v from %+v, %v; want READY=1 from pid %d", m, from, err, child.Process.Pid)
	}
	if err := child.Wait(); err != nil {
		t.Error(err)
	}
}

func init() { roles["notify ready"] = func() error { return Notifier{}.Ready("") } }

func TestNotifySocket_MalformedMessage_TheNextOneIsHeard(t *testing.T) {
	s := listenNotify(t)
	for _, bad := range []string{"nonsense", "STATUS=" + strings.Repeat("x", maxMessage), ""} {
		sendRaw(t, s, bad)
		if _, from, err := s.Recv(t.Context()); !errors.Is(err, ErrMalformed) || from.PID != os.Getpid() {
			t.Errorf("Recv of %.20q from %+v: %v; want ErrMalformed and who it was", bad, from, err)
		}
	}
	sendRaw(t, s, "READY=1")
	if m, _, err := s.Recv(t.Context()); err != nil || !m.Ready {
		t.Errorf("Recv = %+v, %v", m, err)
	}
}

func TestNotifySocket_PassedDescriptorsAreClosed(t *testing.T) {
	s := listenNotify(t)
	for _, data := range []string{"BARRIER=1", "malformed"} {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		sendRaw(t, s, data, int(w.Fd()), int(w.Fd()))
		w.Close()
		s.Recv(t.Context())
		r.SetReadDeadline(time.Now().Add(time.Minute)) // a copy left open would hang the test
		if _, err := r.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("%s: %v; want end-of-file once every copy is closed", data, err)
		}
		r.Close()
	}
}

func TestNotifySocket_RecvEndsWithItsContext(t *testing.T) {
	s := listenNotify(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("enough")
	cancel(why)
	if _, _, err := s.Recv(ctx); !errors.Is(err, why) {
		t.Errorf("Recv with an ended context: %v", err)
	}
	sendRaw(t, s, "READY=1")
	if m, _, err := s.Recv(t.Context()); err != nil || !m.Ready {
		t.Errorf("the next Recv = %+v, %v", m, err)
	}
}

func TestNotifySocket_CloseEndsRecvAndRemovesTheFile(t *testing.T) {
	s := listenNotify(t)
	done := make(chan error, 1)
	go func() { _, _, err := s.Recv(t.Context()); done <- err }()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Recv: %v, want net.ErrClosed", err)
	}
	if _, err := os.Lstat(s.Path()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("socket file: %v", err)
	}
}

func TestNotifyListen_ReplacesOnlyADeadSocket(t *testing.T) {
	s := listenNotify(t)
	if _, err := NotifyListen(s.Path()); !errors.Is(err, ErrSocketInUse) {
		t.Errorf("path in use: %v", err)
	}
	s.conn.Close() // as if killed: the file stays
	again, err := NotifyListen(s.Path())
	if err != nil {
		t.Fatalf("stale socket: %v", err)
	}
	again.Close()

	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := NotifyListen(file); err == nil {
		t.Error("an ordinary file was replaced")
	}
	if data, _ := os.ReadFile(file); string(data) != "precious" {
		t.Errorf("the file now holds %q", data)
	}
}

func TestNotifyListen_OnlyOurOwnUserMaySend(t *testing.T) {
	info, err := os.Stat(listenNotify(t).Path())
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v; want 0600", info.Mode(), err)
	}
}
