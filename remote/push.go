package remote

import (
	"context"
	"errors"
	"fmt"
	"path"
	"time"

	"github.com/hotdeploy/hotdeploy/internal/api"
	"github.com/hotdeploy/hotdeploy/internal/bundle"
	"github.com/hotdeploy/hotdeploy/internal/release"
)

// Deployment brings releases to one service on one host and follows their upgrades.
//
// The line may be lost at any time; it is opened again to find out what happened. When the context of a method ends
// (^C) before the upgrade was asked for, nothing has changed; after that the upgrade is taken back on the host, and the
// error tells on which side of the switch it was caught. Whoever does not want to wait for that ends Leave: the upgrade
// then goes on and its outcome is unknown.
//
// A Deployment does one thing at a time. [Deployment.Close] closes the line.
type Deployment struct {
	Name   string                               // the host as the operator calls it, for what is to be typed next
	Open   func(context.Context) (*Line, error) // opens the line; its context matters to the opening only
	By     string                               // who asks, in words
	Report Report
	Leave  context.Context // nil: there is no leaving
	// Bundler makes what is sent to a daemon that takes bundles; nil: one of its own, without a base.
	Bundler *Bundler
	// Reconnect is how long a lost line is tried again; zero: 30 s.
	Reconnect time.Duration

	line      *Line
	delivered map[string]Transfer // by digest of the release
	warned    bool
	phases    int // of the upgrade that have been reported
	phase     string
}

// Line is an open line to the daemon of one service. Whoever opened it closes it.
type Line struct {
	Client  *api.Client
	Session *Session // nil: the daemon is on this machine
}

// Close does not wait for anything on the host.
func (l *Line) Close() {
	l.Client.Close()
	if l.Session != nil {
		l.Session.Close()
	}
}

// Report is told what happens while it happens. Any of its functions may be nil.
type Report struct {
	Say      func(text string)   // something the operator should know
	Transfer func(t Transfer)    // often while it goes on; from any goroutine
	Phase    func(api.PhaseTime) // a phase has ended
	Enter    func(phase string)  // a phase has begun
	Event    func(e api.Event)   // every event of the host
}

// Transfer is how far an upload is.
type Transfer struct {
	Files    int   // that are missing on the host
	Total    int64 // bytes to send for them, those that arrived earlier included; may grow while a bundle is made
	Done     int64 // bytes of Total that are there
	Resumed  int64 // bytes of Total that an earlier upload brought
	Reused   int64 // bytes of the release that the host had from other releases
	Contents int64 // bytes that the host makes of a bundle; zero: the files are sent as they are
	Delta    bool  // the bundle is based on a release that the host has
	Ended    bool
}

// Result is what a push or an upgrade came to.
type Result struct {
	Already  bool        // the release was serving before; nothing was done
	Upgrade  api.Upgrade // zero if Already
	Status   *api.Status // afterwards; nil if it could not be asked
	Transfer Transfer
}

// Push makes the host serve a release: it asks for what the host lacks, sends that, and asks for the upgrade. Checks that
// the host can make without the files come before the upload. The error is a *[Failure].
func (d *Deployment) Push(ctx context.Context, rel *release.Packed) (Result, error) {
	st, err := d.Begin(ctx)
	if err != nil {
		return Result{}, d.unchanged(ctx, err)
	}
	ref := release.Ref{Version: rel.Manifest.Version, Digest: rel.Digest}
	if serves(st, ref) && st.Upgrade == nil {
		return Result{Already: true, Status: &st}, nil
	}
	if err := busy(d.Name, st); err != nil {
		return Result{}, d.unchanged(ctx, err)
	}
	t, err := d.deliver(ctx, rel, st)
	if err != nil {
		return Result{Transfer: t}, d.unchanged(ctx, err)
	}
	req := api.UpgradeRequest{Kind: api.KindPush, Version: ref.Version, Digest: ref.Digest}
	res, err := d.upgrade(ctx, st, req)
	if errors.Is(err, api.ErrNotFound) && ctx.Err() == nil { // it was there from a push that failed, and has just gone
		if t, err = d.send(ctx, rel, st); err != nil {
			return Result{Transfer: t}, d.unchanged(ctx, err)
		}
		res, err = d.upgrade(ctx, st, req)
	}
	res.Transfer = t
	if f := new(Failure); errors.As(err, &f) && f.Outcome == api.NothingChanged && res.Upgrade.ID == "" {
		d.discard(ref.Digest)
	}
	return res, err
}

