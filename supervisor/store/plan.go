package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"time"

	"github.com/hotdeploy/hotdeploy/internal/api"
	"github.com/hotdeploy/hotdeploy/internal/release"
)

// Facts are what [Store.Plan] must know of the machine and of who asks.
type Facts struct {
	OS, Arch string
	// Env is the environment that generations start from, before the release's and the host's own (see [Store.Env]).
	Env []string
	// SameUser: who will upload is the user that this process runs as, so that content need not be copied. When in
	// doubt false: then Plan wants room for the copies.
	SameUser bool
	// Bundle: who will upload sends a bundle.
	Bundle bool
}

// maxHashedByPlan bounds how long Plan takes where much has arrived already. What it does not look at the uploader ends once
// more, see [Store.Plan].
const maxHashedByPlan = 2 << 30

// Plan checks whether the release of that manifest could run here, begins its upload and says what to send. It may be
// called again at any time, and by several at the same time. What it refuses it refuses with an [api.Error], before
// anything is sent.
//
// A blob in Missing whose Offset is its Size has arrived, but with holes, or nobody has looked: whoever sends many packets at
// once sends the end again, as after any interruption.
func (s *Store) Plan(ctx context.Context, manifest []byte, f Facts) (api.UploadPlan, error) {
	m, err := s.decode(manifest)
	if err != nil {
		return api.UploadPlan{}, err
	}
	digest := release.Digest(manifest)
	if err := s.planning.take(ctx); err != nil {
		return api.UploadPlan{}, err
	}
	defer s.planning.give()
	plan := api.UploadPlan{Digest: digest, Dir: s.path(path.Join(incomingDir, digest, partsDir))}
	if plan.Complete, err = s.isThere(m.Version, digest); err != nil {
		return api.UploadPlan{}, err
	}
	if err := s.CheckMachine(m, f); err != nil || plan.Complete {
		return plan, err
	}
	if err := s.plan(ctx, &plan, m, manifest, f); err != nil {
		return api.UploadPlan{}, s.explain(err)
	}
	return plan, nil
}

func (s *Store) plan(ctx context.Context, plan *api.UploadPlan, m *release.Manifest, manifest []byte, f Facts) error {
	if err := s.dropStale(plan.Digest, time.Now(), maxUploads-1); err != nil {
		return fmt.Errorf("clean up %s: %w", s.path(incomingDir), err)
	}
	blobs, err := s.blobs(ctx, m)
	if err != nil {
		return err
	}
	u, err := s.openUpload(plan.Digest)
	if err == nil {
		defer u.close()
	}
	budget := int64(maxHashedByPlan)
	for _, b := range blobs {
		if len(b.sources) > 0 {
			plan.Reused += b.size
			continue
		}
		at, whole, err := s.arrived(ctx, u, b, &budget)
		if err != nil {
			return err
		}
		if !whole {
			plan.Missing = append(plan.Missing, api.Blob{SHA256: b.sha, Size: b.size, Offset: at})
		}
	}
	if err := s.makeSpace(s.need(m, len(manifest), blobs, plan.Missing, f)); err != nil {
		return err
	}
	if err := s.beginUpload(plan.Digest, manifest); err != nil {
		return fmt.Errorf("begin the upload in %s: %w", s.path(incomingDir), err)
	}
	if f.Bundle {
		return s.planBundle(plan, m)
	}
	return nil
}

// planBundle says what is missing in the way of whoever sends a bundle.
func (s *Store) planBundle(plan *api.UploadPlan, m *release.Manifest) error {
	missing := make(map[string]bool, len(plan.Missing))
	for _, b := range plan.Missing {
		missing[b.SHA256] = true
	}
	for i := range m.Files {
		if sha := m.Files[i].SHA256; missing[sha] {
			delete(missing, sha)
			plan.Lacks = append(plan.Lacks, i)
		}
	}
	plan.Missing = nil
	list, err := s.List()
	if err != nil {
		return err
	}
	for _, r := range list {
		plan.Has = append(plan.Has, r.Digest)
	}
	dir, err := openDir(s.root, path.Join(incomingDir, plan.Digest))
	if err != nil {
		return err
	}
	defer dir.Close()
	plan.Arrived = map[string]int64{}
	for id, fi := range bundles(dir) {
		plan.Arrived[id] = fi.Size()
	}
	return nil
}

// decode reads a manifest from outside and checks that it is for this service.
func (s *Store) decode(raw []byte) (*release.Manifest, error) {
	m, err := s.decoded.decode(release.Digest(raw), raw)
	if err != nil {
		return nil, refuse(api.ErrManifest, "", "%v", err)
	}
	if m.Service != s.service {
		return nil, refuse(api.ErrManifest, "check the service's name in hotdeploy.toml and the host that you push to",
			"the release is for the service %s, this is %s", m.Service, s.service)
	}
	return m, nil
}

// isThere tells whether that release is complete on this host. Meanwhile it may be published or removed.
func (s *Store) isThere(version, digest string) (bool, error) {
	if s.isAbsent(version) {
		return false, nil
	}
	has, _, err := s.readManifest(version)
	switch {
	case err != nil && s.isAbsent(version):
		return false, nil
	case err != nil:
		return false, refuse(api.ErrConflict, "move it away, or choose another name with --version",
			"%s is there but is no release: %s: %s", s.releasePath(version), release.ManifestName, reason(err))
	case has != digest:
		return false, refuse(api.ErrConflict, "choose another name for the new one with --version",
			"version %s is on the host with other content (digest %.12s, not %.12s)", version, has, digest)
	}
	return true, nil
}

func (s *Store) isAbsent(version string) bool {
	_, err := s.root.Lstat(path.Join(releasesDir, version))
	return errors.Is(err, fs.ErrNotExist)
}
