package upgrade_test

import (
	"encoding/binary"
	"fmt"
	"net/http"

	"github.com/coder/websocket"

	"github.com/hotdeploy/hotdeploy/upgrade"
)

// github.com/coder/websocket.
func Example_coder() {
	handler := func(w http.ResponseWriter, r *http.Request) {
		var n uint64
		s := upgrade.SessionOf(r.Context())
		if _, state := s.State(); state != nil {
			n = binary.BigEndian.Uint64(state)
		}
		s.Save(1, func() ([]byte, error) { return binary.BigEndian.AppendUint64(nil, n), nil })

		c, err := websocket.Accept(w, r, nil)
		if err != nil {
			return
		}
		defer c.CloseNow()
		for {
			kind, text, err := c.Read(r.Context())
			if err != nil {
				return // also when the connection moves
			}
			n++
			if c.Write(r.Context(), kind, fmt.Appendf(nil, "%d: %s", n, text)) != nil {
				return
			}
		}
	}

	chat(handler, handler, "to the old release", "to the next one")
	// Output:
	// 1: to the old release
	// 2: to the next one
}
