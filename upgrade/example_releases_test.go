package upgrade_test

import (
	"context"
	"fmt"
	"log"
	"net"
	"net/http"
	"time"

	"github.com/gorilla/websocket"

	"github.com/hotdeploy/hotdeploy/upgrade"
)

// releases are two releases of an app, which the examples have in one process. Outside of examples each is a process of its own,
// takes its listener from [upgrade.Upgrader.Listen], and whoever deploys it has the connections moved.
type releases struct{ old, next upgrade.Side }

func start(p upgrade.Protocol, old, next func(net.Listener)) releases {
	opt := upgrade.Options{States: []uint32{1, 2}, Log: log.Printf}
	r := releases{upgrade.Side{Options: opt, Listener: listen(p)}, upgrade.Side{Options: opt, Listener: listen(p)}}
	go old(r.old.Listener)
	go next(r.next.Listener)
	return r
}

func listen(p upgrade.Protocol) net.Listener {
	base, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	return upgrade.ListenFor(base, p)
}

// deploy moves all connections from the old release to the next one.
func (r releases) deploy() {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if kept, err := upgrade.Deploy(ctx, r.old, r.next); err != nil || len(kept) > 0 {
		fmt.Println("not everything has moved:", kept, err)
	}
}

// dial returns a client of the old release.
func (r releases) dial() net.Conn {
	c, err := net.Dial("tcp", r.old.Listener.Addr().String())
	if err != nil {
		log.Fatal(err)
	}
	return c
}

func (r releases) close() {
	r.old.Listener.Close()
	r.next.Listener.Close()
}

func serveHTTP(h http.HandlerFunc) func(net.Listener) {
	return func(ln net.Listener) { http.Serve(ln, h) }
}

// serveConns has each connection handled in a goroutine of its own.
func serveConns(handle func(net.Conn)) func(net.Listener) {
	return func(ln net.Listener) {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go handle(c)
		}
	}
}

// chat has a client say something to the old release of a WebSocket app and something to the next one, on one connection.
func chat(old, next http.HandlerFunc, first, second string) {
	r := start(upgrade.HTTP(), serveHTTP(old), serveHTTP(next))
	defer r.close()
	c, _, err := websocket.DefaultDialer.Dial("ws://"+r.old.Listener.Addr().String(), nil)
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	say(c, first)
	r.deploy()
	say(c, second)
}

// say prints the answer.
func say(c *websocket.Conn, text string) {
	if err := c.WriteMessage(websocket.TextMessage, []byte(text)); err != nil {
		log.Fatal(err)
	}
	_, answer, err := c.ReadMessage()
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s\n", answer)
}
