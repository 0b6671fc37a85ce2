package probe

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hotdeploy/hotdeploy/internal/release"
	"github.com/hotdeploy/hotdeploy/internal/sockets"
)

// The test binary is also the apps that are asked.
func TestMain(m *testing.M) {
	switch os.Getenv("TEST_APP") {
	case "":
		os.Exit(m.Run())
	case "exclusive":
		exclusiveApp()
	default:
		testApp()
	}
}

// exclusiveApp accepts like nginx (EPOLLEXCLUSIVE): of several that wait the kernel wakes the first, always the same.
func exclusiveApp() {
	unix.SetNonblock(3, true)
	ep, err := unix.EpollCreate1(0)
	if err == nil {
		err = unix.EpollCtl(ep, unix.EPOLL_CTL_ADD, 3, &unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLEXCLUSIVE})
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	go func() { // with its test
		io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	fmt.Println("0")
	for held := []int(nil); ; {
		unix.EpollWait(ep, make([]unix.EpollEvent, 1), -1)
		for fd, _, err := unix.Accept4(3, 0); err == nil; fd, _, err = unix.Accept4(3, 0) {
			if held = append(held, fd); len(held) > 50 {
				unix.Close(held[0])
				held = held[1:]
			}
		}
	}
}

// testApp accepts on the listener in descriptor 3 as soon as its standard input says "accept", and answers HTTP. To every order it
// says how many connections have brought a byte; to "accepted" and "asked" when it has accepted one more, or one more has brought a
// byte. It ends with its test.
func testApp() {
	ln, err := net.FileListener(os.NewFile(3, "web"))
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	var spoken atomic.Int64
	accepted, asked := make(chan struct{}, 10_000), make(chan struct{}, 10_000) // more than any test brings
	handle := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { answer(w, r, os.Getenv("TEST_APP")) })
	server := &http.Server{Handler: handle, ConnState: func(_ net.Conn, s http.ConnState) {
		switch s {
		case http.StateNew:
			accepted <- struct{}{}
		case http.StateActive: // the first byte of a request is there
			spoken.Add(1)
			asked <- struct{}{}
		}
	}}
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		switch in.Text() {
		case "accept":
			go server.Serve(ln)
		case "slam": // accepts one, and closes it at once
			if c, err := ln.Accept(); err == nil {
				c.Close()
			}
		case "accepted":
			<-accepted
		case "asked":
			<-asked
		}
		fmt.Println(spoken.Load())
	}
}

// failed is whether /fades has been asked.
var failed atomic.Bool

func answer(w http.ResponseWriter, r *http.Request, mode string) {
	switch {
	case mode == "ok" && r.URL.Path == "/moved":
		http.Redirect(w, r, "/elsewhere", http.StatusFound)
	case mode == "ok" && r.URL.Path == "/hints":
		w.WriteHeader(http.StatusEarlyHints)
		io.WriteString(w, "ok")
	case mode == "ok" && r.URL.Path == "/host":
		w.WriteHeader(http.StatusTeapot)
		fmt.Fprintf(w, "%s %s %s %s", r.Host, r.Method, r.RequestURI, r.UserAgent())
	case mode == "ok" && r.URL.Path == "/fades" && !failed.Swap(true):
		http.Error(w, "not yet", http.StatusServiceUnavailable)
	case mode == "ok" && (r.URL.Path == "/hang" || r.URL.Path == "/fades"):
		<-r.Context().Done()
	case mode == "ok" && r.URL.Path == "/drop":
		panic(http.ErrAbortHandler)
	case mode == "ok" && r.URL.Path == "/head":
		w.Header().Set("X-Long", strings.Repeat("x", maxAnswer))
	case mode == "ok":
		io.WriteString(w, "ok")
	default:
		w.WriteHeader(http.StatusServiceUnavailable)
		io.WriteString(w, mode)
	}
}

// app is a process that holds the listener.
type app struct {
	t   *testing.T
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

// startApp starts one that answers "ok", or 503 and mode. It does not accept yet.
func startApp(t *testing.T, s *sockets.Socket, mode string) *app {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env, cmd.Stderr, cmd.ExtraFiles = []string{"TEST_APP=" + mode, "GORACE=atexit_sleep_ms=0"}, os.Stderr, []*os.File{s.File}
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
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	return &app{t, cmd, in, bufio.NewReader(out)}
}

// do gives an order, if any, and returns how many connections have brought a byte so far.
func (a *app) do(order string) (spoken int) {
	a.t.Helper()
	if order != "" {
		fmt.Fprintln(a.in, order)
	}
	if _, err := fmt.Fscanln(a.out, &spoken); err != nil {
		a.t.Fatalf("%s: %v", order, err)
	}
	return spoken
}

// until returns a context that ends when the app has answered an order n times. Until then the app is nobody else's to ask.
func (a *app) until(order string, n int) context.Context {
	ctx, cancel := context.WithCancel(within(a.t))
	go func() { // ends with the app
		defer cancel()
		for range n {
			fmt.Fprintln(a.in, order)
			if _, err := a.out.ReadString('\n'); err != nil {
				return
			}
		}
	}()
	return ctx
}

func (a *app) target(s *sockets.Socket) Target {
	return Target{First: s, Pids: func() []int { return []int{a.cmd.Process.Pid} }}
}

func bind(t *testing.T, network, address string) *sockets.Socket {
	t.Helper()
	s, err := sockets.Bind(release.Listener{Name: "web", Network: network, Address: address}, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// within bounds what should be short; it is no measurement.
func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// soon is for what does not happen.
func soon(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	t.Cleanup(cancel)
	return ctx
}

// saysWhat checks an error's text.
func saysWhat(t *testing.T, err error, want ...string) {
	t.Helper()
	for _, w := range want {
		if err == nil || !strings.Contains(err.Error(), w) {
			t.Errorf("got %v, want %q in it", err, w)
		}
	}
}

// inParallel runs do n times at once.
func inParallel(n int, do func()) {
	var wg sync.WaitGroup
	for range n {
		wg.Go(do)
	}
	wg.Wait()
}
