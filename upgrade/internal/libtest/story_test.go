package libtest

import (
	"context"
	"flag"
	"fmt"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/hotdeploy/hotdeploy/upgrade/internal/bridge"
)

var (
	handoffs = flag.Int("handoffs", 20, "moves in each story")
	clients  = flag.Int("clients", 20, "connections in each story")
)

// story has clients talk while their connections move to and fro between generations.
type story struct {
	from, to http.Handler // the apps of every other generation
	clients  int
	moves    int
	hostile
	fail func(n int) bridge.Step
	may  []string // reasons to stay that are in order
}

// tell runs a story. Between two moves each client gets through some messages.
func (s story) tell(t *testing.T) {
	a, b := newGeneration(t, s.from), newGeneration(t, s.to)
	stop := make(chan struct{})
	var all sync.WaitGroup
	list := make([]*client, s.clients)
	for i := range list {
		c, err := dial(a.Addr().String(), s.hostile, uint64(i))
		if err != nil {
			t.Fatal(err)
		}
		list[i] = c
		all.Go(func() {
			defer c.conn.Close()
			if err := c.talk(stop); err != nil {
				t.Errorf("client %d: %v", i, err)
			}
		})
	}
	moved, stayed := s.move(t, a, b)
	close(stop)
	all.Wait()
	messages, pings, pongs := 0, 0, 0
	for _, c := range list {
		messages, pings, pongs = messages+c.messages, pings+c.pings, pongs+c.pongs
	}
	t.Logf("%d messages, %d pings, %d pongs, %d moved, stayed %v", messages, pings, pongs, moved, stayed)
	if moved == 0 {
		t.Error("no connection has moved")
	}
	if pongs < pings {
		t.Errorf("%d pings were answered by %d pongs", pings, pongs)
	}
}

// move moves all connections to and fro.
func (s story) move(t *testing.T, a, b *generation) (total int, reasons map[string]int) {
	reasons = map[string]int{}
	for range s.moves {
		time.Sleep(30 * time.Millisecond) // lets the clients talk: pace, not synchronisation
		if t.Failed() {
			return
		}
		for _, way := range [][2]*generation{{a, b}, {b, a}} {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			moved, stayed := bridge.Move(ctx, way[0].Listener, way[1].Listener, s.fail)
			cancel()
			total += moved
			for why, n := range stayed {
				reasons[why] += n
			}
		}
	}
	for why := range reasons {
		if !contains(s.may, why) {
			t.Errorf("connections stayed: %v", reasons)
		}
	}
	return total, reasons
}

func contains(list []string, s string) bool {
	for _, x := range list {
		if x == s {
			return true
		}
	}
	return false
}

func TestLibraries_HostileClients(t *testing.T) {
	for name, app := range apps {
		t.Run(name, func(t *testing.T) {
			story{from: app, to: app, clients: *clients, moves: *handoffs, hostile: hostile{path: "/", largest: 20000, cut: 3000, ahead: 8}}.tell(t)
		})
	}
}

func TestLibraries_SingleBytes(t *testing.T) {
	for name, app := range apps {
		t.Run(name, func(t *testing.T) {
			story{from: app, to: app, clients: 6, moves: *handoffs, hostile: hostile{path: "/", largest: 300, cut: 2, ahead: 3}}.tell(t)
		})
	}
}

func TestLibraries_Compression(t *testing.T) {
	for _, name := range []string{"gorilla", "coder", "gws"} {
		t.Run(name, func(t *testing.T) {
			story{from: apps[name], to: apps[name], clients: 10, moves: *handoffs, hostile: hostile{path: "/?compress", compress: true, largest: 20000, cut: 3000, ahead: 4}}.tell(t)
		})
	}
}

func TestLibraries_StalledReaders(t *testing.T) {
	for name, app := range apps {
		t.Run(name, func(t *testing.T) {
			story{from: app, to: app, clients: 6, moves: 10, hostile: hostile{path: "/", largest: 500_000, buffer: 16 << 10, stall: 300 * time.Millisecond, ahead: 8}}.tell(t)
		})
	}
}

func TestLibraries_MessagesOf8MiB(t *testing.T) {
	for name, app := range apps {
		t.Run(name, func(t *testing.T) {
			story{from: app, to: app, clients: 2, moves: 10, hostile: hostile{path: "/", largest: 8 << 20, ahead: 2}}.tell(t)
		})
	}
}

func TestLibraries_FromOneToAnother(t *testing.T) {
	for from := range apps {
		for to := range apps {
			if from != to {
				t.Run(fmt.Sprintf("%s to %s", from, to), func(t *testing.T) {
					story{from: apps[from], to: apps[to], clients: 5, moves: 5, hostile: hostile{path: "/", largest: 20000, cut: 3000, ahead: 4}}.tell(t)
				})
			}
		}
	}
}

func TestLibraries_MovesThatFail(t *testing.T) {
	for name, app := range apps {
		t.Run(name, func(t *testing.T) {
			story{
				from: app, to: app, clients: 10, moves: *handoffs, hostile: hostile{path: "/", largest: 20000, cut: 3000, ahead: 8},
				fail: func(n int) bridge.Step { return bridge.Step(n % 3) }, may: []string{"sent", "accepted"},
			}.tell(t)
		})
	}
}
