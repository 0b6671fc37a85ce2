// Package release describes a release: an immutable directory with a manifest, named by version and digest.
//
// It owns the manifest's form and its rules; whoever packs, uploads, verifies or runs a release speaks of it in these types.
// What is always true: a Manifest that passed [Manifest.Validate] names only files inside its own tree (no "..", no
// absolute path, nothing reached through a symlink), and the same input always encodes to the same bytes, whose
// SHA-256 is the release's digest. Names may have any bytes that the kernel takes: see [Shown].
//
// Read [Manifest] first, then [Pack] (operator's side) and [Verify] (host's side); tree.go holds the promise about symlinks.
package release
