package upgrade_test

import (
	"encoding/binary"
	"fmt"
	"net/http"

	"github.com/gobwas/ws"
	"github.com/gobwas/ws/wsutil"

	"github.com/hotdeploy/hotdeploy/upgrade"
)

// github.com/gobwas/ws, with the helpers of wsutil.
func Example_gobwas() {
	handler := func(w http.ResponseWriter, r *http.Request) {
		var n uint64
		s := upgrade.SessionOf(r.Context())
		if _, state := s.State(); state != nil {
			n = binary.BigEndian.Uint64(state)
		}
		s.Save(1, func() ([]byte, error) { return binary.BigEndian.AppendUint64(nil, n), nil })

		c, _, _, err := ws.UpgradeHTTP(r, w)
		if err != nil {
			return
		}
		defer c.Close()
		for {
			text, kind, err := wsutil.ReadClientData(c)
			if err != nil {
				return // also when the connection moves
			}
			n++
			if wsutil.WriteServerMessage(c, kind, fmt.Appendf(nil, "%d: %s", n, text)) != nil {
				return
			}
		}
	}

	chat(handler, handler, "to the old release", "to the next one")
	// Output:
	// 1: to the old release
	// 2: to the next one
}
