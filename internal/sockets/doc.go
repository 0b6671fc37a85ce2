// Package sockets binds the listening sockets that a service's generations share, and asks the kernel about the connections that
// came through them.
//
// What is always true: a socket's O_NONBLOCK is left alone once an app has it, since the flag is shared by all who hold the
// socket and flipping it hangs a neighbour; nothing here accepts; a number that comes from here is the kernel's
// (sock_diag(7), /proc/PID/fd), not a count of our own.
//
// Read [Bind] first, then [Connections] and [AcceptedBy].
package sockets
