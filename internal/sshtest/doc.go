// Package sshtest is an SSH server on loopback, made of x/crypto/ssh and
// pkg/sftp: enough of one to push a release to, without root, sshd or a
// network. It serves the tests of package remote and the demo.
//
// It owns: the listener, the connections and the commands that run in them.
//
// Always true of it: it listens on loopback only unless told otherwise, it
// lets nobody in whose key it was not given, and commands run as the user
// who started it, through sh -c, as with any sshd. A directory of its own
// is not a jail: whoever may log in may do what the user may do.
//
// Read [Start] first, then [Server.serveChannel].
//
// The real thing, OpenSSH's sshd run by a test, is in the package opensshd
// below this one.
package sshtest
