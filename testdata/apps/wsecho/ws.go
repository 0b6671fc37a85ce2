package main

import (
	"encoding/json"
	"net/http"
	"os"
	"sync"

	"github.com/gorilla/websocket"
)

// maxMessage bounds what one client message may take.
const maxMessage = 64 << 10

var upgrader = websocket.Upgrader{
	ReadBufferSize:  1024,
	WriteBufferSize: 1024,
	// One buffer for all the idle connections instead of one each.
	WriteBufferPool: &sync.Pool{},
}

// answer is what each text message gets back.
type answer struct {
	N    int64  `json:"n"`
	V    string `json:"v"`
	Pid  int    `json:"pid"`
	Echo string `json:"echo"`
}

// serveWebSocket echoes until the client leaves. held is taken before the
// upgrade, at which the server's own count ends: there must be no instant in
// which nobody holds the connection.
func (a *app) serveWebSocket(w http.ResponseWriter, r *http.Request) {
	a.held.Add(1)
	defer a.held.Done()
	conn, err := upgrader.Upgrade(w, r, w.Header())
	if err != nil {
		return // the upgrader has answered
	}
	defer conn.Close()
	a.live.Add(1)
	defer a.live.Add(-1)
	conn.SetReadLimit(maxMessage)
	a.echo(conn)
}

func (a *app) echo(conn *websocket.Conn) {
	reply := answer{V: a.cfg.version, Pid: os.Getpid()}
	for {
		kind, text, err := conn.ReadMessage()
		if err != nil {
			return
		}
		if kind != websocket.TextMessage {
			continue
		}
		reply.N++
		reply.Echo = string(text)
		out, err := json.Marshal(reply)
		if err != nil {
			return
		}
		if conn.WriteMessage(websocket.TextMessage, out) != nil {
			return
		}
	}
}
