// Package api is what the command and the daemon say to each other: the types of the control API, its error codes, its
// outcomes, and the client. The API is HTTP with JSON over a unix socket, paths under /v1.
//
// What is always true: an error crosses the socket as a code and comes back as the same sentinel ([Error.Is]); a field is
// added but never given another meaning within v1; an event has a sequence number, so that a reader that lost the line
// can go on where it was.
//
//	GET    /v1/status                       Status
//	GET    /v1/releases                     []ReleaseInfo
//	POST   /v1/uploads                      manifest bytes in, UploadPlan out
//	POST   /v1/uploads/{digest}/complete    ReleaseInfo; idempotent
//	DELETE /v1/uploads/{digest}             take back a release that was uploaded and will not be started after all
//	POST   /v1/upgrades                     UpgradeRequest in, Upgrade out (202); it goes on if the caller leaves
//	GET    /v1/upgrades/{id}                Upgrade, also of the past
//	GET    /v1/history?n=N                  []Upgrade, those that have ended, the newest first
//	DELETE /v1/upgrades/{id}                cancel before the commit; Upgrade out when it has ended
//	GET    /v1/events?since=SEQ&follow=1    one Event a line
//	POST   /v1/start, /v1/stop              StopRequest in, Status out
//	DELETE /v1/generations/{number}         retire: end one draining generation, with ?now=1 at once
//	GET    /v1/logs?release=V&lines=N&follow=1   text; only where the daemon holds the output itself (no journal)
//	GET    /metrics                         Prometheus text
//
// Read [Status], [Upgrade] and [Client] first.
package api
