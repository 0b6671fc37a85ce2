// Package procs starts a generation as a process tree and can tell, at any later moment, which processes belong to it: to
// count them, to measure them, and to end them to the last one.
//
// What is always true:
//
//   - A [Group] begins with one main process, leader of its own session. Where a cgroup is delegated to us the tree is the
//     group's own cgroup; elsewhere it is the session, all descendants, and the orphans that the kernel hands to us
//     because we are a child subreaper. Callers see no difference.
//   - The main process is reaped only when its tree is empty: until then its pid names it and nothing else, so no signal can hit
//     a stranger who got the number later. Every other process is signalled through a pidfd.
//   - Nobody else in this program may wait for any child (wait4 with -1), nor start one in a session of its own:
//     such orphans of a generation are reaped here.
//
// Needs Linux 5.4 (pidfds), and 5.7 for cgroups. Read [Launch] first, then [LaunchMain], its other half in the child.
package procs
