package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"

	"github.com/hotdeploy/hotdeploy/internal/api"
	"github.com/hotdeploy/hotdeploy/internal/bundle"
	"github.com/hotdeploy/hotdeploy/internal/delta"
	"github.com/hotdeploy/hotdeploy/internal/release"
	"github.com/hotdeploy/hotdeploy/internal/spool"
)

// errCut is a bundle that has not arrived as a whole.
var errCut = errors.New("the rest has not arrived")

// A bundle lies beside parts/, where nobody but this process writes.
const bundlePrefix = "bundle-"

// Receive appends r to a bundle of an upload, from offset on, and rebuilds what it can while it arrives. What has arrived stays, whatever
// ends it, and [Store.Plan] tells how much. [Store.Rebuild] comes next.
func (s *Store) Receive(ctx context.Context, digest, id string, offset int64, r io.Reader) error {
	if err := errors.Join(release.CheckDigest(digest), release.CheckDigest(id)); err != nil {
		return refuse(api.ErrBadRequest, "", "%v", err)
	}
	u, err := s.openUpload(digest)
	if errors.Is(err, fs.ErrNotExist) {
		return refuse(api.ErrNotFound, "push it again", "there is no upload %.12s on this host", digest)
	}
	if err != nil {
		return fmt.Errorf("open the upload %.12s: %w", digest, err)
	}
	defer u.close()
	dir, err := openDir(s.root, path.Join(incomingDir, digest))
	if err != nil {
		return fmt.Errorf("open the upload %.12s: %w", digest, err)
	}
	defer dir.Close()
	defer s.busy.begin(digest, id)()
	s.dropIdle(dir, digest, maxIdle)
	name := bundlePrefix + id
	if err := s.dropUnusable(dir, name); err != nil {
		return err
	}
	built, err := s.receive(ctx, u, dir, name, offset, r)
	if built {
		step("rebuilt")
		s.discard(dir, name)
	}
	return s.endBundle(dir, name, err)
}

// endBundle explains why a bundle could not be taken in. Where there is no room for it and what is made of it, it does not stay: without it the
// files that are in it may fit.
func (s *Store) endBundle(dir *os.Root, name string, err error) error {
	if err = s.explain(err); errors.Is(err, api.ErrDiskSpace) || errors.Is(err, api.ErrBundle) {
		if _, gone := dir.Lstat(name); gone == nil {
			s.discard(dir, name)
		}
	}
	return err
}

// dropUnusable removes what stands where a bundle is to be and is no file of ours.
func (s *Store) dropUnusable(dir *os.Root, name string) error {
	fi, err := dir.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil && (!fi.Mode().IsRegular() || !isOurs(fi)) {
		s.discard(dir, name)
	}
	return err
}

// maxBundle is what a bundle of incompressible contents may take, and more than that.
func maxBundle(m *release.Manifest) int64 {
	n := m.TotalBytes()
	return n + n/64 + 8<<20
}

func (s *Store) receive(ctx context.Context, u *upload, dir *os.Root, name string, offset int64, r io.Reader) (built bool, err error) {
	f, err := dir.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	fi, err := f.Stat()
	if err != nil {
		return false, err
	}
	if offset < 0 || offset > fi.Size() {
		return false, refuse(api.ErrIncomplete, "push again", "of that bundle %d bytes are there, it goes on at %d", fi.Size(), offset)
	}
	step("receiving")
	arriving := spool.New(f, offset)
	e := s.beginEarly(ctx, u, arriving)
	most := maxBundle(u.manifest)
	n, err := io.CopyBuffer(useful{e, roomy{s.newRoom(), arriving}}, io.LimitReader(r, most-offset+1), make([]byte, 64<<10))
	switch {
	case ctx.Err() != nil:
		err = context.Cause(ctx)
	case errors.Is(err, api.ErrBundle):
		dir.Remove(name)
	case err != nil:
		err = fmt.Errorf("receive a bundle: %w", err)
	case offset+n > most:
		dir.Remove(name)
		err = refuse(api.ErrBadRequest, "", "the bundle is larger than the release")
	default:
		err = f.Truncate(offset + n) // of one that was longer
	}
	step("received")
	if err != nil {
		arriving.End(errors.Join(errCut, err))
	} else {
		arriving.End(nil)
	}
	built = e.finish(ctx, err == nil)
	if refused := e.refused(); err == nil && refused != nil {
		dir.Remove(name)
		err = refused
	}
	return built, err
}

