package upgrade

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	ctl "github.com/hotdeploy/hotdeploy/upgrade/control"
)

// channels are the two ends of a handoff channel.
func channels(t testing.TB) (a, b *channel) {
	t.Helper()
	x, y, err := ctl.HandoffPair()
	if err != nil {
		t.Fatal(err)
	}
	for _, end := range []struct {
		f  *os.File
		ch **channel
	}{{x, &a}, {y, &b}} {
		if *end.ch, err = newChannel(end.f); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { a.close(); b.close() })
	return a, b
}

func testHello(protocols ...int) hello {
	return hello{Protocols: protocols, Records: []int{recordVersion}, Mode: string(Rolling), Listeners: map[string]string{"test": "lines"}}
}

// echoing is a listener of lines whose app sends them back.
func echoing(t testing.TB) *listener {
	l := newTestListener(t, Lines())
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				in := bufio.NewReader(c)
				for {
					line, err := in.ReadString('\n')
					if err != nil {
						return
					}
					io.WriteString(c, line)
				}
			}()
		}
	}()
	return l
}

// callers are clients of a listener that have had an answer.
func callers(t testing.TB, l *listener, n int) []net.Conn {
	t.Helper()
	list := make([]net.Conn, n)
	for i := range list {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(patience))
		list[i] = c
	}
	talk(t, list)
	return list
}

// talk checks that somebody answers, and once.
func talk(t testing.TB, list []net.Conn) {
	t.Helper()
	for i, c := range list {
		say(t, c, fmt.Sprintf("line %d\n", i))
	}
	for i, c := range list {
		expect(t, c, fmt.Sprintf("line %d\n", i))
	}
}

