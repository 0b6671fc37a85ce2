package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/hotdeploy/hotdeploy/internal/api"
)

const (
	journalLines    = 20
	maxJournalBytes = 64 << 10
	maxJournalLine  = 400 // of one line under an error
)

// ErrJournalForbidden means that the SSH user may not read the service's journal.
var ErrJournalForbidden = errors.New("the user may not read the journal")

// ReadJournal returns the last lines that were written under an identifier since a moment of the host's clock.
func ReadJournal(ctx context.Context, s *Session, identifier string, since time.Time, lines int) ([]string, error) {
	out := &limited{limit: maxJournalBytes, tail: true}
	errs := &limited{limit: maxStderr}
	err := s.Run(ctx, []string{"journalctl", "-o", "cat", "--no-pager", "-q", "-n", strconv.Itoa(lines), "-t", identifier,
		"--since", fmt.Sprintf("@%d.%06d", since.Unix(), since.Nanosecond()/1000)}, nil, out, errs)
	text := strings.TrimRight(out.String(), "\n")
	switch {
	case isForbidden(errs.String()):
		return nil, ErrJournalForbidden
	case err != nil:
		return nil, fmt.Errorf("%w: %s", err, oneLine(printable(errs.String())))
	case text == "" && !mayReadJournal(ctx, s):
		return nil, ErrJournalForbidden
	case text == "":
		return nil, nil
	}
	split := strings.Split(text, "\n")
	for i, line := range split {
		split[i] = clip(printable(strings.ReplaceAll(strings.TrimRight(line, "\r"), "\t", "    ")), maxJournalLine)
	}
	return split, nil
}

func isForbidden(stderr string) bool {
	return strings.Contains(stderr, "insufficient permissions") || strings.Contains(stderr, "not seeing messages from other users")
}

// mayReadJournal tells whether an empty answer means that there is nothing: journalctl -q shows a user the own messages only, and
// does not say so.
func mayReadJournal(ctx context.Context, s *Session) bool {
	const script = `[ "$(id -u)" = 0 ] || id -nG | tr ' ' '\n' | grep -qxE 'systemd-journal|adm|wheel'`
	err := s.Run(ctx, []string{"sh", "-c", script}, nil, nil, nil)
	exit := new(ExitError)
	return !errors.As(err, &exit)
}

// LogSource is where a service's output is in the journal.
type LogSource struct {
	Name    string // the host as the operator calls it
	Service string
	Unit    string // empty: the service's own
}

// Logs copies a service's lines of the journal to w, with the host's times. With Follow it ends with ctx.
func Logs(ctx context.Context, s *Session, from LogSource, q api.LogQuery, w io.Writer) error {
	which := []string{"-u", from.unit()}
	if q.Release != "" {
		which = []string{"-t", from.Service + "/" + q.Release}
	}
	if err := from.check(ctx, s, which, q); err != nil {
		return err
	}
	argv := []string{"journalctl", "-q", "--no-pager", "-o", "short-iso", "-n", strconv.Itoa(max(q.Lines, 0))}
	if q.Follow {
		argv = append(argv, "-f")
	}
	argv = append(argv, which...)
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	errs := &lineWriter{limit: maxStderr, line: func(line string) {
		if isForbidden(line) {
			stop(ErrJournalForbidden) // or it would follow nothing for ever
		}
	}}
	said := &limited{limit: maxStderr, tail: true}
	err := s.Run(ctx, argv, nil, w, io.MultiWriter(errs, said))
	switch {
	case errors.Is(context.Cause(ctx), ErrJournalForbidden) || isForbidden(said.String()):
		return from.forbidden(s.host.User)
	case err != nil && said.String() != "":
		return fmt.Errorf("%w: %s", err, oneLine(printable(said.String())))
	}
	return err
}

func (from LogSource) unit() string {
	if from.Unit == "" {
		return from.Service + ".service"
	}
	return from.Unit
}

// check finds out before anything is printed whether there is something to read, and whether we may: journalctl says neither in a way that could be
// told from the app's lines.
func (from LogSource) check(ctx context.Context, s *Session, which []string, q api.LogQuery) error {
	out := &limited{limit: maxJournalLine, tail: true}
	errs := &limited{limit: maxStderr}
	err := s.Run(ctx, append([]string{"journalctl", "-q", "--no-pager", "-o", "cat", "-n", "1"}, which...), nil, out, errs)
	switch {
	case isForbidden(errs.String()), out.String() == "" && !mayReadJournal(ctx, s):
		return from.forbidden(s.host.User)
	case err != nil:
		return fmt.Errorf("%w: %s", err, oneLine(printable(errs.String())))
	case out.String() == "" && !q.Follow && q.Release != "":
		return refusal(api.ErrNotFound, fmt.Sprintf("the journal there has no line of release %s", q.Release), "see which there are:  hotdeploy releases "+from.Name)
	}
	return nil
}

func (from LogSource) forbidden(user string) error {
	f := refusal(&api.Error{Code: "journal-forbidden"}, user+" may not read the journal there", letRead(from.Name, user))
	f.State = "the app's lines are in the journal of the host; nothing was changed"
	return f
}

// letRead is what to type so that a user sees the app's lines.
func letRead(name, user string) string {
	return fmt.Sprintf("let %s read the host's journal (all of it):  ssh %s sudo usermod -aG systemd-journal %s", user, name, user)
}
