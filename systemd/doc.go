// Package systemd is everything hotdeploy says to systemd and hears from it:
// readiness and watchdog messages, listening sockets that systemd bound,
// streams into the journal, the text of units, and the set-up of a service
// on its host. It also holds the other end of the notify protocol, since the
// supervisor is to its generations what systemd is to the supervisor.
//
// Always true:
//   - Absent systemd is a normal answer, not an error: a Notifier without a
//     NOTIFY_SOCKET sends nothing, Listeners without LISTEN_FDS is empty.
//   - Every file descriptor made or received here is close-on-exec.
//   - A unit file is only ever made from validated values, and only a unit
//     that carries our marker is ever overwritten.
//   - Set-up never restarts a running service: that would close connections.
//     Its daemon is asked to make way for a newer one, and what is installed is
//     what runs, also when it cannot.
//
// Read Notifier first, then NotifySocket (the same protocol from the other
// side), then ServiceUnit, and Setup last.
package systemd
