package load

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
)

// replies says for one connection what to send for its message n, whose honest
// answer is a.
type replies func(conn *websocket.Conn, n int64, a answer) []answer

func honest(_ *websocket.Conn, _ int64, a answer) []answer { return []answer{a} }

// serve is a server with a flaw: each WebSocket gets its own replies, each short
// request goes to version. It returns the address.
func serve(t *testing.T, perConn func() replies, version http.HandlerFunc) string {
	t.Helper()
	mux := http.NewServeMux()
	mux.HandleFunc("/version", version)
	mux.HandleFunc("/ws", func(w http.ResponseWriter, r *http.Request) {
		conn, err := new(websocket.Upgrader).Upgrade(w, r, nil)
		if err != nil {
			return
		}
		defer conn.Close()
		answerAll(conn, perConn())
	})
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	return strings.TrimPrefix(server.URL, "http://")
}

func answerAll(conn *websocket.Conn, reply replies) {
	for n := int64(1); ; n++ {
		_, text, err := conn.ReadMessage()
		if err != nil {
			return
		}
		for _, a := range reply(conn, n, answer{N: n, V: "1", Pid: 7, Echo: string(text)}) {
			out, err := json.Marshal(a)
			if err != nil || conn.WriteMessage(websocket.TextMessage, out) != nil {
				return
			}
		}
	}
}

func versionOne(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "1") }

// raw is a server that is not one: each accepted connection goes to handle.
func raw(t *testing.T, handle func(conn *net.TCPConn)) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go handle(conn.(*net.TCPConn))
		}
	}()
	return ln.Addr().String()
}

// patience is how long a test waits for what must come.
const patience = 60 * time.Second

func patient(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

func start(t *testing.T, o Options) *Load {
	t.Helper()
	l, err := Start(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		over, cancel := context.WithCancel(context.Background())
		cancel()
		l.Stop(over)
	})
	return l
}

// beats lets every WebSocket send n messages more.
func beats(t *testing.T, l *Load, n int) {
	t.Helper()
	for range n {
		if err := l.Beat(patient(t)); err != nil {
			t.Fatal(err)
		}
	}
}