// Deliver brings a release to the host and does not make it serve: [Deployment.Push] does that later, and does not send it again. The error is
// a *[Failure].
func (d *Deployment) Deliver(ctx context.Context, rel *release.Packed) error {
	st, err := d.Begin(ctx)
	if err != nil {
		return d.unchanged(ctx, err)
	}
	if serves(st, rel.Ref()) {
		return nil
	}
	if err := busy(d.Name, st); err != nil {
		return d.unchanged(ctx, err)
	}
	if _, err := d.deliver(ctx, rel, st); err != nil {
		return d.unchanged(ctx, err)
	}
	return nil
}

func (d *Deployment) deliver(ctx context.Context, rel *release.Packed, st api.Status) (Transfer, error) {
	if t, ok := d.delivered[rel.Digest]; ok {
		return t, nil
	}
	t, err := d.send(ctx, rel, st)
	if err == nil {
		d.delivered = map[string]Transfer{rel.Digest: t}
	}
	return t, err
}

// Discard takes back what [Deployment.Deliver] brought, if [Deployment.Push] will not come. What was on the host before stays, and so does the
// content for a while: another push does not send it again. Without a line there is nothing to take back.
func (d *Deployment) Discard(ctx context.Context, digest string) error {
	if d.line == nil {
		return nil
	}
	delete(d.delivered, digest)
	if err := d.line.Client.Discard(ctx, digest); err != nil {
		return fmt.Errorf("take back what was uploaded: %w", err)
	}
	return nil
}

// discard takes back what was uploaded for an upgrade that did not begin, so that nothing has changed. The host keeps the content for a while: another
// push does not send it again.
func (d *Deployment) discard(digest string) {
	if d.line == nil {
		return
	}
	ctx, stop := d.fresh(answerTimeout)
	defer stop()
	err := d.line.Client.Discard(ctx, digest)
	if err != nil && !errors.Is(err, api.ErrNotFound) && !lineFailed(err) { // an older daemon cannot; a later push does it then
		d.say(fmt.Sprintf("the release that was uploaded stays on the host: %v", err))
	}
}

// serves tells whether ref is committed and serving.
func serves(st api.Status, ref release.Ref) bool {
	if st.State != api.StateServing || st.Committed == nil || *st.Committed != ref {
		return false
	}
	for _, g := range st.Generations {
		if g.State == api.GenServing {
			return g.Release == ref
		}
	}
	return false
}

// busy spares the upload where the upgrade would be refused. A restart after a crash gives way, so it does not count.
func busy(name string, st api.Status) error {
	up := st.Upgrade
	if up == nil || up.Kind == api.KindStart {
		return nil
	}
	e := api.ErrBusy.With(fmt.Sprintf("%s is at it: %s of %s since %s, now in phase %s", up.By, up.Kind, up.To.Version,
		up.Started.Local().Format(time.TimeOnly), up.Phase))
	e.Hint = "wait for it, or watch it with  hotdeploy status " + name + " --watch"
	return e
}

// send uploads what the host lacks. Single files that the host finds damaged are sent once more, and only once: a second time it is
// not the line.
func (d *Deployment) send(ctx context.Context, rel *release.Packed, st api.Status) (Transfer, error) {
	if st.Daemon.Bundles == bundle.Format {
		t, err := d.sendBundle(ctx, rel, st)
		// A bundle and what is made of it lie on the disk together, so the files alone may have room. t.Contents: that of the release was there.
		if noRoom := errors.Is(err, api.ErrDiskSpace) && t.Contents > 0; !noRoom && !errors.Is(err, api.ErrBundle) {
			return t, err
		}
		d.say(fmt.Sprintf("%v; sending the files as they are", err))
	}
	t, err := d.sendOnce(ctx, rel)
	if errors.Is(err, api.ErrDigest) || errors.Is(err, api.ErrIncomplete) {
		d.say(fmt.Sprintf("%v; sending it again", err))
		t, err = d.sendOnce(ctx, rel)
	}
	return t, err
}

