package sockets

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/hotdeploy/hotdeploy/internal/release"
)

func isErr(err, target error) bool { return errors.Is(err, target) }

func TestBind_SocketIsAsSystemdWouldPassIt(t *testing.T) {
	eachNetwork(t, func(t *testing.T, s *Socket) {
		opt := func(level, name int) int {
			v := 0
			if err := control(s.File, func(fd int) (err error) { v, err = unix.GetsockoptInt(fd, level, name); return err }); err != nil {
				t.Fatal(err)
			}
			return v
		}
		if opt(unix.SOL_SOCKET, unix.SO_ACCEPTCONN) != 1 {
			t.Error("it does not listen")
		}
		if flags := fileFlags(t, s.File, unix.F_GETFL); flags&unix.O_NONBLOCK != 0 {
			t.Error("it is non-blocking")
		}
		if flags := fileFlags(t, s.File, unix.F_GETFD); flags&unix.FD_CLOEXEC == 0 {
			t.Error("it is not close-on-exec")
		}
		if s.Listener.Network == "unix" {
			return
		}
		if p := opt(unix.SOL_SOCKET, unix.SO_PROTOCOL); p != unix.IPPROTO_TCP {
			t.Errorf("its protocol is %d, not TCP", p)
		}
		if opt(unix.SOL_SOCKET, unix.SO_REUSEADDR) != 1 {
			t.Error("it has no SO_REUSEADDR")
		}
		if got, want := queueLimit(t, s), somaxconn(t); got != want {
			t.Errorf("its queue takes %d, want %d", got, want)
		}
		if want := s.Listener.Network == "tcp6"; s.onlyIPv6() != want && strings.Contains(s.Addr, "[") {
			t.Errorf("for IPv6 only: %v", !want)
		}
	})
}

func fileFlags(t *testing.T, f *os.File, command int) (flags int) {
	t.Helper()
	err := control(f, func(fd int) (err error) { flags, err = unix.FcntlInt(uintptr(fd), command, 0); return err })
	if err != nil {
		t.Fatal(err)
	}
	return flags
}

// queueLimit is how long the listen queue of s may get, from the kernel.
func queueLimit(t *testing.T, s *Socket) (limit int) {
	t.Helper()
	req := make([]byte, inetRequestSize)
	req[0], _ = s.family()
	req[1] = unix.IPPROTO_TCP
	native.PutUint32(req[4:], 1<<listening)
	err := ask(req, unix.NLM_F_DUMP, func(m []byte) {
		if c, ok := parseInet(m); ok && c.local.Port() == s.port() {
			limit = int(native.Uint32(m[60:])) // idiag_wqueue of a listener
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return limit
}

func somaxconn(t *testing.T) int {
	b, err := os.ReadFile("/proc/sys/net/core/somaxconn")
	if err != nil {
		t.Fatal(err)
	}
	n, _ := strconv.Atoi(strings.TrimSpace(string(b)))
	return min(n, backlog)
}

func TestRelisten_QueueThatAnAppShortenedIsLongAgain(t *testing.T) {
	s := bind(t, "tcp", "127.0.0.1:0")
	if err := control(s.File, func(fd int) error { return unix.Listen(fd, 5) }); err != nil {
		t.Fatal(err)
	}
	if got := queueLimit(t, s); got != 5 {
		t.Fatalf("the queue takes %d", got)
	}
	if err := s.Relisten(); err != nil {
		t.Fatal(err)
	}
	if got, want := queueLimit(t, s), somaxconn(t); got != want {
		t.Errorf("the queue takes %d, want %d", got, want)
	}
	if err := bind(t, "udp", "127.0.0.1:0").Relisten(); err != nil {
		t.Errorf("udp: %v", err)
	}
}

func TestBind_PortInUseNamesWhoHasIt(t *testing.T) {
	for _, network := range []string{"tcp", "udp"} {
		s := bind(t, network, "127.0.0.1:0")
		a := startApp(t, nil, s.File)
		s.Close() // only the app has it now
		_, err := Bind(at(s.Listener, s.Addr), "/run")
		if want := fmt.Sprintf("port %d is in use by %s (pid %d)", s.port(), comm(t), a.pids()[0]); !errors.Is(err, ErrInUse) || err.Error() != want {
			t.Errorf("%s: %v, want %s", network, err, want)
		}
		if _, err := Bind(at(s.Listener, fmt.Sprintf(":%d", s.port())), "/run"); !errors.Is(err, ErrInUse) {
			t.Errorf("%s everywhere: %v", network, err)
		}
	}
}

// comm is the name of this program's processes. The apps are executed through /proc/self/exe.
func comm(t *testing.T) string {
	t.Helper()
	return "exe"
}

func TestBind_PortOfAnOutgoingConnectionNamesWhoHasIt(t *testing.T) {
	s := bind(t, "tcp", "127.0.0.1:0")
	c := dial(t, s, 1)[0]
	_, err := Bind(at(s.Listener, c.LocalAddr().String()), "/run")
	if !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), fmt.Sprintf("(pid %d)", os.Getpid())) {
		t.Errorf("got %v", err)
	}
}

func TestBind_PortInUseByAProcessThatMayNotBeLookedInto(t *testing.T) {
	s := bind(t, "tcp", "127.0.0.1:0")
	got := says(t, "tcp", s.Addr)
	if want := fmt.Sprintf("port %d is in use by a process of uid 0 (in use true, permission false)", s.port()); got != want {
		t.Errorf("it says %q, want %q", got, want)
	}
}

func TestBind_WithoutPermission(t *testing.T) {
	if firstFreePort() == "0" {
		t.Skip("##### NOT TESTED: here every port is free for all #####")
	}
	if got := says(t, "tcp", "127.0.0.1:1"); !strings.Contains(got, "uid 65534 may not bind port 1: ports below 1024 need CAP_NET_BIND_SERVICE") ||
		!strings.HasSuffix(got, "(in use false, permission true)") {
		t.Errorf("it says %q", got)
	}
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if got := says(t, "unix", filepath.Join(dir, "x.sock")); !strings.Contains(got, "uid 65534 may not make a socket there") || !strings.HasSuffix(got, "(in use false, permission true)") {
		t.Errorf("it says %q", got)
	}
}

func TestBind_AddressThatIsNotOurs(t *testing.T) {
	_, err := Bind(release.Listener{Network: "tcp", Address: "192.0.2.1:0"}, "/run") // TEST-NET-1
	if !errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, ErrInUse) {
		t.Errorf("got %v", err)
	}
}

