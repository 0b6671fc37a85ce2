// Package probe asks a generation whether it is ready and healthy.
//
// What is always true: the answer is that generation's own. Old and new generation accept on the same socket, so a probe opens
// connections until the kernel says that one was accepted by the generation's processes. Only on that one it sends
// anything; the others are closed without a byte. A check ends when its context does, and leaves no process behind. What
// comes back is limited in size and fit for a terminal.
//
// Read [Check] first, then reach.
package probe
