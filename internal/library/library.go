package library

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/hotdeploy/hotdeploy/internal/release"
)

const (
	releasesDir = "releases"
	contentsDir = "contents"
	tempPrefix  = ".new-"

	// young is what somebody may still be at.
	young = time.Hour
	// workers is how many contents are written at once.
	workers = 8
)

// File is an open content.
type File interface {
	io.ReaderAt
	io.Closer
}

// Entry is one file of a [Folder].
type Entry struct {
	Name string
	Size int64
	Time time.Time
}

// Folder is where a library lies. Names are relative and use slashes; what is not there is [fs.ErrNotExist].
type Folder interface {
	// Far tells whether reading it twice is to be avoided.
	Far() bool
	Open(name string) (File, int64, error)
	// Create writes a file at once, or not at all, with the directories above it. One that is there is replaced.
	Create(name string, r io.Reader) error
	// List lists the files and directories in a directory.
	List(dir string) ([]Entry, error)
	Remove(name string) error
	// Touch makes a file's time the present.
	Touch(name string) error
	Close() error
}

// Library keeps releases in a folder. It is safe for concurrent use, if the folder is.
type Library struct{ folder Folder }

// New returns the library in a folder, which [Library.Close] closes.
func New(f Folder) *Library { return &Library{f} }

// Close closes the folder.
func (l *Library) Close() error { return l.folder.Close() }

func contentName(sha string) string { return path.Join(contentsDir, sha[:2], sha) }

// Add keeps a release, or notes that it was used if it is there.
func (l *Library) Add(ctx context.Context, rel *release.Packed) error {
	name := path.Join(releasesDir, rel.Digest)
	if l.folder.Touch(name) == nil {
		return nil
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(workers)
	seen := map[string]bool{}
	for i := range rel.Manifest.Files {
		f := &rel.Manifest.Files[i]
		if f.Link != "" || f.Size == 0 || seen[f.SHA256] {
			continue
		}
		seen[f.SHA256] = true
		g.Go(func() error { return l.addContent(ctx, rel, f) })
	}
	if err := g.Wait(); err != nil {
		return fmt.Errorf("keep release %s: %w", rel.Manifest.Version, err)
	}
	if err := l.folder.Create(name, bytes.NewReader(rel.Bytes)); err != nil {
		return fmt.Errorf("keep release %s: %w", rel.Manifest.Version, err)
	}
	return nil
}

// Forget is for a release of which a content is missing or damaged: it is not listed any more, and [Library.Add] repairs it. What is whole of it
// goes when it is pruned.
func (l *Library) Forget(digest string) error {
	if err := release.CheckDigest(digest); err != nil {
		return err
	}
	return l.remove(path.Join(releasesDir, digest))
}

func (l *Library) addContent(ctx context.Context, rel *release.Packed, f *release.File) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	name := contentName(f.SHA256)
	if l.folder.Touch(name) == nil {
		return nil
	}
	r, err := rel.Open(f.SHA256)
	if err != nil {
		return err
	}
	defer r.Close()
	return l.folder.Create(name, io.NewSectionReader(r, 0, f.Size))
}

// ErrNotUnderstood: a manifest is here and whole as far as can be told, but this hotdeploy cannot read it, as one of a newer format.
var ErrNotUnderstood = errors.New("not understood here")

// Manifest returns the manifest of the release with that digest. [fs.ErrNotExist]: it is not here, or damaged. Any other error, of which one
// is [ErrNotUnderstood], says nothing against it.
func (l *Library) Manifest(digest string) (*release.Manifest, []byte, error) {
	if release.CheckDigest(digest) != nil {
		return nil, nil, fs.ErrNotExist
	}
	name := path.Join(releasesDir, digest)
	raw, err := l.read(name)
	if err != nil {
		return nil, nil, fmt.Errorf("read manifest %s: %w", digest, err)
	}
	if release.Digest(raw) != digest {
		return nil, nil, errors.Join(fs.ErrNotExist, l.folder.Remove(name))
	}
	m, err := release.Decode(raw)
	if err != nil {
		return nil, nil, fmt.Errorf("manifest %s: %w: %w", digest, ErrNotUnderstood, err)
	}
	return m, raw, nil
}

