package control

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"
)

func TestPending_HandlesSoManyAtATime(t *testing.T) {
	c, theirs, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	defer theirs.Close()
	const sent = maxPending + 20
	for range sent {
		if _, err := unix.Write(int(theirs.Fd()), []byte(`{"v":1,"type":"hello"}`)); err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range []int{maxPending, sent - maxPending, 0} {
		n := 0
		if err := c.Pending(func(Message) { n++ }); err != nil || n != want {
			t.Errorf("%d, %v; want %d", n, err, want)
		}
	}
}

// FuzzMessage: a packet is a message or ErrMessage, whatever is in it.
func FuzzMessage(f *testing.F) {
	f.Add([]byte(`{"v":1,"type":"hello","protocols":[1],"listeners":[{"name":"web","protocol":"http"}]}`), 0)
	f.Add([]byte(`{"type":"given","kept":{"busy":1}}`), 0x20)
	f.Fuzz(func(t *testing.T, packet []byte, flags int) {
		if _, file, err := decode(packet, nil, flags); file != nil || err != nil && !errors.Is(err, ErrMessage) {
			t.Errorf("file %v, %v", file, err)
		}
	})
}
