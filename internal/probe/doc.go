// Package probe asks a generation whether it is ready and healthy.
//
// What is always true: the answer is that generation's own. Old and new generation accept on the same socket, so a
// probe opens connections until the kernel says that one was accepted by the generation's processes, and only
// then sends its first byte.
//
// Read [Check] first.
package probe