func TestBind_UnixSocketHasItsModeAndLeavesNothingBehind(t *testing.T) {
	dir := t.TempDir()
	for mode, want := range map[string]os.FileMode{"": 0o660, "0600": 0o600, "666": 0o666} {
		s, err := Bind(release.Listener{Network: "unix", Address: "a.sock", Mode: mode}, dir)
		if err != nil {
			t.Fatal(err)
		}
		st, err := os.Stat(filepath.Join(dir, "a.sock"))
		if err != nil || st.Mode().Perm() != want {
			t.Errorf("mode %q: %v, %v", mode, st.Mode(), err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if _, err := os.Lstat(s.Addr); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the path is left: %v", err)
		}
	}
}

func TestBind_StaleUnixSocketIsReplaced_OneThatAnswersIsNot(t *testing.T) {
	l := release.Listener{Network: "unix", Address: filepath.Join(t.TempDir(), "a.sock")}
	stale, err := Bind(l, "")
	if err != nil {
		t.Fatal(err)
	}
	stale.File.Close() // as if killed
	living, err := Bind(l, "")
	if err != nil {
		t.Fatal(err)
	}
	defer living.Close()
	_, err = Bind(l, "")
	if want := fmt.Sprintf("%s is in use by %s (pid %d)", l.Address, ownComm(t), os.Getpid()); !errors.Is(err, ErrInUse) || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	if err := stale.Close(); !errors.Is(err, os.ErrClosed) { // its file; the path is the other one's now
		t.Error(err)
	}
	if c, err := living.Dial(t.Context()); err != nil {
		t.Errorf("the living one is hurt: %v", err)
	} else {
		c.Close()
	}
}

func ownComm(t *testing.T) string {
	b, err := os.ReadFile("/proc/self/comm")
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

func TestBind_FileThatIsNoSocketIsLeftAlone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "precious")
	if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Bind(release.Listener{Network: "unix", Address: path}, ""); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), "is not a socket") {
		t.Errorf("got %v", err)
	}
	if b, err := os.ReadFile(path); string(b) != "x" {
		t.Errorf("the file is %q, %v", b, err)
	}
}

// at is l with another address.
func at(l release.Listener, address string) release.Listener {
	l.Address = address
	return l
}

