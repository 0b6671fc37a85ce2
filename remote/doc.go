// Package remote talks to the VM over SSH: it finds out what a destination
// means to the operator's own ssh, logs in as strictly as ssh does, and
// runs commands, reaches sockets and uploads files there.
//
// It owns the SSH connections, from the first dial to [Session.Close].
//
// Always true of it:
//   - A host key that known_hosts does not vouch for ends the connection
//     before anything secret is sent, and no key is ever added unasked.
//   - Remote work has three outcomes and they are told apart by type: it
//     failed ([ExitError] and others), it never ran ([ErrNeverRan]), the line
//     was lost and nobody knows ([ErrLineLost]).
//   - A dead line is noticed within seconds, whatever is waiting on it.
//   - A wait that takes a context ends with it.
//   - What is on the host after an interrupted upload is at most [Rewind]
//     bytes short of what its size says, whatever the server.
//
// Read first: [Resolve], which makes a [Host] of a destination; then [Dial],
// which makes a [Session] of a host; then [Upload].
package remote
