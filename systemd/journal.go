package systemd

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"unicode"

	"github.com/coreos/go-systemd/v22/journal"
)

// Priority is a syslog level; journal.PriInfo is the usual one for output.
type Priority = journal.Priority

// maxIdentifier is far below what journald takes for one line of the header.
const maxIdentifier = 128

// journalStdout is where journald accepts streams.
const journalStdout = "/run/systemd/journal/stdout"

// ErrNoJournal says that there is no journald here to take a stream.
var ErrNoJournal = errors.New("no journal on this host")

// OnJournal tells whether our own standard error goes to the journal, which
// notes time and unit by itself.
func OnJournal() bool {
	on, err := journal.StderrIsJournalStream()
	return err == nil && on
}

// journalHeader is what a stream starts with: identifier, unit (empty: journald
// goes by the cgroup and believes nobody but root), default level, whether
// "<3>" at the start of a line sets the level, and whether to forward to
// syslog, kernel log and console.
func journalHeader(identifier string, priority Priority) (string, error) {
	if identifier == "" || len(identifier) > maxIdentifier {
		return "", fmt.Errorf("journal identifier %q: not 1 to %d bytes", clip(identifier, maxIdentifier), maxIdentifier)
	}
	if strings.ContainsFunc(identifier, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return "", fmt.Errorf("journal identifier %q: not printable", identifier)
	}
	if priority < journal.PriEmerg || priority > journal.PriDebug {
		return "", fmt.Errorf("journal priority %d: not 0 to 7", priority)
	}
	return fmt.Sprintf("%s\n\n%d\n1\n0\n0\n0\n", identifier, priority), nil
}

// JournalStreamEnv is the value of JOURNAL_STREAM for a child whose standard
// error is f.
func JournalStreamEnv(f *os.File) (string, error) { return journalStreamEnv(f) }
