package upgrade_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"github.com/gorilla/websocket"

	"github.com/hotdeploy/hotdeploy/upgrade"
)

// Release 1 knows a client's name. Release 2 also counts its messages: it reads both versions of the state, and lists them in
// Options.States. A rollback would bring only those connections back whose state release 1 can read: none of release 2's, as long
// as it saves version 2. They would stay in release 2, and drain.
func ExampleSession_Save() {
	type state1 struct{ Name string }
	type state2 struct {
		Name     string
		Messages int
	}
	var upgrader websocket.Upgrader

	release1 := func(w http.ResponseWriter, r *http.Request) {
		state := state1{Name: "nobody"}
		s := upgrade.SessionOf(r.Context())
		if v, b := s.State(); v == 1 {
			json.Unmarshal(b, &state)
		}
		s.Save(1, func() ([]byte, error) { return json.Marshal(state) }) // called when the handler has closed the connection
		c, err := upgrader.Upgrade(w, r, nil)
		if err != nil {
			return
		}
		defer c.Close()
		for {
			_, name, err := c.ReadMessage()
			if err != nil {
				return
			}
			state.Name = string(name)
			c.WriteMessage(websocket.TextMessage, []byte("hello "+state.Name))
		}
	}
	release2 := func(w http.ResponseWriter, r *http.Request) {
		var state state2
		s := upgrade.SessionOf(r.Context())
		switch v, b := s.State(); v {
		case 1, 2: // the fields of version 1 are still what they were
			json.Unmarshal(b, &state)
		}
		s.Save(2, func() ([]byte, error) { return json.Marshal(state) })
		c, err := upgrader.Upgrade(w, r, nil)
		if err != nil {
			return
		}
		defer c.Close()
		for {
			_, text, err := c.ReadMessage()
			if err != nil {
				return
			}
			state.Messages++
			c.WriteMessage(websocket.TextMessage, fmt.Appendf(nil, "%s says %q, message %d", state.Name, text, state.Messages))
		}
	}

	chat(release1, release2, "Ada", "are you still there?")
	// Output:
	// hello Ada
	// Ada says "are you still there?", message 1
}

// The opening of a resumed connection is as old as the connection: what was good for once must not be asked for again. Who the client is
// comes from the state, which no client can write.
func ExampleSession_Resumed() {
	tickets := map[string]string{"ticket-1": "Ada"} // each is good for one connection
	var upgrader websocket.Upgrader
	handler := func(w http.ResponseWriter, r *http.Request) {
		s := upgrade.SessionOf(r.Context())
		var user string
		if s.Resumed() {
			_, b := s.State()
			user = string(b)
		} else {
			user = tickets["ticket-1"] // in truth from the request
			delete(tickets, "ticket-1")
		}
		if user == "" {
			http.Error(w, "no valid ticket", http.StatusForbidden) // a resumed connection would stay in the old release
			return
		}
		s.Save(1, func() ([]byte, error) { return []byte(user), nil })
		c, err := upgrader.Upgrade(w, r, nil)
		if err != nil {
			return
		}
		defer c.Close()
		for {
			_, text, err := c.ReadMessage()
			if err != nil {
				return
			}
			c.WriteMessage(websocket.TextMessage, fmt.Appendf(nil, "%s said %s", user, text))
		}
	}

	chat(handler, handler, "hello", "hello again")
	// Output:
	// Ada said hello
	// Ada said hello again
}

// What is done when a client goes must not be done when its connection only moves. And whoever else writes to the connection
// has ended, or has at least been told, before it is closed: until then its messages go out as always.
func ExampleErrHandoff() {
	var upgrader websocket.Upgrader
	gone := make(chan string)
	handler := func(w http.ResponseWriter, r *http.Request) {
		if !upgrade.SessionOf(r.Context()).Resumed() {
			fmt.Println("Ada comes")
		}
		c, err := upgrader.Upgrade(w, r, nil)
		if err != nil {
			return
		}
		defer c.Close()

		send := make(chan []byte, 16) // one's own queue
		sent := make(chan struct{})
		go func() {
			defer close(sent)
			for text := range send {
				c.WriteMessage(websocket.TextMessage, text)
			}
		}()
		for err == nil {
			var text []byte
			if _, text, err = c.ReadMessage(); err == nil {
				send <- append([]byte("got "), text...)
			}
		}
		close(send)
		<-sent // nothing in the queue is lost
		if !errors.Is(err, upgrade.ErrHandoff) {
			gone <- "Ada goes"
		}
	}

	chat(handler, handler, "hello", "hello again")
	fmt.Println(<-gone)
	// Output:
	// Ada comes
	// got hello
	// got hello again
	// Ada goes
}
