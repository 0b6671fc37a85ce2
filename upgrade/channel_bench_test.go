package upgrade

import (
	"testing"
	"time"
)

// BenchmarkChannel moves connections between two listeners of one process, over the channel: the price without an HTTP server or a library.
func BenchmarkChannel(b *testing.B) {
	from, to := echoing(b), echoing(b)
	clients := callers(b, from, 3000)
	var took time.Duration
	moved := 0
	for b.Loop() {
		x, y := channels(b)
		done := takeInto(y, testHello(1), to)
		began := time.Now()
		g := startGiver(b, x, testHello(1))
		g.all(within(b), []*listener{from})
		took += time.Since(began)
		moved += g.tally.moved
		g.end()
		<-done
		from, to = to, from
	}
	talk(b, clients)
	b.ReportMetric(float64(took.Microseconds())/float64(moved), "us/conn")
	b.ReportMetric(0, "ns/op")
}
