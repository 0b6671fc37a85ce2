package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/hotdeploy/hotdeploy/upgrade"
)

// datagrams answers each datagram with the pid and itself, on the sockets of WSLIVE_PACKETS ("udp 127.0.0.1:53,unixgram /run/x").
func datagrams(up *upgrade.Upgrader) error {
	list := os.Getenv("WSLIVE_PACKETS")
	if list == "" {
		return nil
	}
	for item := range strings.SplitSeq(list, ",") {
		network, address, _ := strings.Cut(item, " ")
		p, err := up.ListenPacket(network, address)
		if err != nil {
			return err
		}
		go func() {
			b := make([]byte, 64<<10)
			for {
				n, from, err := p.ReadFrom(b)
				if err != nil {
					return
				}
				if _, err := p.WriteTo(fmt.Appendf(nil, "%d %s", os.Getpid(), b[:n]), from); err != nil {
					fmt.Fprintln(os.Stderr, err)
				}
			}
		}()
	}
	return nil
}
