package upgrade

import (
	"net"
	"path/filepath"
	"testing"
)

// What comes over a unix socket moves as what comes over TCP.
func TestUnixSocket_Moves(t *testing.T) {
	echo := func(version string) *listener {
		base, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
		if err != nil {
			t.Fatal(err)
		}
		l := ListenFor(base, Lines()).(*listener)
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go answer(c, version)
			}
		}()
		return l
	}
	old, next := echo("1"), echo("2")
	client, err := net.Dial("unix", old.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	say(t, client, "a\n")
	expect(t, client, "1 a\n")
	kept, err := Deploy(within(t), Side{Listener: old}, Side{Listener: next})
	if err != nil || len(kept) > 0 {
		t.Fatalf("stayed: %v, %v", kept, err)
	}
	say(t, client, "b\n")
	expect(t, client, "2 b\n")
}

// answer sends each line back with a version.
func answer(c net.Conn, version string) {
	defer c.Close()
	b := make([]byte, 100)
	for {
		n, err := c.Read(b)
		if err != nil {
			return
		}
		if _, err := c.Write(append([]byte(version+" "), b[:n]...)); err != nil {
			return
		}
	}
}
