package upgrade

import (
	"io"
	"net"
	"runtime"
	"testing"
	"time"
)

// What was too much for its move is not too much for ever.
func TestLinger_TooMuchUnsent_MovesWhenItsClientHasTakenIt(t *testing.T) {
	const size = 3 * MaxUnsent
	from := served(t, func(c net.Conn) {
		c.Write(make([]byte, size))
		echo1(c)
	})
	client, err := net.Dial("tcp", from.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	client.SetDeadline(time.Now().Add(patience))
	for writes := false; !writes; runtime.Gosched() {
		for _, c := range from.conns() {
			c.mu.Lock()
			writes = c.inWrite
			c.mu.Unlock()
		}
	}
	a, b := channels(t)
	takeInto(b, testHello(protocols...), echoing(t))
	g := startGiver(t, a, testHello(protocols...))
	defer g.end()
	g.linger([]*listener{from})
	if err := g.await(within(t), func() bool { return g.tally.kept[ReasonUnsent] == 1 }); err != nil {
		t.Fatalf("%+v", g.tally)
	}
	if _, err := io.CopyN(io.Discard, client, size); err != nil {
		t.Fatal(err)
	}
	if err := g.await(within(t), func() bool { return g.tally.moved == 1 }); err != nil {
		t.Fatalf("%+v", g.tally)
	}
	talk(t, []net.Conn{client})
}
