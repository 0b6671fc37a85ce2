package remote

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/hotdeploy/hotdeploy/internal/api"
)

// Failure is how a verb ends that is not done: which way, what broke, what is serving now, what to type next.
type Failure struct {
	Outcome api.Outcome
	Err     error
	State   string
	Hint    string
	Output  []string // the app's last lines
}

func (f *Failure) Error() string { return f.Err.Error() }

// Unwrap gives what broke.
func (f *Failure) Unwrap() error { return f.Err }

// refusal is a failure that was found out before anything was changed.
func refusal(kind *api.Error, text, hint string) *Failure {
	return &Failure{Outcome: api.NothingChanged, Err: kind.With(text), State: "nothing was changed", Hint: hint}
}

// Explain turns what broke on the host called name into what an operator needs. Nothing has changed, except that a request
// whose answer was lost is unknown.
func Explain(name string, err error) *Failure {
	f := new(Failure)
	if errors.As(err, &f) {
		return f
	}
	f = &Failure{Outcome: api.NothingChanged, Err: err}
	if errors.Is(err, api.ErrLineLost) {
		f.Outcome, f.State, f.Hint = api.Unknown, "not known", "find out with  hotdeploy status "+name
	}
	if errors.Is(err, api.ErrSilent) {
		f.State, f.Hint = "not known: the daemon does not answer", "see what it does with  hotdeploy logs "+name
	}
	if e := new(api.Error); errors.As(err, &e) {
		f.State, f.Hint, f.Output = e.State, withHost(e.Hint, name), e.Output
	}
	if errors.Is(err, context.Canceled) && f.Outcome == api.NothingChanged {
		f.Err = api.ErrCancelled.With("cancelled")
	}
	if hint, cause := sshTrouble(name, err); cause != nil {
		f.Err, f.Hint = cause, hint
	}
	return f
}

// sshTrouble finds the cause when it was SSH that failed, and what to type then.
func sshTrouble(name string, err error) (hint string, cause error) {
	var (
		unknown     *ErrUnknownHostKey
		changed     *ErrHostKeyChanged
		auth        *ErrAuth
		unreachable *ErrUnreachable
	)
	switch {
	case errors.As(err, &unknown):
		return "compare the fingerprint and accept the key with  " + unknown.Command, unknown
	case errors.As(err, &changed):
		return "if the host was made anew, forget the old key with  " + changed.Command, changed
	case errors.As(err, &auth):
		return "try  ssh -v " + name, auth
	case errors.As(err, &unreachable):
		return "try  ssh " + name, unreachable
	}
	return "", nil
}

// hostless is a command in a hint of the daemon, which cannot know how the operator calls its host.
var hostless = regexp.MustCompile(`hotdeploy (logs|status|releases|push|rollback|restart|start|stop|retire|setup)\b( HOST\b)?`)

func withHost(hint, name string) string {
	if name == "" || strings.Contains(hint, " "+name) {
		return hint
	}
	return hostless.ReplaceAllString(hint, "hotdeploy ${1} "+strings.ReplaceAll(name, "$", "$$"))
}

// unchanged is the failure of what came before the upgrade. It asks what is serving, if the host did not say.
func (d *Deployment) unchanged(ctx context.Context, err error) *Failure {
	f := Explain(d.Name, err)
	if f.Outcome = api.NothingChanged; ctx.Err() != nil && errors.Is(err, context.Canceled) {
		f.Err = api.ErrCancelled.With("cancelled before the upgrade was asked for")
		f.Hint = "push again: what was uploaded is not sent twice"
	} else if errors.Is(err, api.ErrLineLost) || errors.Is(err, ErrLineLost) {
		f.Hint = "push again: it goes on where it was"
	}
	if f.State == "" || f.State == "not known" {
		f.State = d.state()
	}
	return f
}