func (d *Deployment) sendOnce(ctx context.Context, rel *release.Packed) (t Transfer, err error) {
	plan, err := d.line.Client.PlanUpload(ctx, rel.Bytes)
	if err != nil {
		return t, err
	}
	if err := checkPlan(rel, plan); err != nil {
		return t, fmt.Errorf("the host's plan: %w", err)
	}
	t = transferOf(plan)
	if plan.Complete {
		return t, nil
	}
	if t, err = d.transfer(ctx, rel, plan, t); err != nil {
		return t, err
	}
	_, err = d.line.Client.Complete(ctx, plan.Digest)
	return t, err
}

func transferOf(plan api.UploadPlan) Transfer {
	t := Transfer{Files: len(plan.Missing), Reused: plan.Reused}
	for _, b := range plan.Missing {
		t.Total += b.Size
		t.Resumed += b.Offset
	}
	t.Done = t.Resumed
	return t
}

// checkPlan lets the host ask for this release's content only.
func checkPlan(rel *release.Packed, plan api.UploadPlan) error {
	if plan.Digest != rel.Digest {
		return fmt.Errorf("it is for another release, %.12q", plan.Digest)
	}
	if !plan.Complete && !path.IsAbs(plan.Dir) {
		return fmt.Errorf("%.200q is not an absolute path", plan.Dir)
	}
	sizes := make(map[string]int64, len(rel.Manifest.Files))
	for _, f := range rel.Manifest.Files {
		sizes[f.SHA256] = f.Size
	}
	for _, b := range plan.Missing {
		size, ok := sizes[b.SHA256]
		if !ok || b.SHA256 == "" || b.Size != size || b.Offset < 0 || b.Offset > size {
			return fmt.Errorf("it asks for content %.12q (%d bytes from %d), which is not in the release", b.SHA256, b.Size, b.Offset)
		}
	}
	return nil
}

// Begin opens the line and asks for the status. A daemon that speaks another API is refused.
func (d *Deployment) Begin(ctx context.Context) (api.Status, error) {
	if d.line != nil {
		return d.line.Client.Status(ctx)
	}
	return d.connect(ctx)
}

// Line is the open line, nil before Begin. The Deployment closes it.
func (d *Deployment) Line() *Line { return d.line }

func (d *Deployment) connect(ctx context.Context) (api.Status, error) {
	line, err := d.Open(ctx)
	if err != nil {
		return api.Status{}, err
	}
	d.line = line
	st, err := line.Client.Status(ctx)
	if err == nil {
		err = CheckAPI(d.Name, st)
	}
	if err == nil && !d.warned {
		d.warned = true
		if text := VersionWarning(d.Name, st); text != "" {
			d.say("warning: " + text)
		}
	}
	return st, err
}

// Close closes the line, if it is open.
func (d *Deployment) Close() {
	if d.line != nil {
		d.line.Close()
		d.line = nil
	}
}

// fresh is a context for what must be done although the caller's has ended. It ends with Leave.
func (d *Deployment) fresh(limit time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(d.leave(), limit)
}

func (d *Deployment) leave() context.Context {
	if d.Leave != nil {
		return d.Leave
	}
	return context.Background()
}

func (d *Deployment) within() time.Duration {
	if d.Reconnect > 0 {
		return d.Reconnect
	}
	return reconnectWithin
}

func (d *Deployment) say(text string) {
	if d.Report.Say != nil {
		d.Report.Say(text)
	}
}

func (d *Deployment) event(e api.Event) {
	if d.Report.Event != nil {
		d.Report.Event(e)
	}
}

// progress reports what is new about up's phases.
func (d *Deployment) progress(up api.Upgrade) {
	for ; d.phases < len(up.Phases); d.phases++ {
		if d.Report.Phase != nil {
			d.Report.Phase(up.Phases[d.phases])
		}
	}
	if up.Outcome == "" && up.Phase != d.phase {
		if d.phase = up.Phase; d.Report.Enter != nil {
			d.Report.Enter(up.Phase)
		}
	}
}
