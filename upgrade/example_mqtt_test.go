package upgrade_test

import (
	"context"
	"encoding/json"
	"log"
	"net"

	"github.com/hotdeploy/hotdeploy/upgrade"
)

// broker stands for an MQTT broker; testdata/apps/mqttbroker is one with github.com/mochi-mqtt/server.
type broker struct {
	Retained map[string][]byte
	InFlight map[string][]uint16
}

func (*broker) Serve(net.Listener) error    { return nil }
func (*broker) Flush(context.Context) error { return nil }

// A broker moves at a barrier: what one client publishes reaches others, so nobody may speak before every session is there again. The
// client's CONNECT is said again by the SDK, and the broker's answer to it is not sent a second time.
func ExampleMQTT() {
	b := &broker{}
	up, err := upgrade.New(upgrade.Options{
		Mode:   upgrade.Barrier,
		States: []uint32{1},
		OnPark: b.Flush, // let the queues run empty; make sure that no will is published for a client that moves
		OnFreeze: func(context.Context) (uint32, []byte, error) {
			state, err := json.Marshal(b)
			return 1, state, err
		},
		OnThaw: func(_ context.Context, _ uint32, state []byte) error { return json.Unmarshal(state, b) },
	})
	if err != nil {
		log.Fatal(err)
	}
	ln, err := up.Listen("tcp", ":1883", upgrade.MQTT())
	if err != nil {
		log.Fatal(err)
	}
	go b.Serve(ln)
	if err := up.Ready(); err != nil {
		log.Fatal(err)
	}
	<-up.Exit()
}