func startGiver(t testing.TB, ch *channel, own hello) *giver {
	t.Helper()
	g, err := newGiver(ch, own, Options{Patience: patience}.withDefaults(), time.Now().Add(patience)) // a machine with other work makes anybody busy for a while
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// takeInto runs a taker and returns its end.
func takeInto(ch *channel, own hello, ls ...*listener) <-chan error {
	done := make(chan error, 1)
	go func() {
		_, err := take(ch, own, Options{}.withDefaults(), ls, time.Now().Add(patience))
		done <- err
	}()
	return done
}

func TestHandoff_FromListenerToListener(t *testing.T) {
	for _, tc := range []struct {
		mode         Mode
		giver, taker []int // versions
	}{
		{Rolling, []int{1, 2}, []int{1, 2}},
		{Rolling, []int{1, 2}, []int{1}},
		{Rolling, []int{1}, []int{1, 2, 3}},
		{Rolling, []int{2, 9}, []int{1, 2}},
		{Barrier, []int{1, 2}, []int{1, 2}},
		{Barrier, []int{1}, []int{1, 2}},
	} {
		t.Run(fmt.Sprint(tc.mode, tc.giver, tc.taker), func(t *testing.T) {
			from, to := echoing(t), echoing(t)
			clients := callers(t, from, 300)
			a, b := channels(t)
			own := testHello(tc.giver...)
			own.Mode = string(tc.mode)
			done := takeInto(b, testHello(tc.taker...), to)
			g := startGiver(t, a, own)
			g.all(within(t), []*listener{from})
			talk(t, clients)
			if g.tally.moved != 300 || len(g.tally.kept) != 0 || len(from.conns()) != 0 || len(to.conns()) != 300 {
				t.Errorf("%+v, %d and %d connections", g.tally, len(from.conns()), len(to.conns()))
			}
			g.end()
			if err := <-done; err != nil {
				t.Error(err)
			}
			t.Logf("longest pause %s", g.tally.longest)
		})
	}
}

// TestHandoff_AfterTheBarrier_LateOnesMoveOneByOne: what was busy when the others changed sides is not left between the two.
func TestHandoff_AfterTheBarrier_LateOnesMoveOneByOne(t *testing.T) {
	from, to := echoing(t), echoing(t)
	callers(t, from, 3)
	a, b := channels(t)
	own := testHello(1)
	own.Mode = string(Barrier)
	done := takeInto(b, testHello(1), to)
	g := startGiver(t, a, own)
	g.all(within(t), []*listener{from})
	late := callers(t, from, 2)
	g.linger([]*listener{from})
	g.await(within(t), func() bool { return g.open == 0 })
	talk(t, late)
	g.end()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if n := len(to.conns()); n != 5 {
		t.Errorf("%d connections have moved", n)
	}
}

func TestHandoff_NoVersionInCommon_NothingMoves(t *testing.T) {
	a, b := channels(t)
	done := takeInto(b, testHello(3, 4))
	if _, err := newGiver(a, testHello(protocols...), Options{}.withDefaults(), time.Now().Add(patience)); !errors.Is(err, errVersions) {
		t.Errorf("the giver: %v", err)
	}
	<-done
}

// fakeTaker says hello and leaves the rest to a test.
func fakeTaker(t testing.TB, ch *channel) {
	t.Helper()
	if err := ch.send(frameHello, mustJSON(t, testHello(protocols...))); err != nil {
		t.Fatal(err)
	}
	if f, err := ch.next(); err != nil || f.kind != frameHello {
		t.Fatalf("frame %d: %v", f.kind, err)
	}
}

func mustJSON(t testing.TB, v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// offerOf reads an OFFER whole.
func offerOf(t testing.TB, ch *channel) frame {
	t.Helper()
	f, err := ch.next()
	if err != nil || f.kind != frameOffer || len(f.fds) != f.count {
		t.Fatalf("frame %+v: %v", f, err)
	}
	f.payload = make([]byte, f.length)
	if _, err := io.ReadFull(ch.sock, f.payload); err != nil {
		t.Fatal(err)
	}
	return f
}

func TestGive_TakerFails_ConnectionsComeBack(t *testing.T) {
	all := func(f frame) (list []uint32) {
		for n := range f.count {
			list = append(list, f.first+uint32(n))
		}
		return list
	}
	for name, answer := range map[string]func(t *testing.T, ch *channel, f frame){
		"it ends":                         func(t *testing.T, ch *channel, f frame) { f.closeAll(); ch.close() },
		"it ends while it says something": func(t *testing.T, ch *channel, f frame) { f.closeAll(); ch.sock.Write([]byte{6, 0, 0}); ch.close() },
		"descriptors were lost": func(t *testing.T, ch *channel, f frame) {
			f.closeAll()
			ch.sendFull(frame{kind: frameNak, first: f.first, count: f.count}, nil)
		},
		"it refuses": func(t *testing.T, ch *channel, f frame) {
			f.closeAll()
			var b []byte
			for _, n := range all(f) {
				b = appendRefusal(b, n, ReasonRefused)
			}
			ch.send(frameRefused, b)
		},
		"it talks nonsense": func(t *testing.T, ch *channel, f frame) {
			f.closeAll()
			ch.send(frameOffer, nil)
			io.Copy(io.Discard, ch.sock)
			ch.close()
		},
		"it says nothing": func(t *testing.T, ch *channel, f frame) { f.closeAll() },
		"it confirms numbers that nobody has offered": func(t *testing.T, ch *channel, f frame) {
			f.closeAll()
			ch.send(frameReceipt, appendNumbers(nil, []uint32{f.first + uint32(f.count) + 7}))
			ch.close()
		},
	} {
		t.Run(name, func(t *testing.T) {
			from := echoing(t)
			clients := callers(t, from, 1)
			a, b := channels(t)
			go func() {
				fakeTaker(t, b)
				answer(t, b, offerOf(t, b))
			}()
			g := startGiver(t, a, testHello(1))
			g.all(within(t), []*listener{from})
			talk(t, clients)
			if g.tally.moved != 0 {
				t.Errorf("%+v", g.tally)
			}
			g.end()
		})
	}
}

// A taker that dies with a CONFIRM that it has not read, or has not answered, has touched nothing: the connections come back.
func TestGive_TakerEndsBeforeItOwns_ConnectionsComeBack(t *testing.T) {
	for _, mode := range []Mode{Rolling, Barrier} {
		t.Run(string(mode), func(t *testing.T) {
			from := echoing(t)
			clients := callers(t, from, 1)
			a, b := channels(t)
			own := testHello(protocols...)
			own.Mode = string(mode)
			confirmed := make(chan frame, 1)
			go func() {
				fakeTaker(t, b)
				f, err := b.next()
				if err == nil && f.kind == frameFreeze {
					b.send(frameThawed, nil)
					f, err = b.next()
				}
				if err != nil || f.kind != frameOffer {
					t.Errorf("frame %d: %v", f.kind, err)
				}
				io.CopyN(io.Discard, b.sock, int64(f.length))
				b.send(frameReceipt, appendNumbers(nil, []uint32{f.first}))
				k, _ := b.next()
				confirmed <- k
				f.closeAll()
				b.close()
			}()
			g := startGiver(t, a, own)
			g.all(within(t), []*listener{from})
			if k := <-confirmed; k.kind != frameConfirm {
				t.Errorf("frame %d instead of CONFIRM", k.kind)
			}
			talk(t, clients)
			if g.tally.moved != 0 || g.tally.kept[ReasonPeer] != 1 {
				t.Errorf("%+v", g.tally)
			}
			g.end()
		})
	}
}

// A taker that hangs with a CONFIRM is reported as soon as that is clear; the connection waits for its end.
func TestGive_TakerHangsBeforeItOwns_IsReported(t *testing.T) {
	from := echoing(t)
	clients := callers(t, from, 1)
	a, b := channels(t)
	go func() {
		fakeTaker(t, b)
		f := offerOf(t, b)
		b.send(frameReceipt, appendNumbers(nil, []uint32{f.first}))
		f.closeAll()
	}()
	g := startGiver(t, a, testHello(protocols...))
	g.all(within(t), []*listener{from})
	if !g.hangs || g.tally.moved != 0 {
		t.Errorf("%+v", g.tally)
	}
	b.close() // as when the supervisor ends it
	talk(t, clients)
}

// fakeGiver says hello and offers what l has.
func fakeGiver(t testing.TB, ch *channel, l *listener) []*sealedConn {
	t.Helper()
	fakeTaker(t, ch) // HELLO is the same
	var batch []*sealedConn
	f := frame{kind: frameOffer}
	for _, c := range l.conns() {
		r := mustSeal(t, c)
		batch = append(batch, &sealedConn{c: c, r: r})
		b := r.append(nil)
		f.payload = append(binary.BigEndian.AppendUint32(f.payload, uint32(len(b))), b...)
		f.count++
	}
	if err := lend(batch, nil, func(fds []int) error { return ch.sendFull(f, unix.UnixRights(fds...)) }); err != nil {
		t.Fatal(err)
	}
	return batch
}

func receiptOf(t testing.TB, ch *channel, n int) {
	t.Helper()
	for n > 0 {
		f, err := ch.next()
		if err != nil || f.kind != frameReceipt {
			t.Fatalf("frame %+v: %v", f, err)
		}
		list, _ := parseNumbers(f.payload)
		n -= len(list)
	}
}

// gives ends the giver's copies, as the end of its process does.
func letGo(batch []*sealedConn) {
	for _, s := range batch {
		s.c.confirm()
	}
}

func TestTake_GiverEnds(t *testing.T) {
	for name, tc := range map[string]struct {
		end  func(t *testing.T, ch *channel)
		ours bool
	}{
		"after the offer":      {func(t *testing.T, ch *channel) {}, true},
		"after the receipt":    {func(t *testing.T, ch *channel) { receiptOf(t, ch, 20) }, true},
		"after the confirm":    {func(t *testing.T, ch *channel) { receiptOf(t, ch, 20); ch.send(frameConfirm, nil) }, true},
		"after the withdrawal": {func(t *testing.T, ch *channel) { receiptOf(t, ch, 20); ch.send(frameWithdraw, nil) }, false},
		"in order": {func(t *testing.T, ch *channel) {
			receiptOf(t, ch, 20)
			ch.send(frameWithdraw, nil)
			ch.send(frameEnd, nil)
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			from, to := echoing(t), echoing(t)
			clients := callers(t, from, 20)
			a, b := channels(t)
			done := takeInto(b, testHello(1), to)
			batch := fakeGiver(t, a, from)
			tc.end(t, a)
			if !tc.ours {
				for _, s := range batch {
					s.c.resume(s.r)
				}
				talk(t, clients)
			}
			a.close()
			letGo(batch)
			if err := <-done; err != nil {
				t.Error(err)
			}
			talk(t, clients)
			if n := len(to.conns()); tc.ours != (n == 20) {
				t.Errorf("the taker has %d connections", n)
			}
		})
	}
}

func TestTake_LostDescriptors_AreRefused(t *testing.T) {
	from, to := echoing(t), echoing(t)
	clients := callers(t, from, 3)
	a, b := channels(t)
	takeInto(b, testHello(1), to)
	fakeTaker(t, a)
	var batch []*sealedConn
	f := frame{kind: frameOffer}
	for _, c := range from.conns() {
		r := mustSeal(t, c)
		batch = append(batch, &sealedConn{c: c, r: r})
		b := r.append(nil)
		f.payload = append(binary.BigEndian.AppendUint32(f.payload, uint32(len(b))), b...)
		f.count++
	}
	if err := lend(batch[:2], nil, func(fds []int) error { return a.sendFull(f, unix.UnixRights(fds...)) }); err != nil { // one is missing
		t.Fatal(err)
	}
	if nak, err := a.next(); err != nil || nak.kind != frameNak || nak.count != 3 {
		t.Fatalf("%+v, %v", nak, err)
	}
	for _, s := range batch {
		s.c.resume(s.r)
	}
	talk(t, clients)
	if n := len(to.conns()); n != 0 {
		t.Errorf("the taker has %d connections", n)
	}
}

// FuzzTake: whatever a giver sends, the taker ends and leaves nothing open.
func FuzzTake(f *testing.F) {
	f.Add([]byte{byte(frameHello), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, '{', '}', byte(frameOffer), 0, 0, 1})
	f.Add(append([]byte{byte(frameHello), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, '{', '}'}, byte(frameConfirm), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 1))
	f.Fuzz(func(t *testing.T, data []byte) {
		a, b := channels(t)
		done := takeInto(b, testHello(1))
		go io.Copy(io.Discard, a.sock)
		a.sock.Write(data)
		a.sock.CloseWrite()
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		select {
		case <-done:
		case <-ctx.Done():
			t.Error("the taker does not end")
		}
	})
}

// FuzzGive: whatever a taker says before it ends, the giver ends too, and each connection is either given away or goes on here.
func FuzzGive(f *testing.F) {
	says := func(kind byte, payload string) []byte {
		return append([]byte{kind, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, byte(len(payload)), 0, 0, 0, 0}, payload...)
	}
	for _, mode := range []bool{false, true} {
		f.Add(mode, says(byte(frameThawed), ""))
		f.Add(mode, append(says(byte(frameReceipt), "\x00\x00\x00\x00"), says(byte(frameRefused), "\x00\x00\x00\x01\x02no")...))
		f.Add(mode, append(says(byte(frameThawed), ""), says(byte(frameReceipt), "\x00\x00\x00\x01\x00\x00\x00\x01")...))
		f.Add(mode, says(byte(frameNak), ""))
		f.Add(mode, says(byte(frameOffer), "nonsense"))
	}
	f.Fuzz(func(t *testing.T, barrier bool, data []byte) {
		from := echoing(t)
		callers(t, from, 2)
		a, b := channels(t)
		own := testHello(1)
		if barrier {
			own.Mode = string(Barrier)
		}
		go func() {
			b.send(frameHello, mustJSON(t, testHello(1)))
			b.next()
			b.sock.Write(data)
			b.sock.CloseWrite()
			io.Copy(io.Discard, b.sock)
		}()
		g := startGiver(t, a, own)
		g.all(within(t), []*listener{from})
		g.end()
		if n := len(from.conns()); g.tally.moved+n != 2 {
			t.Errorf("%d connections have moved and %d are here", g.tally.moved, n)
		}
	})
}
