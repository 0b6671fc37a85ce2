// Package host is a machine to deploy to, without root, sshd and systemd: an SSH server on loopback, the daemon, and the operator's
// command with its project, in one temporary directory. The demo and the tests that need the real programs use it.
//
// It owns the directory and the processes; Close ends and removes them. Always true: the command reaches the host as it would
// reach any other, over SSH by its own configuration; nothing of the caller's home directory is read or written.
//
// Read first: Start, then Host.Push.
package host