// state asks what is serving now, if it is told quickly.
func (d *Deployment) state() string {
	const unasked = "nothing was changed; what is serving could not be asked"
	if d.line == nil {
		return unasked
	}
	ctx, stop := d.fresh(stateTimeout)
	defer stop()
	st, err := d.line.Client.Status(ctx)
	if err != nil {
		return unasked
	}
	return Serving(st)
}

// Serving is what is serving now, as the state of a failure.
func Serving(st api.Status) string {
	if st.State != api.StateServing || len(st.Generations) == 0 {
		return "nothing is serving: " + st.Text
	}
	g := st.Generations[0]
	text := fmt.Sprintf("release %s is serving (generation %d)", g.Release.Version, g.Number)
	switch {
	case g.Connections == 1:
		text += "; 1 connection"
	case g.Connections > 1:
		text += fmt.Sprintf("; %d connections", g.Connections)
	}
	return text
}

func (d *Deployment) unknown(err error, before api.Status) *Failure {
	return &Failure{Outcome: api.Unknown, Err: err, State: "not known; before it " + Serving(before),
		Hint: "find out with  hotdeploy status " + d.Name}
}

// unknownUpgrade is the failure of an upgrade that we lost sight of.
func (d *Deployment) unknownUpgrade(up api.Upgrade, err error) *Failure {
	return &Failure{Outcome: api.Unknown, Err: fmt.Errorf("lost sight of the %s of %s in phase %s: %w", up.Kind, up.To.Version, up.Phase, err),
		State: "not known: the upgrade goes on without us", Hint: "find out with  hotdeploy status " + d.Name}
}

// left is the failure of an upgrade that the operator did not want to wait for.
func (d *Deployment) left(up api.Upgrade) *Failure {
	return &Failure{Outcome: api.Unknown, Err: fmt.Errorf("left during the %s of %s, in phase %s", up.Kind, up.To.Version, up.Phase),
		State: "not known: the host was asked to cancel the upgrade, or it goes on", Hint: "find out with  hotdeploy status " + d.Name}
}

// conclude is what an ended upgrade means to the operator.
func (d *Deployment) conclude(ctx context.Context, up api.Upgrade) (Result, error) {
	if up.Outcome != api.Done {
		return Result{Upgrade: up}, d.failed(up)
	}
	if ctx.Err() != nil {
		d.say("too late to cancel: it is committed")
	}
	res := Result{Upgrade: up}
	ctx, stop := d.fresh(stateTimeout)
	defer stop()
	if st, err := d.line.Client.Status(ctx); err == nil {
		res.Status = &st
	}
	return res, nil
}

func (d *Deployment) failed(up api.Upgrade) *Failure {
	e := up.Error
	if e == nil {
		e = api.ErrInternal.With(fmt.Sprintf("the %s of %s ended without saying why", up.Kind, up.To.Version))
	}
	f := Explain(d.Name, e)
	if f.Outcome = up.Outcome; f.State == "" {
		f.State = d.state()
	}
	if errors.Is(e, api.ErrCancelled) {
		side := "before the switch; nothing has changed"
		if up.Outcome == api.RolledBack {
			side = "after the switch had begun; it was taken back"
		}
		f.Err, f.Hint, f.Output = api.ErrCancelled.With(fmt.Sprintf("cancelled in phase %s, %s", up.Phase, side)), "", nil
		return f
	}
	if e.Journal != "" && len(f.Output) == 0 {
		d.addJournal(f, e.Journal, up.Started)
	}
	return f
}

// addJournal puts the app's last lines under the error, or what keeps us from reading them.
func (d *Deployment) addJournal(f *Failure, identifier string, since time.Time) {
	if d.line == nil || d.line.Session == nil {
		return
	}
	ctx, stop := d.fresh(answerTimeout)
	defer stop()
	lines, err := ReadJournal(ctx, d.line.Session, identifier, since, journalLines)
	switch {
	case errors.Is(err, ErrJournalForbidden):
		f.Hint = "to see its last lines here " + letRead(d.Name, d.line.Session.Host().User)
	case err != nil:
		d.say(fmt.Sprintf("its last lines could not be read: %v", err))
	}
	f.Output = lines
}
