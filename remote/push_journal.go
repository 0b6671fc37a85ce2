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
	argv := []string{"journalctl", "--no-pager", "-o", "short-iso", "-n", strconv.Itoa(max(q.Lines, 0))}
	if q.Follow {
		argv = append(argv, "-f")
	}
	if q.Release != "" {
		argv = append(argv, "-t", from.Service+"/"+q.Release)
	} else {
		if from.Unit == "" {
			from.Unit = from.Service + ".service"
		}
		argv = append(argv, "-u", from.Unit)
	}
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
		user := s.host.User
		return refusal(&api.Error{Code: "journal-forbidden"}, user+" may not read the journal there",
			fmt.Sprintf("let the user read it with  ssh %s sudo usermod -aG systemd-journal %s", from.Name, user))
	case err != nil && said.String() != "":
		return fmt.Errorf("%w: %s", err, oneLine(printable(said.String())))
	}
	return err
}