// read reads all of a manifest. What is larger than any that is known is not read, for its size is a stranger's.
func (l *Library) read(name string) ([]byte, error) {
	f, size, err := l.folder.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if size > release.MaxManifestBytes {
		return nil, fmt.Errorf("%w: %d bytes", ErrNotUnderstood, size)
	}
	raw, err := io.ReadAll(io.NewSectionReader(f, 0, size))
	if err == nil && int64(len(raw)) < size {
		err = io.ErrUnexpectedEOF
	}
	return raw, err
}

// Content opens a content. [fs.ErrNotExist]: it is not here, or damaged. The caller closes it.
func (l *Library) Content(ctx context.Context, f *release.File) (File, error) {
	if release.CheckDigest(f.SHA256) != nil {
		return nil, fs.ErrNotExist
	}
	name := contentName(f.SHA256)
	r, size, err := l.folder.Open(name)
	if err != nil {
		return nil, err
	}
	sum := sha256.New()
	from := contextReader{ctx, io.NewSectionReader(r, 0, size)}
	if l.folder.Far() {
		defer r.Close()
		return l.fetch(from, f.SHA256, name)
	}
	if _, err = io.Copy(sum, from); err == nil && hex.EncodeToString(sum.Sum(nil)) != f.SHA256 {
		err = errors.Join(fs.ErrNotExist, l.folder.Remove(name))
	}
	if err != nil {
		r.Close()
		return nil, err
	}
	return r, nil
}

// fetch copies a content to a file of this machine that has no name.
func (l *Library) fetch(from io.Reader, sha, name string) (File, error) {
	temp, err := os.CreateTemp("", "hotdeploy-")
	if err != nil {
		return nil, err
	}
	os.Remove(temp.Name())
	sum := sha256.New()
	_, err = io.Copy(io.MultiWriter(temp, sum), from)
	if err == nil && hex.EncodeToString(sum.Sum(nil)) != sha {
		err = errors.Join(fs.ErrNotExist, l.folder.Remove(name))
	}
	if err != nil {
		temp.Close()
		return nil, err
	}
	return temp, nil
}

type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c contextReader) Read(b []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, context.Cause(c.ctx)
	}
	return c.r.Read(b)
}

// maxLooked is how many releases [Library.Latest] looks at.
const maxLooked = 20

// Latest is the release of a service that was used last, besides one; empty: none is known, or it was long ago. any tells whether there is a
// release of the service at all, as far as it looked.
func (l *Library) Latest(service, but string) (digest string, any bool) {
	entries, err := l.folder.List(releasesDir)
	if err != nil {
		return "", false
	}
	slices.SortFunc(entries, func(a, b Entry) int { return cmp.Or(b.Time.Compare(a.Time), cmp.Compare(a.Name, b.Name)) })
	for _, e := range entries[:min(len(entries), maxLooked)] {
		m, _, err := l.Manifest(e.Name)
		if err != nil || m.Service != service {
			continue
		}
		if any = true; e.Name != but {
			return e.Name, true
		}
	}
	return "", any
}

// Info is one release that is kept.
type Info struct {
	release.Ref
	Service string    `json:"service"`
	Bytes   int64     `json:"bytes"`
	Files   int       `json:"files"`
	Used    time.Time `json:"used"`
}

// List lists the releases, the one used last first. What is damaged, or of a newer format, is left out.
func (l *Library) List() ([]Info, error) {
	list, _, err := l.list()
	return list, err
}

// list also tells what is not understood. Any other manifest that is there and cannot be read is an error: nobody knows what it needs.
func (l *Library) list() (list []Info, strange []Entry, err error) {
	entries, err := l.folder.List(releasesDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, nil, fmt.Errorf("list the releases: %w", err)
	}
	list = []Info{}
	for _, e := range entries {
		m, _, err := l.Manifest(e.Name)
		switch {
		case err == nil:
			list = append(list, Info{release.Ref{Version: m.Version, Digest: e.Name}, m.Service, m.TotalBytes(), len(m.Files), e.Time})
		case errors.Is(err, ErrNotUnderstood):
			strange = append(strange, e)
		case !errors.Is(err, fs.ErrNotExist):
			return nil, nil, fmt.Errorf("list the releases: %w", err)
		}
	}
	slices.SortFunc(list, func(a, b Info) int { return cmp.Or(b.Used.Compare(a.Used), cmp.Compare(a.Digest, b.Digest)) })
	return list, strange, nil
}
