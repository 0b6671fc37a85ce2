package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"

	"github.com/hotdeploy/hotdeploy/internal/api"
	"github.com/hotdeploy/hotdeploy/internal/release"
)

// Release is a complete release on this host.
type Release struct {
	release.Ref
	Dir      string // absolute; holds manifest.json and files/
	FilesDir string // absolute; the working directory of its processes
	Manifest *release.Manifest
}

// Release returns a release, or [api.ErrNotFound]. It believes the files; [Store.Verify] does not.
func (s *Store) Release(version string) (*Release, error) {
	digest, raw, err := s.readManifest(version)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, refuse(api.ErrNotFound, "list them with  hotdeploy releases", "there is no release %s on this host", version)
	}
	if err != nil {
		return nil, fmt.Errorf("read release %s: %w", version, err)
	}
	m, err := release.Decode(raw)
	if err != nil {
		return nil, fmt.Errorf("read release %s: %w", version, err)
	}
	if m.Version != version || m.Service != s.service {
		return nil, fmt.Errorf("read release %s: its manifest is of %s %s", version, m.Service, m.Version)
	}
	dir := s.releasePath(version)
	return &Release{release.Ref{Version: version, Digest: digest}, dir, path.Join(dir, release.FilesDir), m}, nil
}

func (s *Store) releasePath(version string) string { return s.path(path.Join(releasesDir, version)) }

// readManifest returns a release's manifest and its digest. It does not decode it.
func (s *Store) readManifest(version string) (digest string, raw []byte, err error) {
	if release.CheckVersion(version) != nil {
		return "", nil, fs.ErrNotExist
	}
	raw, err = readLimited(s.root, path.Join(releasesDir, version, release.ManifestName), release.MaxManifestBytes)
	if err != nil {
		return "", nil, err
	}
	return release.Digest(raw), raw, nil
}

// versions lists what has the name of a release, sorted.
func (s *Store) versions() ([]string, error) {
	var list []string
	for e, err := range entries(s.root, releasesDir) {
		if err != nil {
			return nil, fmt.Errorf("list %s: %w", s.path(releasesDir), err)
		}
		if e.IsDir() && release.CheckVersion(e.Name()) == nil {
			list = append(list, e.Name())
		}
	}
	slices.Sort(list)
	return list, nil
}

// byDigest returns the version that is complete under a digest; empty: none is.
func (s *Store) byDigest(digest string) (string, error) {
	versions, err := s.versions()
	if err != nil {
		return "", err
	}
	for _, v := range versions {
		if has, _, err := s.readManifest(v); err == nil && has == digest {
			return v, nil
		}
	}
	return "", nil
}

// ManifestOf returns the manifest of the release with that digest, or [api.ErrNotFound].
func (s *Store) ManifestOf(digest string) ([]byte, error) {
	version, err := s.byDigest(digest)
	if err != nil {
		return nil, err
	}
	if version == "" {
		return nil, refuse(api.ErrNotFound, "", "there is no release %.12q on this host", digest)
	}
	_, raw, err := s.readManifest(version)
	return raw, err
}

// List returns the complete releases, the newest first, with State "committed" or "previous" as the state on disk has it.
// One that cannot be read is left out, with a warning: it must not hide the others.
func (s *Store) List() ([]api.ReleaseInfo, error) {
	versions, err := s.versions()
	if err != nil {
		return nil, err
	}
	list := []api.ReleaseInfo{}
	for _, v := range versions {
		info, err := s.info(v)
		if err != nil {
			s.warn("%w", err)
			continue
		}
		list = append(list, info)
	}
	slices.SortStableFunc(list, func(a, b api.ReleaseInfo) int {
		return cmp.Or(b.Completed.Compare(a.Completed), cmp.Compare(a.Version, b.Version))
	})
	st, err := s.LoadState()
	if err != nil {
		return nil, err
	}
	for i := range list {
		list[i].State = st.roleOf(list[i].Digest)
	}
	return list, s.addCommitTimes(list)
}

func (s *Store) info(version string) (api.ReleaseInfo, error) {
	r, err := s.Release(version)
	if err != nil {
		return api.ReleaseInfo{}, err
	}
	fi, err := s.root.Lstat(path.Join(releasesDir, version, release.ManifestName))
	if err != nil {
		return api.ReleaseInfo{}, fmt.Errorf("read release %s: %w", version, err)
	}
	return api.ReleaseInfo{Ref: r.Ref, Bytes: r.Manifest.TotalBytes(), Files: len(r.Manifest.Files), Completed: fi.ModTime()}, nil
}

// addCommitTimes looks up in the history when each release was last committed.
func (s *Store) addCommitTimes(list []api.ReleaseInfo) error {
	open := map[string]*api.ReleaseInfo{}
	for i := range list {
		open[list[i].Digest] = &list[i]
	}
	budget := 1000 // entries; what lies further back is not told
	return s.eachUpgrade(nil, func(u *api.Upgrade) bool {
		if info := open[u.To.Digest]; info != nil && commits(u) {
			info.Committed = u.Finished
			delete(open, u.To.Digest)
		}
		budget--
		return budget > 0 && len(open) > 0
	})
}

func commits(u *api.Upgrade) bool {
	switch u.Kind {
	case api.KindPush, api.KindRollback, api.KindAutoRollback:
		return u.Outcome == api.Done && u.Finished != nil
	}
	return false
}

// Verify reads every file of r again. [api.ErrDigest] names what is not as the manifest says.
func (s *Store) Verify(ctx context.Context, r *Release) error {
	digest, _, err := s.readManifest(r.Version)
	if errors.Is(err, fs.ErrNotExist) {
		return refuse(api.ErrNotFound, "list them with  hotdeploy releases", "there is no release %s on this host any more", r.Version)
	}
	if err != nil {
		return fmt.Errorf("verify release %s: %w", r.Version, err)
	}
	if digest != r.Digest {
		return damaged(r.Version, []string{release.ManifestName})
	}
	files, err := openDir(s.root, path.Join(releasesDir, r.Version, release.FilesDir))
	if errors.Is(err, fs.ErrNotExist) {
		return damaged(r.Version, []string{release.FilesDir})
	}
	if err != nil {
		return fmt.Errorf("verify release %s: %w", r.Version, err)
	}
	defer files.Close()
	bad, err := checkTree(ctx, files, r.Manifest)
	if err != nil {
		return fmt.Errorf("verify release %s: %w", r.Version, err)
	}
	if len(bad) > 0 {
		return damaged(r.Version, bad)
	}
	return nil
}

func damaged(version string, paths []string) error {
	return refuse(api.ErrDigest, "push it again under another name with --version",
		"release %s on the host is damaged: %s", version, some(paths))
}

// some names the first of many.
func some[T any](list []T) string {
	const most = 5
	text := ""
	for i, e := range list {
		if i == most {
			return fmt.Sprintf("%s and %d more", text, len(list)-most)
		}
		if i > 0 {
			text += ", "
		}
		text += fmt.Sprint(e)
	}
	return text
}
