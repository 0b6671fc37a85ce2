package upgrade

import (
	"bytes"
	"testing"
	"time"
)

// TestMQTT_MovesBeforeItsConnectIsComplete: a client that says nothing, or a part of its CONNECT, is no reason to wait, and can say the rest over there.
func TestMQTT_MovesBeforeItsConnectIsComplete(t *testing.T) {
	const connect = "\x10\x05hello"
	for said := range len(connect) {
		client, c := pair(t, newTestListener(t, MQTT()))
		say(t, client, connect[:said])
		expect(t, c, connect[:said])
		r := mustSeal(t, c)
		if len(r.opening) != 0 || string(r.kept) != connect[:said] {
			t.Fatalf("after %d bytes: opening %q, kept %q", said, r.opening, r.kept)
		}
		next := adopted(t, newTestListener(t, MQTT()), c, r)
		look(next)
		if why := verdictOf(t, next); why != "" {
			t.Fatalf("after %d bytes: %s", said, why)
		}
		c.confirm()
		next.open()
		say(t, client, connect[said:])
		expect(t, next, connect)
		say(t, next, "\x20\x02\x00\x00")
		expect(t, client, "\x20\x02\x00\x00")
		if r := mustSeal(t, next); string(r.opening) != connect || len(r.kept) != 0 {
			t.Fatalf("the second time: opening %q, kept %q", r.opening, r.kept)
		}
	}
}

// TestMQTT_ConnectWithoutAnAnswer_Stays: the app has it and thinks.
func TestMQTT_ConnectWithoutAnAnswer_Stays(t *testing.T) {
	client, c := pair(t, newTestListener(t, MQTT()))
	say(t, client, "\x10\x05hello")
	expect(t, c, "\x10\x05hello")
	o := c.begin()
	o.withdraw()
	if _, why := o.seal(within(t)); why != ReasonBusy {
		t.Fatalf("it stays: %q", why)
	}
}

// TestMQTT_CloseAfterTheHandoff_SaysNothing: a broker that says goodbye since its Read failed has not left its client.
func TestMQTT_CloseAfterTheHandoff_SaysNothing(t *testing.T) {
	client, c := pair(t, newTestListener(t, MQTT()))
	say(t, client, "\x10\x05hello")
	expect(t, c, "\x10\x05hello")
	say(t, c, "\x20\x02\x00\x00")
	o := c.begin()
	if _, err := c.Read(make([]byte, 9)); err != ErrHandoff {
		t.Fatal(err)
	}
	say(t, c, "\x30\x03\x00\x01a\xe0\x00") // a PUBLISH that was still queued, and DISCONNECT
	c.Close()
	r, why := o.seal(within(t))
	if why != "" {
		t.Fatal(why)
	}
	if next := c.resume(r); next == nil {
		t.Fatal("it did not come back")
	}
	expect(t, client, "\x20\x02\x00\x00\x30\x03\x00\x01a")
	again, err := c.listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	expect(t, again, "\x10\x05hello")
	say(t, again, "\x20\x02\x00\x00\xd0\x00")
	expect(t, client, "\xd0\x00")
}

// TestPark_DeadlinesRest: a pause is not the client's fault, so what was left of its app's patience is left afterwards.
func TestPark_DeadlinesRest(t *testing.T) {
	client, c := pair(t, newTestListener(t, Lines()))
	by := time.Now().Add(patience)
	c.SetReadDeadline(by)
	c.park()
	read := make(chan error, 1)
	go func() {
		_, err := c.Read(make([]byte, 10))
		read <- err
	}()
	if err := c.atRest(within(t)); err != nil {
		t.Fatal(err)
	}
	const pause = 5 * time.Millisecond
	time.Sleep(pause)
	c.unpark()
	say(t, client, "late\n")
	if err := <-read; err != nil {
		t.Fatal(err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.readBy < instantOf(by.Add(pause)) {
		t.Errorf("the pause counted: %s are missing", time.Duration(instantOf(by.Add(pause))-c.readBy))
	}
}

// TestPark_SlowClientDoesNotHoldItsHandler: what the kernel does not take of an answer goes along, so that the handler comes to a Read; and
// if the connection stays the client gets it all the same.
func TestPark_SlowClientDoesNotHoldItsHandler(t *testing.T) {
	client, c := pair(t, newTestListener(t, MQTT()))
	say(t, client, "\x10\x05hello")
	expect(t, c, "\x10\x05hello")
	say(t, c, "\x20\x02\x00\x00")
	expect(t, client, "\x20\x02\x00\x00")
	message := append([]byte("\x30\xff\xff\x3f"), bytes.Repeat([]byte("x"), 1<<20-1)...)
	const messages = 8 // more than the kernel takes, and than may go along
	read := make(chan error, 1)
	go func() {
		for range messages {
			if _, err := c.Write(message); err != nil {
				read <- err
				return
			}
		}
		_, err := c.Read(make([]byte, 10))
		read <- err
	}()
	for { // nothing tells that it is stuck in a Write
		c.mu.Lock()
		writing := c.inWrite
		c.mu.Unlock()
		if writing {
			break
		}
	}
	got := make(chan []byte, 1)
	c.park()
	go func() {
		b := make([]byte, messages*len(message))
		n := 0
		for n < len(b) {
			k, err := client.Read(b[n:])
			if n += k; err != nil {
				t.Errorf("the client reads: %v", err)
				break
			}
			if n == k { // it has begun; from here on there is room
				if err := c.atRest(within(t)); err != nil {
					t.Errorf("the handler does not come to a Read: %v", err)
				}
				c.unpark()
			}
		}
		got <- b[:n]
	}()
	if b := <-got; !bytes.Equal(b, bytes.Repeat(message, messages)) {
		t.Errorf("the client got %d bytes, not what was written", len(b))
	}
	say(t, client, "\xc0\x00")
	if err := <-read; err != nil {
		t.Error(err)
	}
}
