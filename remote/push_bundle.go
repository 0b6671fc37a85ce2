package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/hotdeploy/hotdeploy/internal/api"
	"github.com/hotdeploy/hotdeploy/internal/bundle"
	"github.com/hotdeploy/hotdeploy/internal/release"
)

// bundleTries is how often a bundle is made: with a base, with another, and without. A try that goes on further than the one before does not count: a base
// may take longer to come from its store than the host waits for the next byte.
const bundleTries = 3

// sendBundle sends what the host lacks as one bundle. Whatever is wrong with a base, with another or without all is well.
func (d *Deployment) sendBundle(ctx context.Context, rel *release.Packed, st api.Status) (t Transfer, err error) {
	b := d.Bundler
	if b == nil {
		b = NewBundler(ctx, rel, nil)
		defer b.Close()
	}
	var from bases
	reached := int64(0)
	for try := 0; try < bundleTries; try++ {
		from.none = try == bundleTries-1 && len(from.bad) > 0
		var used string
		t, used, err = d.tryBundle(ctx, b, st, &from)
		switch {
		case used != "" && (errors.Is(err, api.ErrBundle) || errors.Is(err, errBase)):
			from.bad, from.why = append(from.bad, used), err
		case errors.Is(err, api.ErrDigest), errors.Is(err, api.ErrIncomplete):
			if t.Resumed > reached {
				reached = t.Resumed
				try--
			}
			if try < bundleTries-1 {
				d.say(fmt.Sprintf("%v; sending it again", err))
			}
		case errors.Is(err, api.ErrBundle):
			return t, errors.Join(hasChanged(ctx, rel), err)
		default:
			return t, err
		}
	}
	return t, err
}

// bases tells which releases may be used as a base.
type bases struct {
	bad  []string // these may not
	none bool     // nor may any other
	why  error    // what is wrong with the last of bad, until it is told
}

func (f *bases) usable(digest string) bool { return !f.none && !slices.Contains(f.bad, digest) }

// sayNext tells what is done about a base that was no good.
func (d *Deployment) sayNext(from *bases, base string) {
	switch {
	case from.why == nil:
		return
	case base == "":
		d.say(fmt.Sprintf("%v; sending it without another release as a base", from.why))
	default:
		d.say(fmt.Sprintf("%v; sending it with release %.12s as the base", from.why, base))
	}
	from.why = nil
}

// hasChanged tells whether a file here is not what it was when the release was packed.
func hasChanged(ctx context.Context, rel *release.Packed) error {
	for i := range rel.Manifest.Files {
		f := &rel.Manifest.Files[i]
		if f.Link != "" {
			continue
		}
		if err := rel.Check(ctx, f); err != nil {
			return fmt.Errorf("%w: %w", ErrSourceChanged, err)
		}
	}
	return nil
}

// errBase is a base that cannot be read here.
var errBase = errors.New("what is kept here of another release is no good")

// tryBundle plans and sends once. used is the release that was used as a base.
func (d *Deployment) tryBundle(ctx context.Context, b *Bundler, st api.Status, from *bases) (t Transfer, used string, err error) {
	committed := ""
	if st.Committed != nil && from.usable(st.Committed.Digest) {
		committed = st.Committed.Digest
	}
	manifest, base, err := b.manifest(ctx, committed)
	if err != nil {
		return t, "", fmt.Errorf("encode the manifest: %w", err)
	}
	plan, err := d.line.Client.PlanBundle(ctx, manifest, base)
	if err != nil {
		return t, base, err
	}
	if err := checkBundlePlan(b.rel, plan); err != nil {
		return t, "", fmt.Errorf("the host's plan: %w", err)
	}
	t = Transfer{Files: len(plan.Lacks), Reused: plan.Reused}
	switch {
	case plan.Complete:
		return t, "", nil
	case len(plan.Lacks) == 0:
		d.transferred(t)
		_, err = d.line.Client.Complete(ctx, plan.Digest)
		return t, "", err
	}
	r := b.recipe(plan.Lacks, slices.DeleteFunc(plan.Has, func(base string) bool { return !from.usable(base) }))
	d.sayNext(from, r.Base)
	t, err = d.sendSpool(ctx, b, r, plan, t)
	return t, r.Base, err
}

func (d *Deployment) sendSpool(ctx context.Context, b *Bundler, r bundle.Recipe, plan api.UploadPlan, t Transfer) (Transfer, error) {
	for _, n := range plan.Lacks {
		t.Contents += b.rel.Manifest.Files[n].Size
	}
	id := r.ID(b.rel.Digest)
	s, err := b.bundle(r)
	if err != nil {
		return t, err
	}
	at := plan.Arrived[id]
	size, err := s.Wait(ctx, at)
	if err != nil && err != io.EOF {
		return t, notMade(ctx, err)
	}
	if at > size { // that is no beginning of ours
		at = 0
	}
	t.Resumed, t.Done, t.Total, t.Delta = at, at, size, r.Base != ""
	d.transferred(t)
	p := &progress{t: t, tell: d.transferred}
	_, err = d.line.Client.SendBundle(ctx, plan.Digest, id, at, s.Reader(ctx, at, func(at int64) {
		size, _ := s.State()
		p.sent(at, size)
	}))
	t = p.stop()
	if _, made := s.State(); made != nil && made != io.EOF {
		return t, notMade(ctx, made)
	}
	if err != nil {
		return t, fmt.Errorf("upload, after %d of %d bytes: %w", t.Done, t.Total, err)
	}
	t.Done, t.Ended = t.Total, true
	d.transferred(t)
	return t, nil
}

// notMade explains why there is no bundle.
func notMade(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return fmt.Errorf("make what is to be sent: %w", err)
}

// progress is told how far a body was read, by whoever sends it, perhaps also when the answer is there already.
type progress struct {
	mu   sync.Mutex // protects what follows; held while tell is called
	t    Transfer
	tell func(Transfer) // nil: nobody wants to know any more
}

func (p *progress) sent(done, total int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.tell != nil {
		p.t.Done, p.t.Total = done, total
		p.tell(p.t)
	}
}

func (p *progress) stop() Transfer {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.tell = nil
	return p.t
}

// checkBundlePlan lets the host ask for this release's content only.
func checkBundlePlan(rel *release.Packed, plan api.UploadPlan) error {
	if plan.Digest != rel.Digest {
		return fmt.Errorf("it is for another release, %.12q", plan.Digest)
	}
	last := -1
	for _, n := range plan.Lacks {
		if n <= last || n >= len(rel.Manifest.Files) || rel.Manifest.Files[n].Size == 0 {
			return fmt.Errorf("it asks for file %d of %d", n, len(rel.Manifest.Files))
		}
		last = n
	}
	return nil
}
