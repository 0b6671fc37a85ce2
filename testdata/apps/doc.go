// Package apps gives tests the sample apps: wsecho (Go), built on demand, and
// the same small contract in Python (pyecho) and Node (nodeecho).
//
// Always true: a path that it returns belongs to the asking test alone and
// does not change under it, while the build behind it happens once per
// configuration, however many test binaries ask at the same time.
//
// Read first: Build.
package apps
