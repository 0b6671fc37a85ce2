package store

import (
	"context"
	"fmt"
	"io/fs"
	"path"
	"slices"

	"github.com/hotdeploy/hotdeploy/internal/release"
)

// maxSources is how many files of other releases are remembered for one content: more than one, since one may be damaged.
const maxSources = 3

// blob is one content of a release: where it goes, and which releases on this host have it. An empty file is no blob.
type blob struct {
	sha     string
	size    int64
	files   []*release.File
	sources []source
}

// source is a file of a complete release.
type source struct {
	name string      // under the root
	mode fs.FileMode // zero: nobody has looked
}

// blobs lists the contents that m needs, in the order of its files, each once.
func (s *Store) blobs(ctx context.Context, m *release.Manifest) ([]*blob, error) {
	var list []*blob
	bySHA := map[string]*blob{}
	for i := range m.Files {
		f := &m.Files[i]
		if f.Link != "" || f.Size == 0 {
			continue
		}
		b := bySHA[f.SHA256]
		if b == nil {
			b = &blob{sha: f.SHA256, size: f.Size}
			bySHA[b.sha] = b
			list = append(list, b)
		}
		b.files = append(b.files, f)
	}
	versions, err := s.versions()
	if err != nil {
		return nil, err
	}
	for _, v := range versions {
		if err := ctx.Err(); err != nil {
			return nil, context.Cause(ctx)
		}
		s.findSources(bySHA, v)
	}
	return list, nil
}

// findSources notes what release v has of the wanted contents. One manifest at a time is in memory. A release that cannot
// be read is none to take from; [Store.List] tells of it.
func (s *Store) findSources(wanted map[string]*blob, v string) {
	digest, raw, err := s.readManifest(v)
	if err != nil {
		return
	}
	m, err := s.decoded.decode(digest, raw)
	if err != nil {
		return
	}
	for i := range m.Files {
		f := &m.Files[i]
		b := wanted[f.SHA256]
		if b == nil || f.Size != b.size || len(b.sources) == maxSources {
			continue
		}
		name := path.Join(releasesDir, v, release.FilesDir, f.Path)
		if b.linkable() {
			b.sources = append(b.sources, source{name: name}) // only if the first one is damaged it is looked at
			continue
		}
		fi, err := s.root.Lstat(name)
		if err == nil && fi.Mode().IsRegular() && fi.Size() == b.size && !s.isRotten(name) {
			b.sources = append(b.sources, source{name, fi.Mode().Perm()})
		}
	}
}

// isRotten tells whether a file of a release was found to be other than its manifest says. Only this process remembers
// it: that is enough for the next Plan to ask for the content again.
func (s *Store) isRotten(name string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rotten[name]
}

func (s *Store) setRotten(name string) {
	s.mu.Lock()
	s.rotten[name] = true
	s.mu.Unlock()
	s.warn("%s is not what its manifest says", release.Shown(s.path(name)))
}

// linkable tells whether a source is known that needs no copy, at least for one of the files.
func (b *blob) linkable() bool {
	return slices.ContainsFunc(b.sources, func(src source) bool { return src.mode == finalMode(b.files[0]) })
}

// finalMode is a file's mode once its release is complete: nobody writes to it.
func finalMode(f *release.File) fs.FileMode { return fs.FileMode(f.Mode).Perm() &^ 0o222 }

// sourcesFor lists the sources, those first that can be linked for a file of that mode.
func (b *blob) sourcesFor(mode fs.FileMode) []source {
	var linkable, others []source
	for _, src := range b.sources {
		if src.mode == mode {
			linkable = append(linkable, src)
		} else {
			others = append(others, src)
		}
	}
	return append(linkable, others...)
}

// modes is how many copies of the content the release needs on the disk: files of one mode share one.
func (b *blob) modes() int64 {
	seen := map[uint32]bool{}
	for _, f := range b.files {
		seen[f.Mode] = true
	}
	return int64(len(seen))
}

func (b *blob) String() string {
	if len(b.files) == 1 {
		return release.Shown(b.files[0].Path)
	}
	return fmt.Sprintf("%s (and %d more with that content)", release.Shown(b.files[0].Path), len(b.files)-1)
}
