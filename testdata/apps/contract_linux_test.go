package apps

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/hotdeploy/hotdeploy/testdata/load"
)

// eachApp runs a story with every sample app: the contract is the same in any
// language.
func eachApp(t *testing.T, story func(t *testing.T, command []string)) {
	for _, name := range []string{"wsecho", "pyecho", "nodeecho"} {
		t.Run(name, func(t *testing.T) {
			command := Command(t, name)
			switch name {
			case "wsecho":
				command = append(command, "-until-eof", "-addr", "127.0.0.1:0")
			case "nodeecho":
				Need(t, "systemd-notify") // says READY=1 for it
			}
			story(t, command)
		})
	}
}

// generation starts one more generation of the app on ln.
func generation(t *testing.T, command []string, ln filer, number int) *process {
	t.Helper()
	p := start(t, launch{command: command, sockets: []filer{ln}, names: "http", env: []string{
		fmt.Sprintf("HOTDEPLOY_VERSION=1.%d", number),
		fmt.Sprintf("HOTDEPLOY_GENERATION=%d", number),
	}})
	p.awaitNotify("READY=1")
	return p
}

func TestContract_ServesTheInheritedSocketAndSaysWhoItIs(t *testing.T) {
	eachApp(t, func(t *testing.T, command []string) {
		ln := listen(t)
		queue := queueLength(t, ln)
		p := generation(t, command, ln, 4)

		resp, body := get(t, ln, "/version")
		want(t, "version", body, "1.4")
		want(t, "generation", resp.Header.Get("X-Generation"), "4")
		want(t, "pid", resp.Header.Get("X-Pid"), p.cmd.Process.Pid)
		resp, _ = get(t, ln, "/healthz")
		want(t, "health", resp.StatusCode, 200)
		resp, _ = get(t, ln, "/nothing")
		want(t, "status of an unknown page", resp.StatusCode, 404)
		want(t, "length of the queue that generations share", queueLength(t, ln), queue)

		ws := dialEcho(t, ln)
		for _, text := range []string{"hello", "", "Grüße, \"you\" ✓", strings.Repeat("long ", 40), strings.Repeat("x", 65000)} {
			ws.say(text, "1.4", p.cmd.Process.Pid)
		}
		ws.ping()
		ws.bye()
	})
}

func TestContract_SIGTERM_StopsAcceptingButKeepsWebSocketsUntilTheyLeave(t *testing.T) {
	eachApp(t, func(t *testing.T, command []string) {
		ln := listen(t)
		old := generation(t, command, ln, 1)
		ws := dialEcho(t, ln)
		ws.say("before", "1.1", old.cmd.Process.Pid)

		old.terminate()
		old.awaitNotify("STOPPING=1")
		next := generation(t, command, ln, 2)
		for range 20 {
			_, version := get(t, ln, "/version")
			want(t, "version of a new connection", version, "1.2")
		}
		ws.say("after", "1.1", old.cmd.Process.Pid)
		select {
		case <-old.exited:
			t.Fatal("it exited with a client left")
		default:
		}
		ws.say("still", "1.1", old.cmd.Process.Pid)
		ws.bye()
		want(t, "status", old.status(), 0)

		next.terminate()
		want(t, "status of the one without clients", next.status(), 0)
	})
}

// The client was accepted, so no other generation will ever see its request.
func TestContract_ARequestSentAfterSIGTERMOnAnAcceptedConnectionIsAnswered(t *testing.T) {
	eachApp(t, func(t *testing.T, command []string) {
		ln := listen(t)
		p := generation(t, command, ln, 1)
		var silent []net.Conn
		for range 10 {
			conn, err := net.Dial("tcp", ln.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			silent = append(silent, conn)
		}
		get(t, ln, "/version") // first come, first accepted: so they all are
		p.terminate()
		p.awaitNotify("STOPPING=1")
		for i, conn := range silent {
			conn.SetDeadline(time.Now().Add(patience))
			fmt.Fprint(conn, "GET /version HTTP/1.1\r\nHost: test\r\n\r\n")
			resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil {
				t.Fatalf("connection %d: %v", i, err)
			}
			want(t, "status", resp.StatusCode, 200)
			conn.Close()
		}
		want(t, "status", p.status(), 0)
	})
}

// Not its LISTEN_PID: the variables are somebody else's, and so may fd 3 be.
func TestContract_SocketsOfAnotherProcessAreLeftAlone(t *testing.T) {
	eachApp(t, func(t *testing.T, command []string) {
		ln := listen(t)
		p := start(t, launch{command: command, sockets: []filer{ln}, pid: "1",
			env: []string{"PYECHO_ADDR=127.0.0.1:0", "NODEECHO_ADDR=127.0.0.1:0"}})
		p.awaitNotify("READY=1")
		for range 5 {
			client, err := net.Dial("tcp", ln.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			ln.SetDeadline(time.Now().Add(patience))
			conn, err := ln.Accept()
			if err != nil {
				t.Fatal(err)
			}
			want(t, "who was accepted", conn.RemoteAddr(), client.LocalAddr())
			conn.Close()
			client.Close()
		}
	})
}

// This is the first two levels of what a supervisor promises, with nothing but
// the app, a socket and signals.
func TestContract_FourGenerationsUnderLoad_NobodyNotices(t *testing.T) {
	eachApp(t, func(t *testing.T, command []string) {
		ln := listen(t)
		generations := []*process{generation(t, command, ln, 1)}
		l, err := load.Start(context.Background(), load.Options{
			Addr: ln.Addr().String(), WebSockets: 50, MessageInterval: time.Second, NewConnsPerSecond: 20,
			RequestTimeout: patience, OpenTimeout: patience,
		})
		if err != nil {
			t.Fatal(err)
		}
		defer l.Stop(context.Background())
		if err := l.Ready(patient(t)); err != nil {
			t.Fatal(err)
		}
		for number := 2; number <= 4; number++ {
			next := generation(t, command, ln, number)
			generations[len(generations)-1].terminate()
			generations = append(generations, next)
			if err := l.Beat(patient(t)); err != nil {
				t.Fatal(err)
			}
		}
		r := l.Stop(patient(t))
		if err := r.Err(); err != nil {
			t.Error(err)
		}
		want(t, "WebSockets by version", r.Versions, map[string]int{"1.1": 50})
		if len(r.RequestVersions) < 3 {
			t.Errorf("versions that answered: %v", r.RequestVersions)
		}
		generations[len(generations)-1].terminate()
		for _, p := range generations {
			want(t, "status", p.status(), 0)
		}
	})
}
