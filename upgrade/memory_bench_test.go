package upgrade

import (
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// memory is what a process needs after a garbage collection.
type memory struct{ Heap, Stacks, RSS int64 }

// tellMemory prints it at each signal.
func tellMemory() {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGUSR2)
	go func() {
		for range signals {
			runtime.GC()
			debug.FreeOSMemory()
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			b, _ := os.ReadFile("/proc/self/statm")
			var size, pages int64
			fmt.Sscan(string(b), &size, &pages)
			fmt.Printf("memory %d %d %d\n", m.HeapAlloc, m.StackInuse, pages*int64(os.Getpagesize()))
		}
	}()
}

func (p *process) memory(t testing.TB) (m memory) {
	t.Helper()
	before := p.log.String()
	p.cmd.Process.Signal(unix.SIGUSR2)
	for by := time.Now().Add(patience); time.Now().Before(by); <-time.After(time.Millisecond) {
		if line, ok := strings.CutPrefix(p.log.String(), before); ok && strings.HasSuffix(line, "\n") {
			if _, err := fmt.Sscanf(line, "memory %d %d %d\n", &m.Heap, &m.Stacks, &m.RSS); err != nil {
				t.Fatalf("%q: %v", line, err)
			}
			return m
		}
	}
	t.Fatal("the process does not tell its memory")
	return m
}

// BenchmarkMovedMemory compares what an idle connection costs in the process that accepted it and in the one that it has moved to.
func BenchmarkMovedMemory(b *testing.B) {
	for _, role := range []string{"http", "lines"} {
		b.Run(role, func(b *testing.B) {
			const n = 8000
			s := newService(b)
			first := s.start(role)
			none := first.memory(b)
			c := dialCrowd(b, s.ln.Addr().String(), role, n, 0)
			accepted := first.memory(b)
			second := s.start(role)
			noneYet := second.memory(b)
			if m := s.move(first, second); m.Moved != n {
				b.Fatalf("%+v", m)
			}
			moved := second.memory(b)
			c.talk(b)
			c.close(b)
			for b.Loop() {
			}
			b.ReportMetric(float64(accepted.Heap+accepted.Stacks-none.Heap-none.Stacks)/n, "B/accepted")
			b.ReportMetric(float64(moved.Heap+moved.Stacks-noneYet.Heap-noneYet.Stacks)/n, "B/moved")
			b.ReportMetric(float64(accepted.RSS-none.RSS)/n, "rss-B/accepted")
			b.ReportMetric(float64(moved.RSS-noneYet.RSS)/n, "rss-B/moved")
			b.ReportMetric(0, "ns/op")
		})
	}
}
