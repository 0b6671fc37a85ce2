package store

import (
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/hotdeploy/hotdeploy/internal/release"
)

// maxIdle is how many bundles of an upload stay that nobody sends just now: what is to be sent depends on what its sender has, and several may
// have been interrupted.
const maxIdle = 3

// busyBundles are those that are being received or rebuilt. They are not removed to make room.
type busyBundles struct {
	mu    sync.Mutex // protects users; held while others are removed, so that nobody begins with one that is about to go
	users map[string]int
}

func busyKey(digest, id string) string { return digest + "/" + id }

// begin keeps a bundle until end is called.
func (b *busyBundles) begin(digest, id string) (end func()) {
	key := busyKey(digest, id)
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.users == nil {
		b.users = map[string]int{}
	}
	b.users[key]++
	return func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.users[key]--; b.users[key] == 0 {
			delete(b.users, key)
		}
	}
}

// dropIdle removes the bundles of an upload that nobody works on, but for those that moved last, and tells how many it removed.
func (s *Store) dropIdle(dir *os.Root, digest string, keep int) int {
	s.busy.mu.Lock()
	defer s.busy.mu.Unlock()
	var idle []fs.FileInfo
	for id, fi := range bundles(dir) {
		if s.busy.users[busyKey(digest, id)] == 0 {
			idle = append(idle, fi)
		}
	}
	slices.SortFunc(idle, func(a, b fs.FileInfo) int { return b.ModTime().Compare(a.ModTime()) })
	idle = idle[min(keep, len(idle)):]
	for _, fi := range idle {
		s.discard(dir, fi.Name())
	}
	return len(idle)
}

// dropAllIdle removes the bundles of all uploads that nobody works on, and tells whether there were any.
func (s *Store) dropAllIdle() bool {
	incoming, err := openDir(s.root, incomingDir)
	if err != nil {
		return false
	}
	defer incoming.Close()
	dropped := 0
	for e, err := range entries(incoming, ".") {
		if err != nil {
			break
		}
		if release.CheckDigest(e.Name()) != nil {
			continue
		}
		if dir, err := openDir(incoming, e.Name()); err == nil {
			dropped += s.dropIdle(dir, e.Name(), 0)
			dir.Close()
		}
	}
	return dropped > 0
}

// bundles tells the bundles of an upload, by ID.
func bundles(dir *os.Root) map[string]fs.FileInfo {
	list := map[string]fs.FileInfo{}
	for e, err := range entries(dir, ".") {
		if err != nil {
			break
		}
		id, is := strings.CutPrefix(e.Name(), bundlePrefix)
		if fi, err := e.Info(); is && err == nil && fi.Mode().IsRegular() && isOurs(fi) && release.CheckDigest(id) == nil {
			list[id] = fi
		}
	}
	return list
}
