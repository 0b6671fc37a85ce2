package sockets

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/hotdeploy/hotdeploy/internal/release"
)

// The test binary is also the apps that accept.
func TestMain(m *testing.M) {
	switch os.Getenv("TEST_APP") {
	case "acceptor":
		acceptor()
	case "binder":
		binder()
	case "stranger":
		stranger()
	default:
		os.Exit(m.Run())
	}
}

// acceptor does what its standard input says, line by line, on the listener that it inherited as descriptor 3. It is as plain as
// an app can be: system calls, no poller. It ends with its test.
func acceptor() {
	var held []int
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		var verb string
		var n int
		fmt.Sscan(in.Text(), &verb, &n)
		for range n {
			switch verb {
			case "accept":
				fd, _, err := unix.Accept4(3, unix.SOCK_CLOEXEC)
				if err != nil {
					fmt.Println(err)
					os.Exit(1)
				}
				held = append(held, fd)
			case "close":
				unix.Close(held[0])
				held = held[1:]
			}
		}
		fmt.Println("done")
	}
}

// binder says what Bind says.
func binder() {
	s, err := Bind(release.Listener{Name: "b", Network: os.Getenv("NETWORK"), Address: os.Getenv("ADDRESS")}, "/run")
	if err == nil {
		fmt.Println(s.Addr)
	} else {
		fmt.Printf("%v (in use %v, permission %v)\n", err, isErr(err, ErrInUse), isErr(err, ErrPermission))
	}
}

// app is a process that holds a listener.
type app struct {
	t   testing.TB
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

// startApp starts an acceptor with files as its descriptors 3 and up. It is killed with its test.
func startApp(t testing.TB, attr *syscall.SysProcAttr, files ...*os.File) *app {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env, cmd.Stderr, cmd.ExtraFiles, cmd.SysProcAttr = []string{"TEST_APP=acceptor", "GORACE=atexit_sleep_ms=0"}, os.Stderr, files, attr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	a := &app{t, cmd, in, bufio.NewReader(out)}
	t.Cleanup(a.stop)
	return a
}

func (a *app) stop() {
	a.cmd.Process.Kill()
	a.cmd.Wait()
}

func (a *app) pids() []int { return []int{a.cmd.Process.Pid} }

// do lets the app do something n times and returns when it has.
func (a *app) do(verb string, n int) {
	a.t.Helper()
	fmt.Fprintln(a.in, verb, n)
	if line, err := a.out.ReadString('\n'); err != nil || line != "done\n" {
		a.t.Fatalf("%s %d: %q, %v", verb, n, line, err)
	}
}

// bind makes a listener of the test's.
func bind(t testing.TB, network, address string) *Socket {
	t.Helper()
	s, err := Bind(release.Listener{Name: "web", Network: network, Address: address}, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// dial opens n connections to s.
func dial(t testing.TB, s *Socket, n int) []net.Conn {
	t.Helper()
	conns := make([]net.Conn, n)
	for i := range conns {
		c, err := s.Dial(t.Context())
		if err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
		t.Cleanup(func() { c.Close() })
		conns[i] = c
	}
	return conns
}

// accepted opens n connections and lets a accept them.
func accepted(t testing.TB, s *Socket, a *app, n int) []net.Conn {
	t.Helper()
	var conns []net.Conn
	const most = 100 // less than any queue
	for len(conns) < n {
		some := min(n-len(conns), most)
		conns = append(conns, dial(t, s, some)...)
		a.do("accept", some)
	}
	return conns
}

// eachNetwork runs a story on each kind of listener that accepts.
func eachNetwork(t *testing.T, story func(t *testing.T, s *Socket)) {
	for name, l := range map[string][2]string{
		"tcp": {"tcp", "localhost:0"}, "tcp4": {"tcp4", "127.0.0.1:0"}, "tcp6": {"tcp6", "[::1]:0"}, "dual stack": {"tcp", ":0"},
		"everywhere 6": {"tcp6", ":0"}, "everywhere 4": {"tcp4", ":0"}, "unix": {"unix", "app socket.sock"},
	} {
		t.Run(name, func(t *testing.T) { story(t, bind(t, l[0], l[1])) })
	}
}

// asNobody is an ordinary user. It takes root to become one.
func asNobody(t testing.TB) *syscall.SysProcAttr {
	if os.Getuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("it takes root, which CI has")
		}
		t.Skip("##### NOT TESTED: it takes root to be somebody else #####")
	}
	return &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
}

// says runs the binder as nobody.
func says(t testing.TB, network, address string) string {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = []string{"TEST_APP=binder", "NETWORK=" + network, "ADDRESS=" + address, "GORACE=atexit_sleep_ms=0"}
	cmd.SysProcAttr = asNobody(t)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v: %s", err, &out)
	}
	return strings.TrimSpace(out.String())
}
