// Package load is the client that must not notice a deploy. It holds WebSockets
// that send numbered messages and check every echo, and at the same time makes
// new connections at a fixed rate, each with one short request. Tests, demo and
// benchmarks run it against wsecho and then ask its Report.
//
// It owns its connections and goroutines; Stop ends them all.
//
// Always true: what it counts as wrong did happen on the wire, and whatever
// happened is counted: a connection is never opened again, a request never
// retried. A message whose echo is still due is not a lost one. New connections
// are open-loop: their schedule does not wait for answers, so a server that
// hangs for a second cannot hide by slowing the driver down.
//
// Read first: Start, then Report; check.go holds the judgement itself.
package load
