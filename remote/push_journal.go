package remote

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
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
		"--since", "@" + strconv.FormatInt(since.Unix(), 10)}, nil, out, errs)
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
