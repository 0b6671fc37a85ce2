package main

import (
	"net/http"
	"slices"
	"sync"

	gorilla "github.com/gorilla/websocket"
)

// hub passes each message of a member on to all members: an app whose connections know each other, and that therefore wants a barrier. It has no
// queues: a member's reader writes to all of them before it reads again.
type hub struct {
	mu      sync.Mutex // protects what follows, and is held while a message goes to all
	members []*gorilla.Conn
}

func (h *hub) serve(w http.ResponseWriter, r *http.Request) {
	var u gorilla.Upgrader
	c, err := u.Upgrade(w, r, nil)
	if err != nil {
		return
	}
	defer c.Close()
	h.join(c)
	defer h.leave(c)
	for {
		kind, p, err := c.ReadMessage()
		if err != nil {
			return
		}
		h.tell(kind, p)
	}
}

func (h *hub) join(c *gorilla.Conn) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.members = append(h.members, c)
}

func (h *hub) leave(c *gorilla.Conn) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.members = slices.DeleteFunc(h.members, func(x *gorilla.Conn) bool { return x == c })
}

func (h *hub) tell(kind int, p []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, c := range h.members {
		c.WriteMessage(kind, p) // one that has gone leaves by itself
	}
}
