// Package upgrade moves live connections from one release of an app to the next. An app takes its listener from here; when a
// new release is deployed, its clients keep their TCP connections and do not notice. An app changes where its listener comes from:
//
//	up, err := upgrade.New(upgrade.Options{})   // under hotdeployd, under systemd, or alone: then SIGHUP upgrades
//	ln, err := up.Listen("tcp", ":8080")        // inherited, or bound here
//	go http.Serve(ln, mux)                      // Accept also returns the connections of the release before
//	err = up.Ready()                            // we serve; the release before may let go
//	<-up.Exit()                                 // everything has moved on, or has ended: return from main
//
// The handlers stay as they are. There are examples for the libraries of gorilla, coder, gobwas and gws, for MQTT, lines, messages with a
// length and a protocol of one's own. A whole app is testdata/apps/wslive.
//
// # What a handler sees
//
// In the old release a Read fails with [ErrHandoff]. A handler does what it does whenever a Read fails: it returns, and closes the connection. For the
// client nothing is closed, and what was written before goes out.
//
// In the new release Accept returns the connection as if it were a new one, whose client says again what it said at the start: the request that
// became a WebSocket, or the CONNECT of an MQTT client. The handler answers as always. The answer is not sent a second time, since the client had it long ago; it must
// be what it was (a 101 with the same subprotocol, a CONNACK), or the connection stays in the old release. Then the client's next message is read. No
// message is lost, doubled or torn: one that is half here when the connection moves is given to the new release from its start.
//
// A handler with state of its own saves it: see [Session.Save]. It also learns from its [Session] that a connection is resumed.
//
// # What stays
//
// A connection that cannot move just stays with its process, which lives until the last one has ended. That goes for a request that takes longer than
// [Options.Patience] (its connection moves when it has been answered), server-sent events, HTTP/2, TLS that the app ends itself, a closing handshake
// under way, and everything that is not the protocol of its listener. Each has a [Reason], which is counted and shown.
//
// # What an app must mind
//
//   - State per connection: who the client is, rooms, counters, limits. Save it, with a version. List in [Options.States] what
//     this release can read; as long as there is a way back, the release before must be able to read it too.
//   - The handler runs again: no "Ada comes", and no second look at a ticket that was good for once, if [Session.Resumed].
//   - Hooks on disconnect (presence, last wills, cleaning up) must not run for [ErrHandoff]: errors.Is finds it.
//   - Own queues and goroutines that write: end them, and wait for them, between the failed Read and Close. What is written by then goes out;
//     later writes fail with ErrHandoff. Messages go out whole: one that is half written keeps the connection from moving.
//   - A message that was read belongs to the old release. Finish it before the next Read, or save it. Workers that go on after the handler's next Read
//     (ParallelEnabled of gws) may be at work on one when the state is saved.
//   - A handler that does not come back to Read, since it waits for something else, is not moved. It is told when it reads.
//   - Hubs, brokers and everything else that connections share: [Barrier], with the hooks of [Options].
//   - Timers, deadlines and the request's context are of one process: set them again. Connections that the app opened itself do not move.
//   - The descriptor: no File, no CloseWrite when a Read has failed with ErrHandoff. os.Exit and log.Fatal end what has not moved yet: wait for [Upgrader.Exit].
//
// # Why it is safe
//
// Each connection has exactly one owner at any instant. Only the owner reads from the socket or writes to it; a process that is not (yet) the owner
// holds a descriptor and nothing more. The new release's app accepts, says so, and the old release confirms: from then on the new one is the owner. When
// something fails before that, the old release takes the connection up again, by the same replay into its own handler. When a process dies it takes
// with it what it owned, and nothing else. PROTOCOL.md has every step.
//
// # The source
//
// Always true besides: no Read ever gives bytes of one message together with the end of the one before, so that a Read at a boundary proves
// that the library holds nothing back.
//
// One connection, file by file: listener.go accepts it; read.go and write.go carry its bytes; codec.go and the framers
// (framer.go, lines.go, websocket.go, http.go, mqtt.go) follow where its messages end; handoff.go is the side that gives it
// away, adopt.go the side that takes it, record.go what travels beside the descriptor; handshake.go edits the opening and compares
// the answers; session.go is the app's view.
//
// Between processes: upgrader.go obeys the supervisor and SIGTERM, standalone.go does without one, listen.go finds the sockets, give.go (with
// give_offer.go and give_verdict.go) and take.go are the two ends of a handoff, barrier.go the giver's other mode, channel.go their frames.
//
// Read [conn.Read] first, then conn.begin and conn.seal in handoff.go.
package upgrade
