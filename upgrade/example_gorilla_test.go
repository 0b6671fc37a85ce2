package upgrade_test

import (
	"encoding/binary"
	"fmt"
	"net/http"

	"github.com/gorilla/websocket"

	"github.com/hotdeploy/hotdeploy/upgrade"
)

// github.com/gorilla/websocket: the handler is what it always was. The first lines are there only because it counts.
func Example_gorilla() {
	var upgrader websocket.Upgrader
	handler := func(w http.ResponseWriter, r *http.Request) {
		var n uint64
		s := upgrade.SessionOf(r.Context())
		if _, state := s.State(); state != nil {
			n = binary.BigEndian.Uint64(state)
		}
		s.Save(1, func() ([]byte, error) { return binary.BigEndian.AppendUint64(nil, n), nil })

		c, err := upgrader.Upgrade(w, r, nil)
		if err != nil {
			return
		}
		defer c.Close()
		for {
			kind, text, err := c.ReadMessage()
			if err != nil {
				return // also when the connection moves
			}
			n++
			if c.WriteMessage(kind, fmt.Appendf(nil, "%d: %s", n, text)) != nil {
				return
			}
		}
	}

	chat(handler, handler, "to the old release", "to the next one")
	// Output:
	// 1: to the old release
	// 2: to the next one
}
