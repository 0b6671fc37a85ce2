package main

import (
	"encoding/binary"
	"errors"
	"log"
	"net/http"
	"time"

	coder "github.com/coder/websocket"
	gorilla "github.com/gorilla/websocket"
	"github.com/lxzan/gws"

	"github.com/hotdeploy/hotdeploy/upgrade"
)

// tell prints why a connection ends, for whoever looks for the cause of a failure.
func tell(r *http.Request, err error) {
	if err != nil && !errors.Is(err, upgrade.ErrHandoff) {
		log.Printf("%s ends: %v", r.RemoteAddr, err)
	}
}

// libraries make the handlers. Each answers a message with the number of messages before it on this connection, and the message; after one that says
// goodbye it closes the WebSocket with closeCode.
var libraries = map[string]func(compress bool) http.HandlerFunc{
	"gorilla": gorillaEcho,
	"coder":   coderEcho,
	"gobwas":  gobwasEcho,
	"gws":     gwsEcho,
}

// closeCode is what a server says that ends a WebSocket because it was asked to.
const closeCode = 4001

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

// answer returns what to send, and whether the message says goodbye: a '!' behind its number.
func (c *counter) answer(p []byte) (b []byte, bye bool) {
	b = make([]byte, 8, 8+len(p))
	binary.BigEndian.PutUint64(b, c.n)
	c.n++
	return append(b, p...), len(p) > 8 && p[8] == '!'
}

func gorillaEcho(compress bool) http.HandlerFunc {
	u := gorilla.Upgrader{EnableCompression: compress}
	return func(w http.ResponseWriter, r *http.Request) {
		c, err := u.Upgrade(w, r, nil)
		if err != nil {
			return
		}
		defer c.Close()
		c.SetPingHandler(func(p string) error { // its own gives a client a second to take the answer, and this machine may not let it
			return c.WriteControl(gorilla.PongMessage, []byte(p), time.Now().Add(time.Minute))
		})
		count := newCounter(r)
		for {
			kind, p, err := c.ReadMessage()
			if err != nil {
				tell(r, err)
				return
			}
			b, bye := count.answer(p)
			if err := c.WriteMessage(kind, b); err != nil {
				tell(r, err)
				return
			}
			if bye && c.WriteMessage(gorilla.CloseMessage, gorilla.FormatCloseMessage(closeCode, "")) != nil {
				return
			}
		}
	}
}

func coderEcho(compress bool) http.HandlerFunc {
	o := &coder.AcceptOptions{InsecureSkipVerify: true}
	if compress {
		o.CompressionMode = coder.CompressionContextTakeover
	}
	return func(w http.ResponseWriter, r *http.Request) {
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
				tell(r, err)
				return
			}
			b, bye := count.answer(p)
			if err := c.Write(r.Context(), kind, b); err != nil {
				tell(r, err)
				return
			}
			if bye {
				c.Close(closeCode, "")
				return
			}
		}
	}
}

// gwsEvents are what that library calls.
type gwsEvents struct{ gws.BuiltinEventHandler }

func (gwsEvents) OnPing(c *gws.Conn, p []byte) { c.WritePong(p) }

func (gwsEvents) OnMessage(c *gws.Conn, m *gws.Message) {
	defer m.Close()
	count, _ := c.Session().Load("count")
	b, bye := count.(*counter).answer(m.Bytes())
	if c.WriteMessage(m.Opcode, b) == nil && bye {
		c.WriteClose(closeCode, nil)
	}
}

// gwsEcho compresses with the window of the other libraries: with its default of 12 bits its answer to the opening would be another agreement than theirs,
// and connections between it and them would be refused.
func gwsEcho(compress bool) http.HandlerFunc {
	u := gws.NewUpgrader(gwsEvents{}, &gws.ServerOption{
		ReadMaxPayloadSize: 64 << 20, WriteMaxPayloadSize: 64 << 20,
		PermessageDeflate: gws.PermessageDeflate{Enabled: compress, ServerContextTakeover: true, ClientContextTakeover: true, ServerMaxWindowBits: 15, ClientMaxWindowBits: 15},
	})
	return func(w http.ResponseWriter, r *http.Request) {
		c, err := u.Upgrade(w, r)
		if err != nil {
			return
		}
		c.Session().Store("count", newCounter(r))
		c.ReadLoop()
	}
}
