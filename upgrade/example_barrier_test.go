package upgrade_test

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"

	"github.com/hotdeploy/hotdeploy/upgrade"
)

// hub is what the connections of an app share: rooms, and messages that wait to be passed on.
type hub struct {
	mu    sync.Mutex // protects what follows
	topic map[string]string
	queue []func()
}

// park passes on what waits: nothing more comes in, and what goes out goes out.
func (h *hub) park(context.Context) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, deliver := range h.queue {
		deliver()
	}
	h.queue = nil
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
	if version != 1 {
		return fmt.Errorf("shared state of version %d", version)
	}
	return json.Unmarshal(state, &h.topic)
}

// resume undoes park: some connections have stayed here, or all.
func (h *hub) resume(context.Context) {}

func (h *hub) options() upgrade.Options {
	return upgrade.Options{
		Mode:       upgrade.Barrier,
		States:     []uint32{1},
		OnPark:     h.park,
		OnFreeze:   h.freeze,
		OnThaw:     h.thaw,
		OnRollback: h.resume,
	}
}

// A hub, whose connections know each other: nothing comes in while it moves, and in the next release nothing comes in before every
// connection is there. Here the hooks are called one after the other, as the two processes do.
func ExampleOptions_barrier() {
	ctx := context.Background()
	old := &hub{topic: map[string]string{"lobby": "weather"}}
	old.queue = append(old.queue, func() { fmt.Println("delivered: hello, everybody") })
	next := &hub{}

	old.options().OnPark(ctx)
	version, state, _ := old.options().OnFreeze(ctx)
	next.options().OnThaw(ctx, version, state)
	fmt.Println("in the lobby they talk of", next.topic["lobby"])
	// Output:
	// delivered: hello, everybody
	// in the lobby they talk of weather
}
