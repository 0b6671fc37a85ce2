package remote

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hotdeploy/hotdeploy/internal/api"
)

// Times of the dialogue. They are limits on waiting, none is waited out when things go well.
const (
	answerTimeout   = 20 * time.Second // for what a daemon answers at once
	cancelTimeout   = 2 * time.Minute  // a cancelled upgrade still stops its generation
	pollInterval    = 5 * time.Second  // asks for the upgrade itself when no event comes
	stateTimeout    = 5 * time.Second  // for the state line of a failure
	slowAnswer      = 2 * time.Second  // then somebody wants to know what is waited for
	stillEvery      = 5 * time.Second  // likewise
	reconnectWithin = 30 * time.Second
	reconnectFirst  = 200 * time.Millisecond
	reconnectLast   = 5 * time.Second
)

// Upgrade asks for a release that is on the host already and follows until it has ended, through lost lines too. The
// error is a *Failure. When ctx ends the upgrade is taken back on the host; see [Deployment].
func (d *Deployment) Upgrade(ctx context.Context, req api.UpgradeRequest) (Result, error) {
	before, err := d.Begin(ctx)
	if err != nil {
		return Result{}, d.unchanged(ctx, err)
	}
	return d.upgrade(ctx, before, req)
}

func (d *Deployment) upgrade(ctx context.Context, before api.Status, req api.UpgradeRequest) (Result, error) {
	if ctx.Err() != nil {
		return Result{}, d.unchanged(ctx, ctx.Err())
	}
	req.By, d.phases, d.phase = d.By, 0, ""
	up, err := d.ask(ctx, before, req)
	if err != nil {
		return Result{}, err
	}
	if up, err = d.follow(ctx, up, before.Seq); err != nil {
		return Result{}, err
	}
	return d.conclude(ctx, up)
}

// ask begins the upgrade. It does not end with ctx: the answer comes at once, and with its identifier a cancelled one can be
// taken back. Without the answer it finds out whether the request arrived.
func (d *Deployment) ask(ctx context.Context, before api.Status, req api.UpgradeRequest) (api.Upgrade, error) {
	ctx2, stop := d.fresh(answerTimeout)
	defer stop()
	slow := time.AfterFunc(slowAnswer, func() {
		d.say(fmt.Sprintf("the upgrade is asked for; waiting for the host's answer, for at most %s", answerTimeout))
	})
	up, err := d.line.Client.Upgrade(ctx2, req)
	slow.Stop()
	if err == nil {
		return up, nil
	}
	if !errors.Is(err, api.ErrLineLost) {
		return up, d.unchanged(ctx, err)
	}
	d.say(fmt.Sprintf("the line was lost while asking for the upgrade; connecting again, for at most %s, to find out whether the host heard it", d.within()))
	up, found, ferr := d.find(ctx, before, req)
	switch {
	case ferr != nil:
		return up, d.unknown(fmt.Errorf("%w; and it did not come back: %w", err, ferr), before)
	case !found:
		return up, d.unchanged(ctx, fmt.Errorf("%w; the host did not hear it", err))
	}
	return up, nil
}

// find looks for the upgrade that req began after before was asked.
func (d *Deployment) find(ctx context.Context, before api.Status, req api.UpgradeRequest) (api.Upgrade, bool, error) {
	now, err := d.reconnect(ctx)
	if err != nil {
		return api.Upgrade{}, false, err
	}
	for _, up := range []*api.Upgrade{now.Upgrade, now.Last} {
		if up != nil && isNew(up, before) && up.By == req.By && up.Kind == req.Kind && fits(up, req) {
			return *up, true, nil
		}
	}
	return api.Upgrade{}, false, nil
}

func isNew(up *api.Upgrade, before api.Status) bool {
	for _, old := range []*api.Upgrade{before.Upgrade, before.Last} {
		if old != nil && old.ID == up.ID {
			return false
		}
	}
	return true
}

func fits(up *api.Upgrade, req api.UpgradeRequest) bool {
	return (req.Version == "" || req.Version == up.To.Version) && (req.Digest == "" || req.Digest == up.To.Digest)
}

// follow returns the upgrade when it has ended.
func (d *Deployment) follow(ctx context.Context, up api.Upgrade, since uint64) (api.Upgrade, error) {
	d.progress(up)
	for up.Outcome == "" {
		next, seq, err := d.watch(ctx, up, since)
		switch {
		case err == nil:
			up, since = next, seq
		case ctx.Err() != nil:
			return d.cancel(next)
		case lineFailed(err):
			d.say(fmt.Sprintf("%v; connecting again, for at most %s; the upgrade goes on meanwhile", err, d.within()))
			if up, since, err = d.pickUp(ctx, next); err != nil {
				return up, err
			}
		default:
			return up, d.unknownUpgrade(next, err)
		}
	}
	d.progress(up)
	return up, nil
}

