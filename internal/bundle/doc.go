// Package bundle is what is sent of a release whose host has another one already: one stream, from which the host makes all
// contents that it lacks.
//
// A bundle begins with a [Recipe], which names files of the release that is there (the base) and files of the new one. What
// follows is a delta, see package delta, from the contents of the former to those of the latter, each set one behind another. So
// whatever has moved between files costs nothing either, and small files are compressed together. A bundle without a base is
// compressed.
//
//	bundle = "hdb1" length recipe delta      length as in encoding/binary.AppendUvarint, recipe as JSON
//
// Always true of it:
//   - The same recipe for the same release gives the same bytes, wherever: an upload may go on from another machine.
//   - A bundle may come from anybody. [Open] believes nothing in it, and what is made of it is checked against the manifest by
//     whoever keeps it.
//
// Without a common base there are no chunks of what the host has, as rsync would look for: measured on a Go program of 12 MB with one
// function more, chunks of 4 to 64 kB save 30% (2 kB: 33%), since numbers change everywhere in it; a library that several machines
// share saves 99%.
//
// Read [Choose] first, then [Write] and [Bundle.Apply].
package bundle
