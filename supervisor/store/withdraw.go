package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"

	"github.com/hotdeploy/hotdeploy/internal/api"
	"github.com/hotdeploy/hotdeploy/internal/release"
)

// Find returns the release of that digest that is complete on this host; false: none is.
func (s *Store) Find(digest string) (release.Ref, bool) {
	version, err := s.byDigest(digest)
	return release.Ref{Version: version, Digest: digest}, err == nil && version != ""
}

// Withdraw takes back a release that never served: its version is free again. Its content lies in incoming/ from then on, like that
// of any upload that nobody has finished, so that the same push sends nothing. One that is committed, previous or in use is
// [api.ErrConflict]; one that is not there, or has another digest by now, is gone already.
func (s *Store) Withdraw(ctx context.Context, ref release.Ref, inUse func(digest string) bool) error {
	if err := s.building.take(ctx); err != nil {
		return err
	}
	defer s.building.give()
	digest, raw, err := s.readManifest(ref.Version)
	if errors.Is(err, fs.ErrNotExist) || err == nil && digest != ref.Digest {
		return nil
	}
	if err != nil {
		return fmt.Errorf("take release %s back: %w", ref.Version, err)
	}
	kept, err := s.keeper(inUse)
	if err != nil {
		return err
	}
	if why := kept(ref.Version, digest); why != "" {
		return refuse(api.ErrConflict, "", "release %s stays: it is %s", ref.Version, why)
	}
	if err := s.keepContent(ctx, ref, raw); err != nil { // without it all is well too
		s.warn("keep the content of release %s for another push: %w", ref.Version, err)
	}
	step("kept")
	return s.remove(ref.Version)
}

// keepContent makes a release's files the parts of an upload, as other names of the same files.
func (s *Store) keepContent(ctx context.Context, ref release.Ref, raw []byte) error {
	m, err := release.Decode(raw)
	if err != nil {
		return err
	}
	if err := s.planning.take(ctx); err != nil {
		return err
	}
	defer s.planning.give()
	tree, err := openDir(s.root, path.Join(releasesDir, ref.Version))
	if err != nil {
		return err
	}
	defer tree.Close()
	if err := s.linkManifest(tree, ref.Digest); err != nil {
		return err
	}
	if err := s.beginUpload(ref.Digest, raw); err != nil {
		return err
	}
	u, err := s.openUpload(ref.Digest)
	if err != nil {
		return err
	}
	defer u.close()
	files, err := openDir(tree, release.FilesDir)
	if err != nil {
		return err
	}
	defer files.Close()
	for i := range m.Files {
		f := &m.Files[i]
		if f.Link != "" || f.Size == 0 {
			continue
		}
		h, _, err := openRegular(files, f.Path)
		if err != nil {
			return err
		}
		err = link(h, u.parts, f.SHA256)
		h.Close()
		if err != nil && !errors.Is(err, fs.ErrExist) { // a part that is there is looked at by Plan
			return err
		}
	}
	return nil
}

// linkManifest begins an upload without writing anything: there may be no room. One that is there has its manifest.
func (s *Store) linkManifest(tree *os.Root, digest string) error {
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
	h, _, err := openRegular(tree, release.ManifestName)
	if err != nil {
		return err
	}
	defer h.Close()
	if err := link(h, dir, release.ManifestName); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}