func TestDial_ReachesEveryKindOfListener(t *testing.T) {
	eachNetwork(t, func(t *testing.T, s *Socket) {
		a := startApp(t, nil, s.File)
		accepted(t, s, a, 1)
	})
	if _, err := bind(t, "udp", "127.0.0.1:0").Dial(t.Context()); err == nil {
		t.Error("a connection to udp")
	}
}

func TestAdopt(t *testing.T) {
	everywhere, only6, loopback := bind(t, "tcp", ":0"), bind(t, "tcp6", ":0"), bind(t, "tcp", "127.0.0.1:0")
	udp, path := bind(t, "udp", "127.0.0.1:0"), bind(t, "unix", "a.sock")
	deaf, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	silent := &Socket{File: os.NewFile(uintptr(deaf), "deaf"), Addr: "0.0.0.0:0"}
	defer silent.File.Close()
	file, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	port := func(s *Socket) string { return fmt.Sprintf(":%d", s.port()) }
	tests := []struct {
		s                *Socket
		network, address string
		mismatch         string // in the error's text; empty: it fits
	}{
		{everywhere, "tcp", port(everywhere), ""},
		{everywhere, "tcp", "[::]" + port(everywhere), ""},
		{everywhere, "tcp", "0.0.0.0" + port(everywhere), "it is tcp [::]"},
		{everywhere, "tcp6", port(everywhere), ""},
		{everywhere, "tcp4", port(everywhere), "it is tcp [::]"},
		{everywhere, "tcp", ":1", "it is tcp [::]"},
		{everywhere, "tcp", "127.0.0.1" + port(everywhere), "it is tcp [::]"},
		{everywhere, "udp", port(everywhere), "it is tcp [::]"},
		{everywhere, "unix", "/run/x", "it is tcp [::]"},
		{only6, "tcp6", port(only6), ""},
		{only6, "tcp", port(only6), "IPv6 only"},
		{loopback, "tcp", "127.0.0.1:0", ""},
		{loopback, "tcp", "localhost:0", ""},
		{loopback, "tcp4", loopback.Addr, ""},
		{loopback, "tcp", port(loopback), "it is tcp 127.0.0.1"},
		{udp, "udp", udp.Addr, ""},
		{udp, "tcp", udp.Addr, "it is udp 127.0.0.1"},
		{path, "unix", path.Addr, ""},
		{path, "unix", "a.sock", ""},
		{path, "unix", "other.sock", "it is unix " + path.Addr},
		{path, "tcp", ":80", "it is unix " + path.Addr},
		{silent, "tcp", ":0", "does not listen"},
		{&Socket{File: file}, "tcp", ":0", "is not a socket"},
	}
	for _, tt := range tests {
		want := release.Listener{Name: "web", Network: tt.network, Address: tt.address}
		err := Matches(tt.s.File, want)
		if tt.mismatch != "" {
			if err == nil || !strings.Contains(err.Error(), tt.mismatch) || !(errors.Is(err, ErrMismatch) || tt.s.File == file) {
				t.Errorf("%s for %s %s: %v, want %q", tt.s.Addr, tt.network, tt.address, err, tt.mismatch)
			}
			if s, err := Adopt(tt.s.File, want); err == nil {
				t.Errorf("adopted %s", s.Addr)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s for %s %s: %v", tt.s.Addr, tt.network, tt.address, err)
		}
		s, err := Adopt(tt.s.File, want)
		if err != nil || s.Addr != tt.s.Addr || s.Listener != want {
			t.Errorf("%s for %s %s: %+v, %v", tt.s.Addr, tt.network, tt.address, s, err)
		}
	}
}

func TestAdopt_PathStaysAndBlockingModeToo(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.sock")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	f, err := ln.(*net.UnixListener).File()
	if err != nil {
		t.Fatal(err)
	}
	s, err := Adopt(f, release.Listener{Network: "unix", Address: path})
	if err != nil {
		t.Fatal(err)
	}
	if fileFlags(t, f, unix.F_GETFL)&unix.O_NONBLOCK == 0 {
		t.Error("it became blocking")
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("the path is gone: %v", err)
	}
}

func TestOverlap(t *testing.T) {
	a, b, all, none := netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("127.0.0.2"), netip.IPv6Unspecified(), netip.Addr{}
	for _, tt := range []struct {
		a, b netip.Addr
		want bool
	}{{a, a, true}, {a, b, false}, {a, all, true}, {all, b, true}, {none, b, true}} {
		if overlap(tt.a, tt.b) != tt.want {
			t.Errorf("%v and %v: not %v", tt.a, tt.b, tt.want)
		}
	}
}
