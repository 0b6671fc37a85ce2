package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"time"

	"github.com/hotdeploy/hotdeploy/internal/release"
)

// Bounds on uploads that nobody finishes.
const (
	maxUploads = 8
	uploadLife = 7 * 24 * time.Hour // without progress
)

// upload is one directory in incoming/. Whoever uploads may write in parts/, and nothing that lies there is believed.
type upload struct {
	parts    *os.Root
	manifest *release.Manifest
	raw      []byte // the manifest's bytes: they have the upload's digest
}

func (u *upload) close() { u.parts.Close() }

// openUpload opens an upload that Plan began; [fs.ErrNotExist]: there is none that is whole. The caller closes it.
func (s *Store) openUpload(digest string) (*upload, error) {
	dir, err := openDir(s.root, path.Join(incomingDir, digest))
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	raw, err := readLimited(dir, release.ManifestName, release.MaxManifestBytes)
	if err != nil {
		return nil, err
	}
	if release.Digest(raw) != digest {
		return nil, fmt.Errorf("%s is not the manifest of that digest: %w", release.ManifestName, fs.ErrNotExist)
	}
	m, err := s.decode(raw)
	if err != nil {
		return nil, err
	}
	parts, err := openDir(dir, partsDir)
	if err != nil {
		return nil, err
	}
	return &upload{parts, m, raw}, nil
}

// beginUpload makes what is missing of an upload. Where something else stands in its way, that is put aside.
func (s *Store) beginUpload(digest string, manifest []byte) error {
	incoming, err := openDir(s.root, incomingDir)
	if err != nil {
		return err
	}
	defer incoming.Close()
	dir, err := s.ownDir(incoming, digest, os.ModeSetgid|0o750)
	if err != nil {
		return err
	}
	defer dir.Close()
	old, err := readLimited(dir, release.ManifestName, release.MaxManifestBytes)
	if err != nil || release.Digest(old) != digest {
		if err := writeFile(dir, release.ManifestName, manifest, 0o640); err != nil {
			return err
		}
	}
	parts, err := s.ownDir(dir, partsDir, os.ModeSetgid|0o770)
	if err != nil {
		return err
	}
	return errors.Join(parts.Close(), syncPath(incoming, "."))
}

// ownDir opens a directory of ours, or makes it.
func (s *Store) ownDir(parent *os.Root, name string, mode os.FileMode) (*os.Root, error) {
	fi, err := parent.Lstat(name)
	if err == nil && fi.IsDir() && isOurs(fi) {
		return openDir(parent, name)
	}
	if err == nil {
		s.discard(parent, name)
	}
	if err := makeDir(parent, name, mode); err != nil {
		return nil, err
	}
	return openDir(parent, name)
}

// discard removes an entry of incoming/. What belongs to somebody else may resist; then it is at least out of the way.
func (s *Store) discard(parent *os.Root, name string) {
	temp := tempName()
	if err := parent.Rename(name, temp); err != nil {
		temp = name
	}
	if err := parent.RemoveAll(temp); err != nil {
		s.warn("remove %s from %s: %w", name, s.path(incomingDir), err)
	}
}

// maxHole is how far before its end an interrupted part may have holes, rounded up: a smaller part is begun anew.
const maxHole = 4 << 20

// arrived is how much of a blob is there and whether it is all of it, as far as the budget of bytes to read allows to say.
// What cannot become the blob is removed.
func (s *Store) arrived(ctx context.Context, u *upload, b *blob, budget *int64) (at int64, whole bool, err error) {
	if u == nil {
		return 0, false, nil
	}
	f, fi, err := openRegular(u.parts, b.sha)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return 0, false, nil
	case err != nil, fi.Size() > b.size: // also what we may not read: who sends it now may be somebody else
		s.discard(u.parts, b.sha)
		return 0, false, closeIf(f)
	}
	defer f.Close()
	if fi.Size() < b.size || b.size > *budget {
		return fi.Size(), false, nil
	}
	*budget -= b.size
	whole, err = hasContent(ctx, f, b.size, b.sha)
	if err == nil && !whole && b.size <= maxHole {
		s.discard(u.parts, b.sha)
		return 0, false, nil
	}
	return b.size, whole, err
}

func closeIf(f *os.File) error {
	if f == nil {
		return nil
	}
	return f.Close()
}

// dropUpload removes an upload that is finished or given up.
func (s *Store) dropUpload(digest string) {
	incoming, err := openDir(s.root, incomingDir)
	if err != nil {
		s.warn("remove the upload %s: %w", digest, err)
		return
	}
	defer incoming.Close()
	if _, err := incoming.Lstat(digest); err == nil {
		s.discard(incoming, digest)
	}
}

// dropStale removes uploads that nobody works on: those that have lain still for too long, and of the others all but the
// keep that moved last. The one that is asked for and one that Complete is reading stay, and do not count.
func (s *Store) dropStale(asked string, now time.Time, keep int) error {
	incoming, err := openDir(s.root, incomingDir)
	if err != nil {
		return err
	}
	defer incoming.Close()
	type seen struct {
		name string
		at   time.Time
	}
	var uploads []seen
	for e, err := range entries(incoming, ".") {
		if err != nil {
			return err
		}
		if name := e.Name(); release.CheckDigest(name) == nil && name != asked && !s.isCompleting(name) {
			uploads = append(uploads, seen{name, lastProgress(incoming, name)})
		}
	}
	slices.SortFunc(uploads, func(a, b seen) int { return b.at.Compare(a.at) })
	for i, u := range uploads {
		if i >= keep || now.Sub(u.at) > uploadLife {
			s.discard(incoming, u.name)
		}
	}
	return nil
}

// lastProgress is when something last arrived.
func lastProgress(incoming *os.Root, name string) time.Time {
	fi, err := incoming.Lstat(name)
	if err != nil {
		return time.Time{}
	}
	last := fi.ModTime()
	dir, err := openDir(incoming, name)
	if err != nil {
		return last
	}
	defer dir.Close()
	for _, in := range []string{".", partsDir} { // bundles and parts
		for e, err := range entries(dir, in) {
			if err != nil {
				break
			}
			if fi, err := e.Info(); err == nil && fi.ModTime().After(last) {
				last = fi.ModTime()
			}
		}
	}
	return last
}

func (s *Store) isCompleting(digest string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.completing == digest
}

func (s *Store) setCompleting(digest string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.completing = digest
}
