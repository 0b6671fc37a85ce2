package upgrade_test

import (
	"encoding/binary"
	"fmt"
	"io"
	"log"
	"net"

	"github.com/hotdeploy/hotdeploy/upgrade"
)

// Messages of a two-byte length and as many bytes.
func ExampleLengthPrefixed() {
	protocol, err := upgrade.LengthPrefixed(upgrade.Prefix{Width: 2, Order: binary.BigEndian})
	if err != nil {
		log.Fatal(err)
	}
	read := func(c net.Conn) (string, error) {
		var head [2]byte
		if _, err := io.ReadFull(c, head[:]); err != nil {
			return "", err
		}
		body := make([]byte, binary.BigEndian.Uint16(head[:]))
		_, err := io.ReadFull(c, body)
		return string(body), err
	}
	write := func(c net.Conn, text string) error {
		_, err := c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(text))), text...)) // whole messages only
		return err
	}
	release := func(version string) func(net.Conn) {
		return func(c net.Conn) {
			defer c.Close()
			for {
				text, err := read(c)
				if err != nil || write(c, version+" got "+text) != nil {
					return
				}
			}
		}
	}

	r := start(protocol, serveConns(release("release 1")), serveConns(release("release 2")))
	defer r.close()
	c := r.dial()
	defer c.Close()
	for _, text := range []string{"hello", "hello again"} {
		write(c, text)
		answer, _ := read(c)
		fmt.Println(answer)
		r.deploy()
	}
	// Output:
	// release 1 got hello
	// release 2 got hello again
}
