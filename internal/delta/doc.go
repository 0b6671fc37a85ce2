// Package delta makes a new file of an old one and of little else.
//
// It owns the format of what little that is. [Make] finds out how the new file differs and writes that down, [Apply] makes the new file
// again. Without an old file a delta is the new one compressed.
//
// Always true of it:
//   - Apply(Make(old, new), old) is new, whatever they contain. The same two files give the same delta on any machine.
//   - Make needs at most some 300 MB of memory, Apply 40 MB, however large the files are; and both write as they go on.
//   - A delta may come from anybody. Apply writes no more than it is allowed to, and what is not a delta, or one of another old file's
//     size, is [ErrMalformed]. Whether the result is the file that was meant is for the caller to see, by its digest.
//
// # How it works
//
// The new file is cut into segments of 64 MiB (without an old file into smaller ones, see plain.go). For each, match.go finds
// stretches that the old file has too (seeds of 16 bytes, extended over what differs), window.go where in a large old file to look. What is in no stretch is literal, and is compressed
// with zstd. What differs within a stretch is mostly this: something was added to a program, what comes after it has moved, and with it
// every number that says where something is. How far what lies where has moved is known from the stretches
// (shifts.go); so difference.go foretells each such number, and says with an adaptive binary arithmetic code (coder.go, model.go)
// what comes as foretold and what does not. A rebuilt Go program of 12 MB takes some 35 kB then. It does not know of any processor or
// file format, except that an ELF file's first segment tells what pointers are relative to.
//
// # The format, version 1
//
// Numbers are as in [encoding/binary.AppendUvarint].
//
//	delta   = "hdd1" oldSize newSize base segment…
//	segment = newLength codedLength literalLength coded literal
//
// The segments' newLengths add up to newSize; each but the last is as long as the one before it. Base is what is added to a place in the
// old file to make it a pointer. The literal parts of all segments together are zstd frames with windows of at most 8 MiB.
//
// Coded is one arithmetic code. First come the ops: their number, and for each the length of the literal before the copy, the
// length of the copy, and where in the old file it begins, less where it would if it had moved as the copy before (a signed
// number). They add up to newLength. Then come the differences of each copy in pieces of 64 KiB, see difference.go. How many bits
// each of these takes is decided by the models; a change of any of them, or of a constant there, is a new version.
//
// Read [Make] first, then [Apply].
package delta
