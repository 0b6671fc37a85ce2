package upgrade_test

import (
	"bufio"
	"fmt"
	"io"
	"net"

	"github.com/hotdeploy/hotdeploy/upgrade"
)

// netstrings finds where messages like "5:hello," end.
type netstrings struct {
	left   int  // bytes of the text and its comma that are still to come
	inText bool // the length is complete
}

func (f *netstrings) Next(b []byte) (n int, end bool, err error) {
	for ; !f.inText; n++ {
		switch {
		case n == len(b):
			return n, false, nil
		case b[n] == ':':
			f.left++ // the comma
			f.inText = true
		case b[n] < '0' || b[n] > '9' || f.left > 1<<20:
			return n, false, upgrade.ErrFraming
		default:
			f.left = f.left*10 + int(b[n]-'0')
		}
	}
	take := min(f.left, len(b)-n)
	n, f.left = n+take, f.left-take
	if f.left > 0 {
		return n, false, nil
	}
	*f = netstrings{} // as good as new
	return n, true, nil
}

// A protocol of one's own needs only a way to tell where a message of a client ends.
func ExampleFramed() {
	protocol := upgrade.Framed("netstrings", func() upgrade.Framer { return &netstrings{} })

	read := func(r *bufio.Reader) (text string, err error) {
		var size int
		if _, err := fmt.Fscanf(r, "%d:", &size); err != nil {
			return "", err
		}
		b := make([]byte, size+1)
		_, err = io.ReadFull(r, b)
		return string(b[:size]), err
	}
	release := func(version string) func(net.Conn) {
		return func(c net.Conn) {
			defer c.Close()
			in := bufio.NewReader(c)
			for {
				text, err := read(in)
				if err != nil {
					return
				}
				answer := version + " got " + text
				fmt.Fprintf(c, "%d:%s,", len(answer), answer)
			}
		}
	}

	r := start(protocol, serveConns(release("release 1")), serveConns(release("release 2")))
	defer r.close()
	c := r.dial()
	defer c.Close()
	answers := bufio.NewReader(c)
	for _, text := range []string{"5:hello,", "11:hello again,"} {
		fmt.Fprint(c, text)
		answer, _ := read(answers)
		fmt.Println(answer)
		r.deploy()
	}
	// Output:
	// release 1 got hello
	// release 2 got hello again
}
