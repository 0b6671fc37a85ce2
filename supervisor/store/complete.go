package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"sync"

	"github.com/hotdeploy/hotdeploy/internal/api"
	"github.com/hotdeploy/hotdeploy/internal/release"
)

// Complete makes an upload a release, or says that it is one already. Interrupted anywhere, also by the end of the
// process, it can be called again; until it returns nil there is no release of that version. After [api.ErrDigest] and
// [api.ErrIncomplete] Plan tells what to send once more. One runs at a time; the others wait.
func (s *Store) Complete(ctx context.Context, digest string) (api.ReleaseInfo, error) {
	if err := release.CheckDigest(digest); err != nil {
		return api.ReleaseInfo{}, refuse(api.ErrBadRequest, "", "%v", err)
	}
	if err := s.building.take(ctx); err != nil {
		return api.ReleaseInfo{}, err
	}
	defer s.building.give()
	version, err := s.byDigest(digest)
	if err == nil && version == "" {
		version, err = s.complete(ctx, digest)
	}
	if err != nil {
		return api.ReleaseInfo{}, s.explain(err)
	}
	if err := s.planning.take(ctx); err == nil { // what is left of it otherwise goes with time
		s.dropUpload(digest)
		s.planning.give()
	}
	return s.info(version)
}

func (s *Store) complete(ctx context.Context, digest string) (version string, err error) {
	s.setCompleting(digest)
	defer s.setCompleting("")
	u, err := s.openUpload(digest)
	if errors.Is(err, fs.ErrNotExist) {
		return "", refuse(api.ErrNotFound, "push it again", "there is no upload %.12s on this host", digest)
	}
	if err != nil {
		return "", fmt.Errorf("open the upload %.12s: %w", digest, err)
	}
	defer u.close()
	version = u.manifest.Version
	if _, err := s.isThere(version, digest); err != nil {
		return "", err
	}
	temp := path.Join(releasesDir, tempName())
	defer func() {
		if err != nil {
			s.discardRelease(temp)
		}
	}()
	if err := s.build(ctx, temp, u); err != nil {
		return "", err
	}
	return version, s.publish(temp, version)
}

// build makes the whole release under a temporary name and does not return before it is on the disk.
func (s *Store) build(ctx context.Context, temp string, u *upload) error {
	m := u.manifest
	blobs, err := s.blobs(ctx, m)
	if err != nil {
		return err
	}
	if err := makeDir(s.root, temp, 0o755); err != nil {
		return fmt.Errorf("begin release %s: %w", m.Version, err)
	}
	tree, err := openDir(s.root, temp)
	if err != nil {
		return fmt.Errorf("begin release %s: %w", m.Version, err)
	}
	defer tree.Close()
	b := &builder{store: s, upload: u, tree: tree, m: m}
	for _, do := range []func() error{
		b.makeDirs,
		func() error { return b.fill(ctx, blobs) },
		b.makeEmptyFiles,
		b.makeSymlinks, // after the files, so that none is written through one
		b.makeShared,
		func() error { return writeFile(tree, release.ManifestName, u.raw, 0o444) },
		b.closeDirs,
		func() error { return b.sync(ctx) },
	} {
		if err := do(); err != nil {
			return err
		}
	}
	return nil
}

// publish is the instant in which the release begins to exist.
func (s *Store) publish(temp, version string) error {
	step("publish")
	if err := s.root.Rename(temp, path.Join(releasesDir, version)); err != nil {
		return fmt.Errorf("publish release %s: %w", version, err)
	}
	step("published")
	if err := syncPath(s.root, releasesDir); err != nil {
		return fmt.Errorf("publish release %s: %w", version, err)
	}
	step("synced")
	return nil
}

// builder fills one release directory that nobody else sees yet.
type builder struct {
	store  *Store
	upload *upload
	tree   *os.Root
	m      *release.Manifest

	mu    sync.Mutex // guards dirty
	dirty []string   // what may not be on the disk yet, under tree
}

func inFiles(p string) string { return path.Join(release.FilesDir, p) }

func (b *builder) makeDirs() error {
	if err := makeDir(b.tree, release.FilesDir, 0o755); err != nil {
		return err
	}
	for _, d := range parents(b.m) {
		if err := makeDir(b.tree, inFiles(d), 0o755); err != nil {
			return fmt.Errorf("make %s: %w", release.Shown(d), err)
		}
		b.soil(inFiles(d))
	}
	b.soil(release.FilesDir, ".")
	step("dirs")
	return nil
}

func (b *builder) makeEmptyFiles() error {
	for i := range b.m.Files {
		f := &b.m.Files[i]
		if f.Link != "" || f.Size != 0 {
			continue
		}
		if f.SHA256 != release.Digest(nil) {
			return refuse(api.ErrDigest, "", "%s is empty but has another digest than an empty file has", release.Shown(f.Path))
		}
		h, err := b.tree.OpenFile(inFiles(f.Path), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return fmt.Errorf("make %s: %w", release.Shown(f.Path), err)
		}
		if err := errors.Join(h.Chmod(finalMode(f)), h.Close()); err != nil {
			return fmt.Errorf("make %s: %w", release.Shown(f.Path), err)
		}
		b.soil(inFiles(f.Path))
	}
	return nil
}

func (b *builder) makeSymlinks() error {
	for i := range b.m.Files {
		f := &b.m.Files[i]
		if f.Link == "" {
			continue
		}
		if err := b.tree.Symlink(f.Link, inFiles(f.Path)); err != nil {
			return fmt.Errorf("make the symlink %s: %w", release.Shown(f.Path), err)
		}
	}
	step("symlinks")
	return nil
}

// makeShared lets the shared paths lead out of the release, the only ones that do. What is not there yet becomes a
// directory; a shared file is made by whoever sets the host up.
func (b *builder) makeShared() error {
	for _, p := range b.m.Spec.Run.Shared {
		name := path.Join(sharedDir, p)
		if _, err := b.store.root.Lstat(name); errors.Is(err, fs.ErrNotExist) {
			err = errors.Join(b.store.root.MkdirAll(name, 0o750), syncPath(b.store.root, path.Dir(name)))
			if err != nil {
				return fmt.Errorf("make %s: %w", b.store.path(name), err)
			}
		} else if err != nil {
			return fmt.Errorf("look at %s: %w", b.store.path(name), err)
		}
		if err := b.tree.Symlink(release.SharedLink(p), inFiles(p)); err != nil {
			return fmt.Errorf("make the shared path %s: %w", p, err)
		}
	}
	return nil
}

// closeDirs takes the write permission from the directories, those below first.
func (b *builder) closeDirs() error {
	dirs := parents(b.m)
	for i := len(dirs) - 1; i >= 0; i-- {
		if err := b.tree.Chmod(inFiles(dirs[i]), 0o555); err != nil {
			return err
		}
	}
	return errors.Join(b.tree.Chmod(release.FilesDir, 0o555), b.tree.Chmod(".", 0o555))
}
