package upgrade_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log"
	"net/http"

	"github.com/lxzan/gws"

	"github.com/hotdeploy/hotdeploy/upgrade"
)

// counting is the app as gws wants it: an object that hears of everything.
type counting struct{ gws.BuiltinEventHandler }

func (counting) OnMessage(c *gws.Conn, m *gws.Message) {
	defer m.Close()
	n, _ := c.Session().Load("n")
	*n.(*uint64)++
	c.WriteMessage(m.Opcode, fmt.Appendf(nil, "%d: %s", *n.(*uint64), m.Bytes()))
}

func (counting) OnClose(_ *gws.Conn, err error) {
	if errors.Is(err, upgrade.ErrHandoff) {
		return // the client has not gone
	}
	log.Print("a client has gone: ", err)
}

// github.com/lxzan/gws. Its option ParallelEnabled must stay off: with it a message may still be worked on when the connection moves.
func Example_gws() {
	upgrader := gws.NewUpgrader(counting{}, nil)
	handler := func(w http.ResponseWriter, r *http.Request) {
		n := new(uint64)
		s := upgrade.SessionOf(r.Context())
		if _, state := s.State(); state != nil {
			*n = binary.BigEndian.Uint64(state)
		}
		s.Save(1, func() ([]byte, error) { return binary.BigEndian.AppendUint64(nil, *n), nil })

		c, err := upgrader.Upgrade(w, r)
		if err != nil {
			return
		}
		c.Session().Store("n", n)
		c.ReadLoop() // in this goroutine: when it returns everything is said
	}

	chat(handler, handler, "to the old release", "to the next one")
	// Output:
	// 1: to the old release
	// 2: to the next one
}
