package upgrade_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"sync"

	"github.com/hotdeploy/hotdeploy/upgrade"
)

// hub is what the connections of an app share: a topic, and messages that are still being passed on.
type hub struct {
	passing sync.WaitGroup

	mu    sync.Mutex // protects what follows
	topic string
}

// serve is a handler of lines: each is a new topic, which everybody is told of while the next line is read.
func (h *hub) serve(c net.Conn) {
	defer c.Close()
	for lines := bufio.NewScanner(c); lines.Scan(); {
		text := lines.Text()
		h.passing.Go(func() {
			h.mu.Lock()
			defer h.mu.Unlock()
			fmt.Fprintf(c, "before it was %q\n", h.topic)
			h.topic = text
		})
	}
}

// park is called when nothing more comes in; what is being passed on still goes out.
func (h *hub) park(context.Context) error {
	h.passing.Wait()
	return nil
}

func (h *hub) freeze(context.Context) (version uint32, state []byte, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	state, err = json.Marshal(h.topic)
	return 1, state, err
}

func (h *hub) thaw(_ context.Context, version uint32, state []byte) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return json.Unmarshal(state, &h.topic) // of version 1: Options.States has no other
}

// resume undoes park, if there is anything to undo: some connections have stayed here, or all. Where others have moved, those who stay are better
// closed: they come again, to the hub where the others are.
func (h *hub) resume(_ context.Context, moved int) {}

func (h *hub) options() upgrade.Options {
	return upgrade.Options{
		Mode:       upgrade.Barrier,
		States:     []uint32{1},
		OnPark:     h.park,
		OnFreeze:   h.freeze,
		Freezes:    1,
		OnThaw:     h.thaw,
		OnRollback: h.resume,
	}
}

// A hub, whose connections know each other: nothing comes in while it moves, and in the next release nothing comes in before every
// connection is there.
func ExampleOptions_barrier() {
	old, next := &hub{topic: "nothing"}, &hub{}
	r := start(upgrade.Lines(), serveConns(old.serve), serveConns(next.serve))
	defer r.close()
	r.old.Options, r.next.Options = old.options(), next.options()

	c := r.dial()
	defer c.Close()
	answers := bufio.NewReader(c)
	propose := func(topic string) {
		fmt.Fprintln(c, topic)
		answer, _ := answers.ReadString('\n')
		fmt.Print(answer)
	}
	propose("the weather")
	r.deploy()
	propose("the sea")
	// Output:
	// before it was "nothing"
	// before it was "the weather"
}
