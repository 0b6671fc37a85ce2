//go:build !linux

package systemd

import (
	"context"
	"errors"
	"fmt"
	"os"
)

// NotifySocket is the receiving end of the sd_notify protocol. It works on Linux only.
type NotifySocket struct{}

// NotifyListen fails with errors.ErrUnsupported.
func NotifyListen(path string) (*NotifySocket, error) {
	return nil, unsupported("listen for notify messages on " + path)
}

// NotifyAdopt fails with errors.ErrUnsupported.
func NotifyAdopt(_ *os.File, path string) (*NotifySocket, error) {
	return nil, unsupported("listen for notify messages on " + path)
}

// Handle fails with errors.ErrUnsupported.
func (s *NotifySocket) Handle(context.Context, func(Message, Sender, error)) error {
	return unsupported("receive a notify message")
}

// Path is what NOTIFY_SOCKET is set to.
func (s *NotifySocket) Path() string { return "" }

// Close does nothing.
func (s *NotifySocket) Close() error { return nil }

// Recv fails with errors.ErrUnsupported.
func (s *NotifySocket) Recv(context.Context) (Message, Sender, error) {
	return Message{}, Sender{}, unsupported("receive a notify message")
}

// OpenJournalStream fails with ErrNoJournal.
func OpenJournalStream(identifier string, _ Priority) (*os.File, error) {
	return nil, fmt.Errorf("open journal stream %q: %w", identifier, ErrNoJournal)
}

// Setup fails with ErrNoSystemd.
func Setup(context.Context, SetupSpec, ReplaceFunc) (Report, error) { return Report{}, ErrNoSystemd }

func journalStreamEnv(f *os.File) (string, error) {
	return "", unsupported("look at " + f.Name())
}

func unsupported(what string) error { return fmt.Errorf("%s: %w", what, errors.ErrUnsupported) }
