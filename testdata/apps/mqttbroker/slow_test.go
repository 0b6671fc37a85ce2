package main

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/packets"

	"github.com/hotdeploy/hotdeploy/internal/api"
)

// A client that is behind by what the kernel holds and what may go along comes along and gets everything. One that is further behind is disconnected, as any
// broker does with who is too slow, and holds nobody up for longer than a second.
func TestBroker_SlowReaders(t *testing.T) {
	for _, tc := range []struct {
		name     string
		messages int
		comes    bool
	}{{"behind by 6 MB", 60, true}, {"behind by 30 MB", 300, false}} {
		t.Run(tc.name, func(t *testing.T) {
			defer func() {
				if w, ok := recover().(wrong); ok {
					t.Error(w)
				}
			}()
			d := newDaemon(t)
			d.push()
			s, p := call(d.addr, "slow"), call(d.addr, "fast")
			s.conn.(*net.TCPConn).SetReadBuffer(128 << 10) // else the kernel holds it all
			s.subscribe("much", 0)
			for n := range tc.messages {
				p.publish("much", 0, 0, text(n))
			}
			p.isThere()
			u := d.push()
			if u.Outcome != api.Done || u.Handoff.Error != "" || u.Handoff.Took > patience/2 {
				t.Fatalf("%s: %v, %+v", u.Outcome, u.Error, u.Handoff)
			}
			t.Logf("moved %d, kept %v in %s", u.Handoff.Moved, u.Handoff.Kept, u.Handoff.Took)
			p.isThere()
			if !tc.comes {
				s.conn.SetReadDeadline(time.Now().Add(patience))
				if _, err := io.Copy(io.Discard, s.conn); err != nil && !strings.Contains(err.Error(), "reset") {
					t.Errorf("it is still connected: %v", err)
				}
				return
			}
			for n := range tc.messages {
				if m := s.next().Content.(*packets.Publish); !bytes.Equal(m.Payload, []byte(text(n))) {
					t.Fatalf("message %d is %.20q, %d bytes", n, m.Payload, len(m.Payload))
				}
			}
			s.isThere()
		})
	}
}

func text(n int) string { return fmt.Sprintf("%d %s", n, strings.Repeat("x", 100_000)) }