var errEnded = errors.New("the upgrade has ended")

// watch reads events until the upgrade has ended, or for a while, and then asks for it: an event may have been missed.
func (d *Deployment) watch(ctx context.Context, up api.Upgrade, since uint64) (api.Upgrade, uint64, error) {
	limited, stop := context.WithTimeout(ctx, pollInterval)
	defer stop()
	err := d.line.Client.Events(limited, since, func(e api.Event) error {
		since = e.Seq
		d.event(e)
		if e.Upgrade == nil || e.Upgrade.ID != up.ID {
			return nil
		}
		if up = *e.Upgrade; up.Outcome != "" {
			return errEnded
		}
		d.progress(up)
		return nil
	})
	if errors.Is(err, errEnded) {
		return up, since, nil
	}
	if ctx.Err() != nil || !errors.Is(err, context.DeadlineExceeded) {
		return up, since, err
	}
	now, err := d.line.Client.GetUpgrade(ctx, up.ID)
	if err != nil {
		return up, since, err
	}
	d.progress(now)
	return now, since, nil
}

// pickUp opens the line again and asks what became of up.
func (d *Deployment) pickUp(ctx context.Context, up api.Upgrade) (api.Upgrade, uint64, error) {
	st, err := d.reconnect(ctx)
	if err != nil {
		return up, 0, d.unknownUpgrade(up, err)
	}
	now, err := d.line.Client.GetUpgrade(ctx, up.ID)
	switch {
	case err == nil:
		return now, st.Seq, nil
	case lineFailed(err):
		return up, st.Seq, nil // lost once more: follow comes back here, or cancels
	}
	return up, 0, d.unknownUpgrade(up, err)
}

// reconnect replaces the line by a new one on which the daemon has answered. It gives up after a while, when ctx ends, or,
// if that has ended already, when the operator leaves.
func (d *Deployment) reconnect(ctx context.Context) (api.Status, error) {
	if ctx.Err() != nil {
		ctx = d.leave()
	}
	ctx, stop := context.WithTimeout(ctx, d.within())
	defer stop()
	defer d.sayStill(ctx)()
	for wait := reconnectFirst; ; wait = min(2*wait, reconnectLast) {
		d.Close()
		st, err := d.connect(ctx)
		if err == nil {
			return st, nil
		}
		select {
		case <-ctx.Done():
			if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == context.DeadlineExceeded {
				err = fmt.Errorf("%s could not be reached again within %s", d.Name, d.within())
			}
			return st, err
		case <-time.After(wait):
		}
	}
}

// sayStill says now and then for how long the host is still tried, until stop is called.
func (d *Deployment) sayStill(ctx context.Context) (stop func()) {
	ended := make(chan struct{})
	go func() {
		tick := time.NewTicker(stillEvery)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				if by, ok := ctx.Deadline(); ok && time.Until(by) > time.Second {
					d.say(fmt.Sprintf("the host cannot be reached yet; trying for %s more", time.Until(by).Round(time.Second)))
				}
			case <-ctx.Done():
				return
			case <-ended:
				return
			}
		}
	}()
	return func() { close(ended) }
}

// cancel takes the upgrade back. On which side of the switch it was caught, the host says.
func (d *Deployment) cancel(up api.Upgrade) (api.Upgrade, error) {
	d.say("cancelling on the host; ^C once more leaves the upgrade to go on")
	ctx, stop := d.fresh(cancelTimeout)
	defer stop()
	ended, err := d.line.Client.Cancel(ctx, up.ID)
	if lineFailed(err) && ctx.Err() == nil {
		if _, err = d.reconnect(ctx); err == nil {
			ended, err = d.line.Client.Cancel(ctx, up.ID)
		}
	}
	if isAnswer(err) { // it had ended before
		ended, err = d.line.Client.GetUpgrade(ctx, up.ID)
	}
	switch {
	case d.leave().Err() != nil:
		return up, d.left(up)
	case err != nil:
		return up, d.unknownUpgrade(up, fmt.Errorf("cancel: %w", err))
	case ended.Outcome == "":
		return up, d.unknownUpgrade(up, errors.New("the host did not say how the cancelled upgrade ended"))
	}
	d.progress(ended)
	return ended, nil
}

func lineFailed(err error) bool {
	return errors.Is(err, api.ErrLineLost) || errors.Is(err, api.ErrNotSent)
}

func isAnswer(err error) bool {
	e := new(api.Error)
	return errors.As(err, &e) && !lineFailed(err)
}
