// Command wsecho is the sample app of tests, demo and benchmarks: short HTTP
// requests, WebSockets that live as long as their client wants, and on request
// every kind of misbehaviour that a deploy must survive.
//
// It owns nothing but its connections: the listeners come from the supervisor
// as systemd passes them, and a copy of each stays there. TCP listeners speak
// HTTP, unix stream listeners echo lines, datagram sockets echo datagrams.
//
// Always true of it: it accepts nothing before its start is over, and says
// READY=1 only when it accepts. After SIGTERM it accepts nothing more, but no
// accepted connection is closed from this side; it exits with 0 when the last
// client has left. The misbehaviours are the exceptions, each by its own flag
// or by WSECHO_<NAME> in the environment, so that a release may ask for them.
//
// Read first: run.
package main
