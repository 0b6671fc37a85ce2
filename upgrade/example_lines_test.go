package upgrade_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"

	"github.com/hotdeploy/hotdeploy/upgrade"
)

// A server of lines, with nothing of hotdeploy in its handler. A Read never gives the start of a line together with the end of the one
// before, so the Scanner holds nothing back when the connection moves.
func ExampleLines() {
	release := func(version string) func(net.Conn) {
		return func(c net.Conn) {
			defer c.Close()
			for lines := bufio.NewScanner(c); lines.Scan(); {
				fmt.Fprintf(c, "release %s got %q\n", version, lines.Text())
			}
		}
	}

	r := start(upgrade.Lines(), serveConns(release("1")), serveConns(release("2")))
	defer r.close()
	c := r.dial()
	fmt.Fprint(c, "first\nsecond\nthi")
	answers := bufio.NewReader(c)
	for range 2 {
		line, _ := answers.ReadString('\n')
		fmt.Print(line)
	}
	r.deploy() // in the middle of a line
	fmt.Fprint(c, "rd\n")
	c.(*net.TCPConn).CloseWrite()
	io.Copy(os.Stdout, answers)
	// Output:
	// release 1 got "first"
	// release 1 got "second"
	// release 2 got "third"
}
