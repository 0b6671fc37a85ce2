package libtest

import (
	"encoding/binary"
	"net"
	"net/http"
	"testing"

	coder "github.com/coder/websocket"
	"github.com/gobwas/ws"
	"github.com/gobwas/ws/wsutil"
	gorilla "github.com/gorilla/websocket"
	"github.com/lxzan/gws"

	"github.com/hotdeploy/hotdeploy/upgrade"
	"github.com/hotdeploy/hotdeploy/upgrade/internal/bridge"
)

// apps answer each message with the number of messages before it on this connection, and the message.
var apps = map[string]http.HandlerFunc{
	"gorilla": gorillaApp,
	"coder":   coderApp,
	"gobwas":  gobwasApp,
	"gws":     gwsApp,
}

// counter is the state of a connection.
type counter struct{ n uint64 }

// stateVersion is the only one there is.
const stateVersion = 1

func newCounter(r *http.Request) *counter {
	c := &counter{}
	s := upgrade.SessionOf(r.Context())
	if v, state := s.State(); v == stateVersion {
		c.n = binary.BigEndian.Uint64(state)
	}
	s.Save(stateVersion, func() ([]byte, error) { return binary.BigEndian.AppendUint64(nil, c.n), nil })
	return c
}

func (c *counter) answer(p []byte) []byte {
	b := append(binary.BigEndian.AppendUint64(nil, c.n), p...)
	c.n++
	return b
}

func gorillaApp(w http.ResponseWriter, r *http.Request) {
	u := gorilla.Upgrader{EnableCompression: r.URL.Query().Has("compress")}
	c, err := u.Upgrade(w, r, nil)
	if err != nil {
		return
	}
	defer c.Close()
	count := newCounter(r)
	for {
		kind, p, err := c.ReadMessage()
		if err != nil {
			return
		}
		if c.WriteMessage(kind, count.answer(p)) != nil {
			return
		}
	}
}

func coderApp(w http.ResponseWriter, r *http.Request) {
	o := &coder.AcceptOptions{InsecureSkipVerify: true}
	if r.URL.Query().Has("compress") {
		o.CompressionMode = coder.CompressionContextTakeover
	}
	c, err := coder.Accept(w, r, o)
	if err != nil {
		return
	}
	defer c.Close(coder.StatusInternalError, "the handler has ended")
	c.SetReadLimit(-1)
	count := newCounter(r)
	for {
		kind, p, err := c.Read(r.Context())
		if err != nil {
			return
		}
		if c.Write(r.Context(), kind, count.answer(p)) != nil {
			return
		}
	}
}

func gobwasApp(w http.ResponseWriter, r *http.Request) {
	c, _, _, err := ws.UpgradeHTTP(r, w)
	if err != nil {
		return
	}
	defer c.Close()
	count := newCounter(r)
	for {
		p, op, err := wsutil.ReadClientData(c)
		if err != nil {
			return
		}
		if wsutil.WriteServerMessage(c, op, count.answer(p)) != nil {
			return
		}
	}
}

type gwsEvents struct{ gws.BuiltinEventHandler }

func (gwsEvents) OnPing(c *gws.Conn, p []byte) { c.WritePong(p) }

func (gwsEvents) OnMessage(c *gws.Conn, m *gws.Message) {
	defer m.Close()
	count, _ := c.Session().Load("count")
	c.WriteMessage(m.Opcode, count.(*counter).answer(m.Bytes()))
}

// gwsUpgraders are made once: each has a pool of compressors.
var gwsUpgraders = map[bool]*gws.Upgrader{false: newGWS(false), true: newGWS(true)}

func newGWS(compress bool) *gws.Upgrader {
	return gws.NewUpgrader(gwsEvents{}, &gws.ServerOption{
		ReadMaxPayloadSize: 64 << 20, WriteMaxPayloadSize: 64 << 20,
		PermessageDeflate: gws.PermessageDeflate{Enabled: compress, ServerContextTakeover: true, ClientContextTakeover: true},
	})
}

func gwsApp(w http.ResponseWriter, r *http.Request) {
	c, err := gwsUpgraders[r.URL.Query().Has("compress")].Upgrade(w, r)
	if err != nil {
		return
	}
	c.Session().Store("count", newCounter(r))
	c.ReadLoop()
}

// generation is one server process, as far as one process can have two.
type generation struct {
	net.Listener
	server *http.Server
}

// newGeneration serves an app on a port of its own until the test ends.
func newGeneration(t testing.TB, app http.Handler) *generation {
	base, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := &generation{bridge.Listen(base, "web", "http"), &http.Server{Handler: app}}
	served := make(chan struct{})
	go func() { defer close(served); g.server.Serve(g) }()
	t.Cleanup(func() { g.server.Close(); <-served })
	return g
}
