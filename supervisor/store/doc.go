// Package store owns what lies under a service's root on the host:
//
//	releases/<version>/   manifest.json and files/, read-only
//	incoming/<digest>/    manifest.json, and parts/<sha256> or bundle-<id>: uploads, resumable
//	current               → releases/<version>, the committed one
//	shared/               what lives across releases
//	env                   KEY=value, the host's own environment of the service
//	state/                supervisor.json, history.jsonl, lock
//
// Always true:
//   - A release is absent or complete. It is built beside releases/<version> under a temporary name, checked, synced and
//     renamed; it is renamed away before it is deleted. Whatever has a temporary name is a leftover and goes at the next [Open].
//   - A process that has a [Store] is alone: it holds state/lock until it ends.
//   - Nothing here follows a symlink out of the root, and what lies in incoming/ is taken for written by a stranger: only
//     what is in releases/ under our own name and with the right digest is believed.
//   - Making a release of a bundle takes at most 64 MiB of memory, whatever its size; it begins while the bundle arrives (early.go).
//   - A damaged state file is an error with a remedy, never an empty state.
//
// Every method may be called from several goroutines at once. What changes releases/ waits for its turn, and gives up
// when its context ends.
//
// Read [Store.Plan] first, then [Store.Complete]: together they are one upload; [Store.Receive] and
// [Store.Rebuild] come between them where a bundle is sent. Then [Store.LoadState].
package store
