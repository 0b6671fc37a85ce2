package main

import (
	"bufio"
	"net"
)

// serveLines accepts on ln until it is closed; each connection gets its own
// lines back until its client leaves.
func (a *app) serveLines(ln net.Listener) {
	for {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		a.live.Add(1)
		a.held.Go(func() {
			defer a.live.Add(-1)
			defer conn.Close()
			echoLines(conn)
		})
	}
}

func echoLines(conn net.Conn) {
	in := bufio.NewScanner(conn) // lines up to 64 KiB, then it ends
	for in.Scan() {
		if _, err := conn.Write(append(in.Bytes(), '\n')); err != nil {
			return
		}
	}
}

// echoDatagrams sends each datagram back until pc is closed. What waits in the
// queue then is for the next generation, which has the same socket.
func echoDatagrams(pc net.PacketConn) {
	buf := make([]byte, 64<<10)
	for {
		n, from, err := pc.ReadFrom(buf)
		if err != nil {
			return
		}
		if from != nil { // an unnamed unix datagram socket cannot be answered
			_, _ = pc.WriteTo(buf[:n], from)
		}
	}
}
