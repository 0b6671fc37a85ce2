package sockets

import (
	"bytes"
	"errors"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func TestAcceptedBy_TellsTwoAcceptorsOfOneSocketApart(t *testing.T) {
	eachNetwork(t, func(t *testing.T, s *Socket) {
		older, newer := startApp(t, nil, s.File), startApp(t, nil, s.File)
		check := func(what string, c net.Conn, byOlder, byNewer, wantAccepted bool) {
			t.Helper()
			for _, by := range []struct {
				a    *app
				want bool
			}{{older, byOlder}, {newer, byNewer}} {
				owner, accepted, err := AcceptedBy(c, by.a.pids())
				if err != nil || owner != by.want || accepted != wantAccepted {
					t.Errorf("%s: owner %v, accepted %v, %v", what, owner, accepted, err)
				}
			}
		}
		conns := dial(t, s, 3)
		for _, c := range conns {
			check("in the queue", c, false, false, false)
		}
		older.do("accept", 1)
		newer.do("accept", 1)
		older.do("accept", 1)
		check("first", conns[0], true, false, true)
		check("second", conns[1], false, true, true)
		check("third", conns[2], true, false, true)
		if owner, accepted, err := AcceptedBy(conns[1], append(older.pids(), newer.pids()...)); !owner || !accepted || err != nil {
			t.Errorf("one of both: owner %v, accepted %v, %v", owner, accepted, err)
		}
		newer.do("close", 1)
		check("closed by its owner", conns[1], false, false, false)
	})
}

func TestAcceptedBy_ConnectionThatIsBoundToItsInterface(t *testing.T) {
	if os.Getenv("IN_NAMESPACE") == "" {
		inNamespace(t)
		return
	}
	for _, command := range []string{"ip link set lo up", "ip addr add fe80::1/64 dev lo nodad"} {
		words := strings.Fields(command)
		if out, err := exec.Command(words[0], words[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", command, err, out)
		}
	}
	s := bind(t, "tcp6", "[fe80::1%lo]:0")
	a := startApp(t, nil, s.File)
	c, err := s.Dial(t.Context())
	for errors.Is(err, syscall.ENETUNREACH) { // the kernel adds the route a little later than the address, and tells nobody who is not at its netlink
		c, err = s.Dial(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	a.do("accept", 1)
	if owner, accepted, err := AcceptedBy(c, a.pids()); !owner || !accepted || err != nil {
		t.Errorf("owner %v, accepted %v, %v", owner, accepted, err)
	}
	if n, err := Connections(a.pids(), []*Socket{s}); n != 1 || err != nil {
		t.Errorf("counted %d, %v", n, err)
	}
}

// inNamespace runs the test again in a network of its own.
func inNamespace(t *testing.T) {
	t.Helper()
	asNobody(t) // who is not root cannot make one
	cmd := exec.Command("/proc/self/exe", "-test.v", "-test.run=^"+t.Name()+"$")
	cmd.Env = append(os.Environ(), "IN_NAMESPACE=yes", "GORACE=atexit_sleep_ms=0")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	if out, err := cmd.CombinedOutput(); err != nil || !bytes.Contains(out, []byte("--- PASS: "+t.Name())) {
		t.Errorf("%v:\n%s", err, out)
	}
}

func TestAcceptedBy_StrangeConnection(t *testing.T) {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	if _, _, err := AcceptedBy(a, nil); err == nil {
		t.Error("a pipe was accepted by somebody")
	}
}

func TestSplit_MalformedAnswersAreErrors(t *testing.T) {
	header := func(size uint32, kind uint16, body ...byte) []byte {
		b := make([]byte, unix.SizeofNlMsghdr, unix.SizeofNlMsghdr+len(body))
		native.PutUint32(b, size)
		native.PutUint16(b[4:], kind)
		return append(b, body...)
	}
	for name, tt := range map[string]struct {
		in   []byte
		done bool
		err  bool
		n    int
	}{
		"empty":           {nil, false, false, 0},
		"cut header":      {make([]byte, 15), false, false, 0},
		"size too small":  {header(3, byFamily), true, true, 0},
		"size too large":  {header(17, byFamily), true, true, 0},
		"done":            {header(16, unix.NLMSG_DONE), true, false, 0},
		"error":           {header(20, unix.NLMSG_ERROR, 0xfe, 0xff, 0xff, 0xff), true, true, 0},
		"no error":        {header(20, unix.NLMSG_ERROR, 0, 0, 0, 0), false, false, 0},
		"cut error":       {header(18, unix.NLMSG_ERROR, 1, 2), true, true, 0},
		"one":             {header(17, byFamily, 7), false, false, 1},
		"two and padding": {append(header(17, byFamily, 7, 0, 0, 0), header(16, byFamily)...), false, false, 2},
	} {
		n := 0
		done, err := split(tt.in, func([]byte) { n++ })
		if done != tt.done || (err != nil) != tt.err || n != tt.n {
			t.Errorf("%s: done %v, %v, %d messages", name, done, err, n)
		}
	}
	for _, m := range [][]byte{nil, make([]byte, 16), append(make([]byte, 16), 3, 0, 0, 0), append(make([]byte, 16), 9, 0, 0, 0), append(make([]byte, 16), 4, 0, 1, 0, 1)} {
		if b, ok := unixAttr(m, attrPeer); ok {
			t.Errorf("%v has a peer: %v", m, b)
		}
	}
	if _, ok := parseInet(make([]byte, inetMessageSize-1)); ok {
		t.Error("a message that is too short was read")
	}
}
