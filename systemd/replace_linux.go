package systemd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

const (
	maxDaemon   = 256 << 20        // bytes of a binary
	settleLimit = 15 * time.Second // for systemd to have a main process again
	settleTick  = 50 * time.Millisecond

	unknownLimit = 45 * time.Second // longer than a replacement takes that was begun: supervisor.ReplaceWithin and what is around it
)

// replaceRunning lets the daemon that runs make way for the one that is
// installed, if that is another one. If it cannot, what is installed is what
// runs: else the next crash would bring a daemon that nobody has seen working.
func (s *setup) replaceRunning(ctx context.Context) error {
	run, err := s.bus.running(ctx, s.units[0].Name)
	s.report.Running = run.active
	if err != nil || run.mainPID == 0 {
		return err
	}
	old, err := os.Open(exeOf(run.mainPID)) // while it is open it can be put back
	if errors.Is(err, fs.ErrNotExist) {
		return nil // it has ended, and systemd starts the new one
	}
	if err != nil {
		return err
	}
	defer old.Close()
	if same, err := s.isInstalled(old); same || err != nil {
		return err
	}
	if s.replace == nil {
		s.restartNeeded("%s was replaced since it started", s.spec.DaemonPath)
		return nil
	}
	return s.replaced(ctx, run, old, s.replace(ctx))
}

// replaced looks at what came of it, whatever was answered: an answer may be lost, and whoever crashed meanwhile was started anew.
func (s *setup) replaced(ctx context.Context, before running, old *os.File, why error) error {
	ctx = context.WithoutCancel(ctx)
	if errors.Is(why, ErrUnanswered) {
		s.awaitOther(ctx, before.mainPID)
	}
	ctx, cancel := context.WithTimeout(ctx, settleLimit)
	defer cancel()
	pid, is, err := s.settled(ctx)
	switch {
	case err != nil:
		why = errors.Join(why, err)
	case is:
		s.changed("the installed daemon runs now: process %d made way for %d, and the app runs on", before.mainPID, pid)
		return nil
	case why == nil:
		why = fmt.Errorf("process %d still runs another one", pid)
	}
	s.report.NotReplaced = why.Error()
	if errors.Is(why, ErrTooOld) {
		s.restartNeeded("the running daemon is too old to make way for the installed one, which runs from the next start on")
		return fmt.Errorf("%w: %w", ErrNotReplaced, why)
	}
	if err := putBack(s.spec.DaemonPath, old); err != nil {
		return fmt.Errorf("%w: %w; nor could %s be put back: %w", ErrNotReplaced, why, s.spec.DaemonPath, err)
	}
	s.changed("put %s back as it was", s.spec.DaemonPath)
	return fmt.Errorf("%w: %w", ErrNotReplaced, why)
}

// awaitOther waits until pid is not the main process any more, for as long as that may happen.
func (s *setup) awaitOther(ctx context.Context, pid uint32) {
	ctx, cancel := context.WithTimeout(ctx, unknownLimit)
	defer cancel()
	tick := time.NewTicker(settleTick)
	defer tick.Stop()
	for {
		if run, err := s.bus.running(ctx, s.units[0].Name); err != nil || run.mainPID != pid {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// settled waits until the service has a main process, and tells whether that runs what is installed.
func (s *setup) settled(ctx context.Context) (pid uint32, installed bool, err error) {
	for tick := time.NewTicker(settleTick); ; {
		run, err := s.bus.running(ctx, s.units[0].Name)
		if err != nil {
			return 0, false, err
		}
		if run.mainPID != 0 {
			if exe, err := os.Open(exeOf(run.mainPID)); err == nil {
				is, err := s.isInstalled(exe)
				exe.Close()
				return run.mainPID, is, err
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return 0, false, fmt.Errorf("no daemon runs after %s", settleLimit)
		}
	}
}

func exeOf(pid uint32) string { return fmt.Sprintf("/proc/%d/exe", pid) }

// isInstalled tells whether exe, the program of a process, is what is installed. Nobody can write into a program that runs.
func (s *setup) isInstalled(exe *os.File) (bool, error) {
	a, err := exe.Stat()
	if err != nil {
		return false, err
	}
	b, err := os.Stat(s.spec.DaemonPath)
	if err != nil || os.SameFile(a, b) || a.Size() != b.Size() {
		return err == nil && os.SameFile(a, b), err
	}
	runs, err := content(exe)
	if err != nil {
		return false, err
	}
	installed, err := os.ReadFile(s.spec.DaemonPath)
	return bytes.Equal(runs, installed), err
}

func content(f *os.File) ([]byte, error) { return io.ReadAll(io.NewSectionReader(f, 0, maxDaemon)) }

// putBack makes path what it was: a program that runs is there for as long as it does, also when its file is gone.
func putBack(path string, old *os.File) error {
	text, err := content(old)
	if err != nil {
		return err
	}
	return replaceFile(path, text, 0o755)
}

// compareRunning finds out whether what was set up is in force, also by an
// earlier run of ours.
func (s *setup) compareRunning(ctx context.Context) error {
	run, err := s.bus.running(ctx, s.units[0].Name)
	if err != nil {
		return err
	}
	s.report.Running = run.active
	if run.mainPID == 0 {
		return nil
	}
	if changedAfter(s.spec.ConfigPath, run.since) {
		s.restartNeeded("%s changed since it started", s.spec.ConfigPath)
	}
	if path := filepath.Join(unitDir, s.units[0].Name); changedAfter(path, run.applied) {
		s.restartNeeded("%s changed since it started: user, capabilities, limits and sandbox are still those before, the rest of it is in force", path)
	}
	return nil
}

func changedAfter(path string, t time.Time) bool {
	info, err := os.Stat(path)
	return err == nil && info.ModTime().After(t)
}
