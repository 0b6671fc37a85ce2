// Package procs starts a generation as a process tree and can tell, at any later moment, which processes belong to it: to
// count them, to measure them, and to end them to the last one.
//
// What is always true:
//
//   - A [Group] begins with one main process, leader of a session of its own. Where a cgroup is delegated to us the tree is the
//     group's own cgroup (cgroup_linux.go). Elsewhere it is the session, all descendants, and the orphans that the kernel
//     hands to us because we are a child subreaper (session_linux.go). Callers see no difference.
//   - The main process stays a zombie until Remove: its pid, which is also its session's and its process group's number, means
//     nobody else for as long as the Group is used. Other processes are looked at again through a pidfd before they are
//     signalled. So no signal hits a stranger who got a number later.
//   - Nobody else in this program waits for any child (wait4 with -1) or starts one in a session of its own: in such sessions
//     only orphans of generations are expected, and they are reaped here.
//   - A child inherits the files that its Spec names and nothing else; signals are at their defaults, none is blocked.
//
// It needs Linux 5.4 (pidfds); a cgroup is ended atomically from 5.14 on. Read [Launch] first, then [LaunchMain], its other
// half in the child.
package procs