// Rebuild makes the parts that a bundle holds, at low priority, unless Receive has done so. Afterwards the bundle is gone, whatever comes of
// it: what [api.ErrBundle] refuses is not worth having. [Store.Complete] comes next.
func (s *Store) Rebuild(ctx context.Context, digest, id string) error {
	if err := errors.Join(release.CheckDigest(digest), release.CheckDigest(id)); err != nil {
		return refuse(api.ErrBadRequest, "", "%v", err)
	}
	defer s.busy.begin(digest, id)()
	if err := s.building.take(ctx); err != nil {
		return err
	}
	defer s.building.give()
	s.setCompleting(digest)
	defer s.setCompleting("")
	dir, err := openDir(s.root, path.Join(incomingDir, digest))
	if errors.Is(err, fs.ErrNotExist) {
		return nil // Complete tells whether that is because the release is there
	}
	if err != nil {
		return fmt.Errorf("open the upload %.12s: %w", digest, err)
	}
	defer dir.Close()
	f, fi, err := openRegular(dir, bundlePrefix+id)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // Receive has, or somebody who sends the same, or Complete tells what is missing
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if err := s.takeRebuilding(ctx); err != nil {
		return err
	}
	defer s.rebuilding.give()
	err = gently(func() error { return s.rebuild(ctx, digest, io.NewSectionReader(f, 0, fi.Size())) })
	step("rebuilt")
	if err == nil {
		s.discard(dir, bundlePrefix+id)
	}
	return s.endBundle(dir, bundlePrefix+id, err)
}

func (s *Store) rebuild(ctx context.Context, digest string, r *io.SectionReader) error {
	u, err := s.openUpload(digest)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // Complete tells
	}
	if err != nil {
		return fmt.Errorf("open the upload %.12s: %w", digest, err)
	}
	defer u.close()
	p := s.newParts(u.parts)
	defer p.drop()
	if err := s.apply(ctx, r, u.manifest, p); err != nil {
		return err
	}
	return p.commit()
}

// apply makes of a bundle what is in it. One that cannot be any good is [api.ErrBundle].
func (s *Store) apply(ctx context.Context, r *io.SectionReader, m *release.Manifest, p *parts) error {
	b, err := bundle.Open(r, r.Size())
	if err != nil {
		return notGood(err)
	}
	base, err := s.baseOf(b)
	if err != nil {
		return err
	}
	if err = notGood(b.Apply(ctx, base, m, p.keep)); errors.Is(err, api.ErrBundle) {
		if name := s.findRotten(ctx, b, base); name != "" {
			return refuse(api.ErrBundle, "push again", "%s of release %s, which it is based on, is damaged on this host", release.Shown(name), base.Manifest.Version)
		}
	}
	return err
}

// notGood tells what is wrong with a bundle or its base from what went wrong here, or with its arriving.
func notGood(err error) error {
	for _, bad := range []error{errWrong, bundle.ErrMalformed, delta.ErrMalformed, delta.ErrTooLarge} {
		if errors.Is(err, bad) && !errors.Is(err, errCut) {
			return refuse(api.ErrBundle, "push again", "the release could not be made of what was sent: %v", err)
		}
	}
	return err
}

// baseOf is the release that a bundle is based on. One that is gone or has other files now is [api.ErrBundle].
func (s *Store) baseOf(b *bundle.Bundle) (bundle.Source, error) {
	if b.Base == "" {
		return bundle.Source{}, nil
	}
	version, err := s.byDigest(b.Base)
	if err != nil {
		return bundle.Source{}, err
	}
	if version == "" {
		return bundle.Source{}, refuse(api.ErrBundle, "push again", "the release %.12s, which it is based on, is not on this host any more", b.Base)
	}
	r, err := s.Release(version)
	if err != nil {
		return bundle.Source{}, err
	}
	return bundle.Source{Manifest: r.Manifest, Open: func(f *release.File) (bundle.File, error) {
		h, fi, err := openRegular(s.root, path.Join(releasesDir, version, release.FilesDir, f.Path))
		if err == nil && fi.Size() != f.Size {
			h.Close()
			err = errWrong
		}
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, errNotRegular) {
			err = errWrong
		}
		if err != nil {
			return nil, fmt.Errorf("%s of release %s: %w", release.Shown(f.Path), version, err)
		}
		return h, nil
	}}, nil
}

// findRotten notes which files of a base are not what its manifest says, after something went wrong, and returns one of them.
func (s *Store) findRotten(ctx context.Context, b *bundle.Bundle, base bundle.Source) (found string) {
	if base.Manifest == nil {
		return ""
	}
	numbers, err := b.From.List(len(base.Manifest.Files))
	if err != nil {
		return ""
	}
	version := base.Manifest.Version
	for _, n := range numbers {
		f := &base.Manifest.Files[n]
		name := path.Join(releasesDir, version, release.FilesDir, f.Path)
		h, _, err := openRegular(s.root, name)
		if err != nil {
			s.setRotten(name)
			found = f.Path
			continue
		}
		if ok, err := hasContent(ctx, h, f.Size, f.SHA256); err == nil && !ok {
			s.setRotten(name)
			found = f.Path
		}
		h.Close()
	}
	return found
}
