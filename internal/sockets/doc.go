// Package sockets binds the listening sockets that a service's generations share, and asks the kernel about the connections that
// came through them: how many a generation holds, who accepted one, and how to close them without the app's help.
//
// What is always true:
//
//   - Nothing here accepts, and a number that comes from here is the kernel's (sock_diag(7), /proc/PID/fd), not a count of our own.
//   - O_NONBLOCK belongs to the socket, not to a descriptor: all who hold it share the flag, old generations too. A socket is
//     blocking when it is made, as systemd passes its own (NonBlocking= is off by default) and as a plain accept in Python
//     or C expects. Event loops (Go, Node, asyncio, nginx) make it non-blocking themselves. What the first app made of
//     it stays: setting it back for the next one would hang the older one in accept. So nothing here changes the flag
//     afterwards, and descriptors are reached through SyscallConn, since Fd can change it too.
//   - Sockets are plain TCP, not MPTCP, which Go's net would make by default: apps of any language expect that, and so does counting.
//
// Read [Bind] first, then [Connections] and [AcceptedBy].
package sockets
