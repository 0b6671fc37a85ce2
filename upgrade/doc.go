// Package upgrade moves live connections from one release of an app to the next, inside the app: an app takes its
// listener from here and its clients do not notice a deploy.
//
// The idea is replay. The new process sees an inherited connection as a new one whose client says again what it said at
// the start: the request that became a WebSocket, the CONNECT of an MQTT client. An ordinary handler of an ordinary library
// reads it and answers; the answer is swallowed, since the client had it long ago; then the client goes on. The old process
// sees a Read that failed with [ErrHandoff], and a Close that seals the connection instead of ending it.
//
// What it owns: the listener and every connection that it accepted or adopted, from Accept to the moment when the other
// process has confirmed. What is always true: each connection has exactly one owner at any instant. Only the owner
// reads from the socket or writes to it; a process that is not (yet) the owner holds a descriptor and nothing more. And no
// Read ever gives bytes of one message together with the end of the one before, so that a Read at a boundary proves
// that the library holds nothing back.
//
// One connection, file by file: listener.go accepts it; read.go and write.go carry its bytes; codec.go and the framers
// (framer.go, websocket.go, http.go, mqtt.go) follow where its messages end; handoff.go is the side that gives it
// away, adopt.go the side that takes it, record.go what travels beside the descriptor; handshake.go edits the opening and compares
// the answers; session.go is the app's view.
//
// Between processes, by PROTOCOL.md: upgrader.go obeys the supervisor and SIGTERM, listen.go finds the sockets, give.go and take.go are the two
// ends of a handoff, barrier.go the giver's other mode, channel.go their frames.
//
// Read [conn.Read] first, then conn.begin and conn.seal in handoff.go.
package upgrade
