package supervisor

import (
	"context"
	"fmt"
	"strconv"
	"testing"
	"time"

	"github.com/hotdeploy/hotdeploy/testdata/apps"
	"github.com/hotdeploy/hotdeploy/testdata/load"
)

// BenchmarkHandoff: a push with many WebSockets that say something every ten seconds. Goals: rolling at most 25 µs for each connection and
// at most 20 ms of pause; barrier 10,000 in at most 250 ms.
func BenchmarkHandoff(b *testing.B) {
	for _, mode := range []string{"rolling", "barrier"} {
		for _, n := range []int{1000, 10000} {
			b.Run(fmt.Sprintf("%s/%d", mode, n), func(b *testing.B) { benchHandoff(b, mode, n) })
		}
	}
}

func benchHandoff(b *testing.B, mode string, n int) {
	r, _ := newDaemonRig(b)
	r.app = apps.Build(b, "wslive", "", "")
	set := env("WSLIVE_MODE", mode)
	r.push("0", set)
	l, err := load.Start(context.Background(), load.Options{Addr: r.addr, WebSockets: n, MessageInterval: 10 * time.Second, Held: load.MayMove,
		OpenTimeout: time.Minute})
	if err != nil {
		b.Fatal(err)
	}
	if err := l.Ready(r.ctx()); err != nil {
		b.Fatal(err)
	}
	var took, pause []time.Duration
	for i := 0; b.Loop(); i++ {
		u := r.push(strconv.Itoa(i+1), set)
		if u.Handoff == nil || u.Handoff.Moved != n {
			b.Fatalf("%+v", u.Handoff)
		}
		took, pause = append(took, u.Handoff.Took), append(pause, u.Handoff.LongestPause)
	}
	if err := l.Stop(r.ctx()).Err(); err != nil {
		b.Error(err)
	}
	b.ReportMetric(ms(median(took)), "handoff-ms")
	b.ReportMetric(1000*ms(median(took))/float64(n), "us/conn")
	b.ReportMetric(ms(median(pause)), "pause-ms")
	b.ReportMetric(0, "ns/op")
}
