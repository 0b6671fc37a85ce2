package upgrade

import (
	"errors"
	"fmt"
	"net"
	"os"
	"testing"
	"time"
)

// sharedPacketConns are one udp socket in two processes, as far as the kernel can tell, and a client.
func sharedPacketConns(t *testing.T) (a, b packetConn, client net.Conn) {
	t.Helper()
	p, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f, err := p.(*net.UDPConn).File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	q, err := net.FilePacketConn(f)
	if err != nil {
		t.Fatal(err)
	}
	if client, err = net.Dial("udp", p.LocalAddr().String()); err != nil {
		t.Fatal(err)
	}
	a, b = gated(p), gated(q)
	t.Cleanup(func() {
		a.Close()
		b.Close()
		client.Close()
	})
	return a, b, client
}

// listenPackets reads on, until the conn is closed.
func listenPackets(p net.PacketConn) <-chan string {
	got := make(chan string, 1000)
	go func() {
		defer close(got)
		b := make([]byte, 100)
		for {
			n, _, err := p.ReadFrom(b)
			if err != nil {
				got <- err.Error()
				return
			}
			got <- string(b[:n])
		}
	}()
	return got
}

func TestGate_OnlyOneReads(t *testing.T) {
	a, b, client := sharedPacketConns(t)
	b.pause()
	fromA, fromB := listenPackets(a), listenPackets(b)
	readers := []<-chan string{fromA, fromB}
	for turn := range 6 {
		for i := range 50 {
			want := fmt.Sprintf("%d/%d", turn, i)
			fmt.Fprint(client, want)
			select {
			case got := <-readers[turn%2]:
				if got != want {
					t.Fatalf("%q came, not %q", got, want)
				}
			case got := <-readers[(turn+1)%2]:
				t.Fatalf("%q went to the one that shall not read", got)
			}
		}
		if turn%2 == 0 {
			a.pause()
			fmt.Fprint(client, "between")
			b.proceed()
			if got := <-fromB; got != "between" {
				t.Fatalf("%q came", got)
			}
		} else {
			b.pause()
			a.proceed()
		}
	}
}

func TestGate_DeadlinesAndCloseAreTheApps(t *testing.T) {
	a, b, _ := sharedPacketConns(t)
	for name, prepare := range map[string]func(){"its turn": func() {}, "paused": a.pause, "its turn again": a.proceed} {
		prepare()
		a.SetReadDeadline(time.Now().Add(5 * time.Millisecond))
		if _, _, err := a.ReadFrom(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: a read with a deadline: %v", name, err)
		}
	}
	b.pause()
	got := listenPackets(b)
	b.Close()
	if text := <-got; !errors.Is(errorOf(b), net.ErrClosed) {
		t.Errorf("a paused read after Close: %s", text)
	}
	if _, err := a.WriteTo([]byte("x"), a.LocalAddr()); err != nil {
		t.Errorf("write: %v", err)
	}
}

func errorOf(p net.PacketConn) error {
	_, _, err := p.ReadFrom(nil)
	return err
}
