package main

import (
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/hotdeploy/hotdeploy/upgrade"
)

// datagrams answers each datagram with the pid and itself, on the sockets of WSLIVE_PACKETS ("udp 127.0.0.1:53,unixgram /run/x"). WSLIVE_PACKET_WORK is
// how long it works on each.
func datagrams(up *upgrade.Upgrader) error {
	list := os.Getenv("WSLIVE_PACKETS")
	if list == "" {
		return nil
	}
	work, _ := time.ParseDuration(os.Getenv("WSLIVE_PACKET_WORK"))
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
				time.Sleep(work)
				if _, err := p.WriteTo(fmt.Appendf(nil, "%d %s", os.Getpid(), b[:n]), from); err != nil {
					fmt.Fprintln(os.Stderr, err)
				}
			}
		}()
	}
	return nil
}
