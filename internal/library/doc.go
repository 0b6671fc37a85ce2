// Package library keeps releases on the operator's side, so that there is something to compute a delta from.
//
//	releases/<digest>       the manifest; when it was last used is its time
//	contents/<ab>/<sha256>  each content once, however many releases have it
//
// It lies in a folder of this machine, or in one of another that is reached over SFTP, which several machines may share.
//
// Always true of it:
//   - A release is there when its manifest is, and that is written last. What an interrupted [Library.Add] leaves goes with time.
//   - Nothing in it is believed: a manifest has its digest for a name, and a content is compared with its own before it is given out.
//   - It may be lost at any time. Then more is sent, and nothing else happens.
//   - Any number of processes may use it at once, without a lock: names say what is in a file, and what is young is not removed.
//
// Read [Library.Add] first, then [Library.Content].
package library
