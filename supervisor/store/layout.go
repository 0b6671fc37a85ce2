package store

import (
	"crypto/rand"
	"errors"
	"io/fs"
	"os"
	"path"
	"strings"
)

// Names under the root.
const (
	releasesDir = "releases"
	incomingDir = "incoming"
	partsDir    = "parts" // in an upload
	sharedDir   = "shared"
	tmpDir      = "tmp"
	stateDir    = "state"
	currentLink = "current"
	envFile     = "env"
	stateFile   = stateDir + "/supervisor.json"
	historyFile = stateDir + "/history.jsonl"
	lockFile    = stateDir + "/lock"
)

// Limits on what is read. A file beyond them is refused, not cut.
const (
	maxStateBytes = 1 << 20
	maxEnvBytes   = 256 << 10
	maxLineBytes  = 64 << 10 // of the history
)

// tempPrefix marks what nobody waits for any more once its process is gone. A release cannot have such a name.
const tempPrefix = ".hotdeploy-"

func tempName() string { return tempPrefix + rand.Text() }

func isTemp(name string) bool { return strings.HasPrefix(name, tempPrefix) }

// ClearTmp empties the service's own temporary folder, where set-up has made one. It is for a start at which nobody is there to miss
// what is in it. What cannot be removed at once goes at the next Open.
func (s *Store) ClearTmp() {
	dir, err := openDir(s.root, tmpDir)
	if err != nil {
		return
	}
	defer dir.Close()
	for e, err := range entries(dir, ".") {
		if err == nil {
			err = forceRemove(dir, e.Name())
		}
		if err != nil {
			s.warn("clean up %s: %w", s.path(tmpDir), err)
		}
	}
}

// removeLeftovers removes what a process that was killed had not finished. It is called under the lock, before any work.
func (s *Store) removeLeftovers() {
	for _, dir := range []string{".", releasesDir, stateDir, sharedDir} {
		s.removeTemps(s.root, dir)
	}
	incoming, err := openDir(s.root, incomingDir)
	if err != nil {
		s.warn("clean up %s: %w", s.path(incomingDir), err)
		return
	}
	defer incoming.Close()
	s.removeTemps(incoming, ".")
	for e, err := range entries(incoming, ".") {
		if err != nil || !e.IsDir() {
			continue
		}
		if up, err := openDir(incoming, e.Name()); err == nil {
			s.removeTemps(up, ".")
			if parts, err := openDir(up, partsDir); err == nil {
				s.removeTemps(parts, ".")
				parts.Close()
			}
			up.Close()
		}
	}
}

func (s *Store) removeTemps(root *os.Root, dir string) {
	for e, err := range entries(root, dir) {
		if err == nil && isTemp(e.Name()) {
			err = forceRemove(root, path.Join(dir, e.Name()))
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			s.warn("clean up %s: %w", s.path(dir), err)
		}
	}
}
