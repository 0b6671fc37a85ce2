// Package supervisor runs one service on one machine: it owns the listening sockets, starts generations beside each other,
// decides which one serves, and takes everything back when a new one fails.
//
// What is always true: one goroutine, the loop, owns the state ([Supervisor] below its line "owned by the loop") and
// everybody else sends it functions; at most one generation is starting; at most one is serving; until the commit the state
// on disk names the old release, after it the new one, and nothing else decides which one boots. The supervisor is not
// in the data path: it holds sockets, it never accepts on them.
//
// One upgrade, file by file: server.go takes the request, upgrade.go walks through the phases (verify, start, ready, soak,
// commit), generation.go starts and watches the process, listeners.go lends it the sockets, health.go decides whether it may
// stay, drain.go sees the old one off. keeper.go restarts what crashes and goes back to the release before when it
// keeps crashing. handoff.go moves live connections between ready and soak.
//
// A supervisor may be killed at any instruction: ledger.go writes down what runs, adopt.go goes on with what another one left, end.go
// ends it if none comes.
//
// Read [Supervisor.Run] first, then upgrade.go.
package supervisor
