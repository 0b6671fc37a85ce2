package remote

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"sync"

	"github.com/hotdeploy/hotdeploy/internal/bundle"
	"github.com/hotdeploy/hotdeploy/internal/delta"
	"github.com/hotdeploy/hotdeploy/internal/library"
	"github.com/hotdeploy/hotdeploy/internal/release"
	"github.com/hotdeploy/hotdeploy/internal/spool"
)

// guessAtMost bounds what is computed on a mere guess.
const guessAtMost = 256 << 20

// Bundler makes what is sent of one release. However many hosts lack the same and have the same base, it is computed once. It is safe for
// concurrent use.
type Bundler struct {
	rel     *release.Packed
	library *library.Library // nil: there is nothing to compute a delta from

	ctx  context.Context
	stop context.CancelFunc

	mu    sync.Mutex // protects what follows
	made  map[string]*spool.Spool
	bases map[string]kept
}

// kept is a release in the library. A nil manifest: it is not there, or of no use.
type kept struct {
	manifest *release.Manifest
	raw      []byte
}

// NewBundler makes bundles of rel, with the releases in a library (nil: none) as bases. The caller closes it after the last push.
func NewBundler(ctx context.Context, rel *release.Packed, l *library.Library) *Bundler {
	ctx, stop := context.WithCancel(ctx)
	return &Bundler{rel: rel, library: l, ctx: ctx, stop: stop, made: map[string]*spool.Spool{}, bases: map[string]kept{}}
}

// Close ends what is being computed.
func (b *Bundler) Close() {
	b.stop()
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, s := range b.made {
		s.Wait(context.Background(), 1<<62) // for its writer, which ends with the context
		s.Close()
	}
	b.made = nil
}

// Guess begins to compute the bundle for a host that has the service's release that was pushed last. It is called while the connection to
// the host is made; a wrong guess costs nothing but the time of one processor.
func (b *Bundler) Guess() {
	if b.library == nil || b.rel.TotalBytes() > guessAtMost {
		return
	}
	digest, any := b.library.Latest(b.rel.Manifest.Service, b.rel.Digest)
	if !any { // it is the first one, and all of it is sent
		b.bundle(bundle.Choose(b.rel.Manifest, bundle.Lacks(b.rel.Manifest, nil), nil, ""))
		return
	}
	if base := b.base(digest); base != nil {
		if lacks := bundle.Lacks(b.rel.Manifest, base); len(lacks) > 0 {
			b.bundle(bundle.Choose(b.rel.Manifest, lacks, base, digest))
		}
	}
}

// base is the manifest of a release that a delta can be computed from; nil: it is not here.
func (b *Bundler) base(digest string) *release.Manifest { return b.kept(digest).manifest }

func (b *Bundler) kept(digest string) kept {
	b.mu.Lock()
	defer b.mu.Unlock()
	k, known := b.bases[digest]
	if !known && b.library != nil {
		k.manifest, k.raw, _ = b.library.Manifest(digest) // what is wrong with it is no matter: there is another way
		b.bases[digest] = k
	}
	return k
}

// manifest is the release's manifest as a delta from that of the release with a digest, if that is known here; else base is empty.
func (b *Bundler) manifest(ctx context.Context, digest string) (delta []byte, base string, err error) {
	k := b.kept(digest)
	if k.manifest != nil {
		base = digest
	}
	delta, err = deltaOf(ctx, k.raw, b.rel.Bytes)
	return delta, base, err
}

func deltaOf(ctx context.Context, old, new []byte) ([]byte, error) {
	var out bytes.Buffer
	section := func(b []byte) *io.SectionReader { return io.NewSectionReader(bytes.NewReader(b), 0, int64(len(b))) }
	err := delta.Make(ctx, &out, section(old), section(slices.Clone(new)))
	return out.Bytes(), err
}

// recipe chooses what to send to a host that lacks some files and has some releases.
func (b *Bundler) recipe(lacks []int, has []string) bundle.Recipe {
	bases := make([]*release.Manifest, len(has))
	for i, digest := range has {
		bases[i] = b.base(digest)
	}
	if i := bundle.Nearest(b.rel.Manifest, bases); i >= 0 {
		return bundle.Choose(b.rel.Manifest, lacks, bases[i], has[i])
	}
	return bundle.Choose(b.rel.Manifest, lacks, nil, "")
}

// openBase opens a file of the release with digest base. One that is not whole is no base for any push.
func (b *Bundler) openBase(base string, f *release.File) (bundle.File, error) {
	r, err := b.library.Content(b.ctx, f)
	if errors.Is(err, fs.ErrNotExist) {
		err = errors.Join(err, b.library.Forget(base))
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", errBase, release.Shown(f.Path), err)
	}
	return r, nil
}

// bundle begins to make a bundle, if nobody has before.
func (b *Bundler) bundle(r bundle.Recipe) (*spool.Spool, error) {
	id := r.ID(b.rel.Digest)
	b.mu.Lock()
	defer b.mu.Unlock()
	if s := b.made[id]; s != nil {
		return s, nil
	}
	var base bundle.Source
	if r.Base != "" {
		base = bundle.Source{Manifest: b.bases[r.Base].manifest, Open: func(f *release.File) (bundle.File, error) { return b.openBase(r.Base, f) }}
	}
	to := bundle.Source{Manifest: b.rel.Manifest, Open: func(f *release.File) (bundle.File, error) { return b.rel.Open(f.SHA256) }}
	s, err := newSpool(func(w io.Writer) error { return bundle.Write(b.ctx, w, r, base, to) })
	if err != nil {
		return nil, fmt.Errorf("make what is to be sent: %w", err)
	}
	b.made[id] = s
	return s, nil
}
