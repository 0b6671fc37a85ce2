// Package bridge lets tests in a module of their own, with WebSocket and MQTT libraries that users of upgrade shall not have to fetch,
// reach what package upgrade does not export. It owns nothing; package upgrade fills it in when it is initialised.
package bridge

import (
	"context"
	"net"
)

// Listen wraps a listener of the kernel; the protocol is "http", "mqtt" or "lines".
var Listen func(l net.Listener, name, protocol string) net.Listener

// Move gives all connections of one listener to another, as two processes would, and returns how many moved and why others did not. In fail
// are, by number, the steps to break: after how many the other side is taken for dead.
var Move func(ctx context.Context, from, to net.Listener, fail func(n int) Step) (moved int, stayed map[string]int)

// Step is where a move breaks.
type Step int

// The steps.
const (
	None     Step = iota
	Sent          // the record is made and nothing comes of it
	Accepted      // the other app has accepted, and dies before the receipt
)

// Conns counts the connections that a listener has.
var Conns func(l net.Listener) int
