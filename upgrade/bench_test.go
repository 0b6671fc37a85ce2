package upgrade

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// listenFor returns a listener: the kernel's own, or ours.
func listenFor(b testing.TB, ours bool) net.Listener {
	if ours {
		return newTestListener(b, HTTP())
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { l.Close() })
	return l
}

// openSocket connects and opens a WebSocket by hand.
func openSocket(b testing.TB, l net.Listener) (client, c net.Conn) {
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	if c, err = l.Accept(); err != nil {
		b.Fatal(err)
	}
	say(b, client, upgradeRequest)
	expect(b, c, upgradeRequest)
	say(b, c, switching)
	expect(b, client, switching)
	b.Cleanup(func() { client.Close(); c.Close() })
	return client, c
}

// clientFrame is one message of n bytes, header and all.
func clientFrame(n int) []byte {
	f := &wsFramer{}
	for _, head := range []string{fmt.Sprintf("\x82%c", 0x80|n&0x7f), "\x82\xfe", "\x82\xff"} {
		b := make([]byte, n)
		copy(b, head)
		length := n - 8
		switch head[1] {
		case 0xfe:
			b[2], b[3] = byte(length>>8), byte(length)
			if length > 1<<16-1 {
				continue
			}
		case 0xff:
			length = n - 14
			for i := range 8 {
				b[2+i] = byte(length >> (56 - 8*i))
			}
		default:
			if n-6 > 125 {
				continue
			}
			b[1] = 0x80 | byte(n-6)
		}
		if k, end, _ := f.Next(b); k == n && end {
			return b
		}
		panic("a frame that is none")
	}
	return nil
}

// BenchmarkEcho is the price of a message: read with a buffer as libraries have, and sent back. The two kinds of connection take turns, since the
// machine is never the same twice; what counts is the ratio of the medians.
func BenchmarkEcho(b *testing.B) {
	for _, size := range []int{100, 8 << 10, 200 << 10} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			plain, ours := newEcho(b, false, size), newEcho(b, true, size)
			var times [2][]float64
			for range rounds {
				for i, e := range []*echo{plain, ours} {
					start := time.Now()
					for range 20 {
						e.once(b)
					}
					times[i] = append(times[i], float64(time.Since(start).Nanoseconds())/20)
				}
			}
			for b.Loop() {
			}
			p, o := median(times[0]), median(times[1])
			b.ReportMetric(p, "ns/plain")
			b.ReportMetric(o, "ns/ours")
			b.ReportMetric(100*(o/p-1), "%more")
			b.ReportMetric(testing.AllocsPerRun(100, func() { ours.once(b) }), "allocs/ours")
		})
	}
}

// rounds is how often each kind of connection has its turn.
const rounds = 1000

func median(list []float64) float64 {
	slices.Sort(list)
	return list[len(list)/2]
}

// echo is a client whose server sends back what it gets.
type echo struct {
	client      net.Conn
	frame, back []byte
}

func newEcho(b *testing.B, ours bool, size int) *echo {
	client, c := openSocket(b, listenFor(b, ours))
	go func() {
		buf := make([]byte, size)
		for {
			if readLikeBufio(c, buf) != nil {
				return
			}
			buf[1] &= 0x7f
			if _, err := c.Write(unmasked(buf)); err != nil {
				return
			}
		}
	}()
	return &echo{client, clientFrame(size), make([]byte, size)}
}

func (e *echo) once(b *testing.B) {
	e.client.Write(e.frame)
	if _, err := io.ReadFull(e.client, e.back); err != nil {
		b.Fatal(err)
	}
}

// unmasked makes a frame of the same size without a mask: the header says four bytes more.
func unmasked(b []byte) []byte {
	switch n := len(b); b[1] & 0x7f {
	case 126:
		b[2], b[3] = byte((n-4)>>8), byte(n-4)
	case 127:
		for i := range 8 {
			b[2+i] = byte((n - 10) >> (56 - 8*i))
		}
	default:
		b[1] = byte(n - 2)
	}
	return b
}

// readLikeBufio fills buf in pieces of 4 KiB, as bufio.Reader does for libraries, or directly where the rest is large.
func readLikeBufio(c net.Conn, buf []byte) error {
	for at := 0; at < len(buf); {
		n, err := c.Read(buf[at:min(len(buf), at+4096)])
		if err != nil {
			return err
		}
		at += n
	}
	return nil
}

// BenchmarkIdleMemory reports what an open, idle WebSocket costs on the heap, without the app.
func BenchmarkIdleMemory(b *testing.B) {
	const n = 2000
	per := map[bool]float64{}
	for _, ours := range []bool{false, true} {
		l := listenFor(b, ours)
		before := heap()
		conns := make([]net.Conn, 2*n)
		for i := range n {
			conns[2*i], conns[2*i+1] = openSocket(b, l)
		}
		per[ours] = float64(heap()-before) / n
		runtime.KeepAlive(conns)
	}
	for b.Loop() {
	}
	b.ReportMetric(per[true]-per[false], "B/conn-more")
	b.ReportMetric(per[false], "B/conn-plain")
}

func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// BenchmarkMove is one whole move inside one process, with net/http and no library: seal, record, descriptor, adopt, request, 101, open.
func BenchmarkMove(b *testing.B) {
	app := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			return
		}
		defer c.Close()
		io.WriteString(c, switching)
		io.Copy(io.Discard, readerOnly{c})
	})
	l := [2]*listener{newTestListener(b, HTTP()), newTestListener(b, HTTP())}
	for _, l := range l {
		s := &http.Server{Handler: app}
		go s.Serve(l)
		b.Cleanup(func() { s.Close() })
	}
	client, err := net.Dial("tcp", l[0].Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	defer client.Close() // and until then it is not collected, which would close it too
	say(b, client, upgradeRequest)
	expect(b, client, switching)
	b.ReportAllocs()
	ctx := within(b)
	for i := 0; b.Loop(); i++ {
		c := l[i%2].conns()[0]
		r, why := c.begin().seal(ctx)
		if why != "" {
			b.Fatal(why)
		}
		r, _ = parseRecord(r.append(nil))
		fd := -1
		c.control(func(s uintptr) { fd, _ = unix.FcntlInt(s, unix.F_DUPFD_CLOEXEC, 0) })
		next, err := l[(i+1)%2].adopt(r, fd)
		if err != nil {
			b.Fatal(err)
		}
		if why := <-next.verdict(); why != "" {
			b.Fatal(why)
		}
		c.confirm()
		next.open()
	}
}
