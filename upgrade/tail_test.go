package upgrade

import (
	"bytes"
	"io"
	"net"
	"os"
	"testing"
	"time"
)

// slowlyMoved is a connection that has moved while its client read nothing: so much is unsent.
func slowlyMoved(t *testing.T, size int) (client io.Reader, c *conn) {
	t.Helper()
	tcp, old := pair(t, newTestListener(t, partLines()))
	old.sock.(*net.TCPConn).SetWriteBuffer(64 << 10)
	old.park() // a Write that does not block
	if _, err := old.Write(bytes.Repeat([]byte("."), size)); err != nil {
		t.Fatal(err)
	}
	r := mustSeal(t, old)
	if len(r.unsent) == 0 {
		t.Fatal("the kernel has taken everything")
	}
	next := adopted(t, newTestListener(t, partLines()), old, r)
	look(next)
	old.confirm()
	next.open()
	return tcp, next
}

func expectDots(t *testing.T, client io.Reader, size int, then string) {
	t.Helper()
	b := make([]byte, size+len(then))
	if n, err := io.ReadFull(client, b); err != nil || string(b[size:]) != then || bytes.Trim(b[:size], ".") != nil {
		t.Fatalf("the client got %d bytes that end in %q, %v", n, b[max(0, n-10):n], err)
	}
}

const muchUnsent = 4 << 20 // with what the kernel takes; no more than MaxUnsent is left

// What the app takes for written is on its way, whatever it wants of its next write.
func TestUnsent_GoesOutPastTheAppsDeadline(t *testing.T) {
	client, c := slowlyMoved(t, muchUnsent)
	c.SetWriteDeadline(time.Now().Add(time.Millisecond))
	<-time.After(2 * time.Millisecond) // it has passed, and the app says nothing more
	expectDots(t, client, muchUnsent, "")
}

// An answer to a ping has a second with some libraries, which end the connection if it takes longer. What is ahead of it is not the client's fault.
func TestUnsent_AWriteBehindIt_JoinsWhenItsTimeIsOver(t *testing.T) {
	client, c := slowlyMoved(t, muchUnsent)
	c.SetWriteDeadline(time.Now().Add(time.Millisecond))
	say(t, c, "pong")
	c.SetWriteDeadline(time.Time{})
	read := make(chan bool)
	go func() {
		defer close(read)
		expectDots(t, client, muchUnsent, "pongnext")
	}()
	say(t, c, "next")
	<-read
}

func TestUnsent_FullIsATimeout(t *testing.T) {
	_, c := slowlyMoved(t, muchUnsent)
	c.SetWriteDeadline(past)
	n, err := c.Write(make([]byte, MaxUnsent))
	if n != 0 || !isTimeout(err) || !os.IsTimeout(err) {
		t.Errorf("a write of more than there is room for: %d, %v", n, err)
	}
}
