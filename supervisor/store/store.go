package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/hotdeploy/hotdeploy/internal/api"
)

// ErrLocked is a root that another process works on. The error's text names its pid.
var ErrLocked = errors.New("another hotdeployd works on this folder")

// Store is the folder of one service, opened by one process.
type Store struct {
	// Warn is told of what went wrong without stopping the work, such as rubbish that cannot be removed. Set it before
	// the first use; nil: nobody wants to know.
	Warn func(error)

	dir     string // absolute
	service string
	root    *os.Root
	lock    *os.File

	building turn // who has it may change releases/
	planning turn // who has it may begin and drop uploads; taken after building where both are
	// who has it may rebuild a bundle; taken after building where both are
	rebuilding turn

	mu         sync.Mutex      // guards what follows; no I/O under it
	rotten     map[string]bool // files of releases whose content was found to be wrong: not reused again
	completing string          // digest of the upload that is in use by Complete
	early      *early          // that has rebuilding; nil: none

	busy    busyBundles
	decoded decoded // the manifests that a push asks for again and again

	history sync.Mutex // held over one append, so that lines do not mix
}

// Open takes the lock on dir, makes the folders that are missing and removes what unfinished work left behind. It does
// not block: a folder in use is [ErrLocked].
func Open(dir, service string) (*Store, error) { return OpenLocked(dir, service, nil) }

// OpenLocked is Open with a duplicate of the lock that another process holds, and is about to leave to us; it is the Store's from then on.
func OpenLocked(dir, service string, lock *os.File) (_ *Store, err error) {
	if dir, err = filepath.Abs(dir); err != nil {
		return nil, fmt.Errorf("open the service's folder: %w", err)
	}
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return nil, fmt.Errorf("make the service's folder: %w", err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("open the service's folder: %w", err)
	}
	s := &Store{
		dir: dir, service: service, root: root,
		building: make(turn, 1), planning: make(turn, 1), rebuilding: make(turn, 1),
		rotten: map[string]bool{}, lock: lock,
	}
	if err := s.prepare(); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (s *Store) prepare() error {
	if err := s.makeDir(stateDir, 0o700); err != nil {
		return err
	}
	if err := s.takeLock(); err != nil {
		return err
	}
	for _, d := range []struct {
		name string
		mode os.FileMode
	}{
		{releasesDir, 0o750},
		{incomingDir, os.ModeSetgid | 0o770}, // who uploads may be another user of our group
		{sharedDir, 0o750},
	} {
		if err := s.makeDir(d.name, d.mode); err != nil {
			return err
		}
	}
	s.removeLeftovers()
	return nil
}

// makeDir makes a folder of the root. One that is there keeps the mode that somebody gave it.
func (s *Store) makeDir(name string, mode os.FileMode) error {
	switch fi, err := s.root.Lstat(name); {
	case errors.Is(err, os.ErrNotExist):
		return makeDir(s.root, name, mode)
	case err != nil:
		return fmt.Errorf("look at %s: %w", s.path(name), err)
	case !fi.IsDir():
		return fmt.Errorf("%s is not a directory (to have it on another disk, mount that disk there)", s.path(name))
	}
	return nil
}

// Lock locks the file at path until it is closed, or its process ends; ErrLocked if somebody else has it.
func Lock(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	err = onFD(f, func(fd int) error { return unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) })
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = ErrLocked
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return f, nil
}

// takeLock leaves the lock to the end of the process: the kernel drops it however that comes about.
func (s *Store) takeLock() error {
	if s.lock != nil {
		return s.checkLock()
	}
	f, err := s.root.OpenFile(lockFile, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("open %s: %w", s.path(lockFile), err)
	}
	err = onFD(f, func(fd int) error { return unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) })
	if errors.Is(err, unix.EWOULDBLOCK) {
		defer f.Close()
		return fmt.Errorf("%w: %s is held by %s", ErrLocked, s.path(lockFile), holder(f))
	}
	if err != nil {
		f.Close()
		return fmt.Errorf("lock %s: %w", s.path(lockFile), err)
	}
	s.lock = f
	if err := f.Truncate(0); err != nil {
		return fmt.Errorf("write %s: %w", s.path(lockFile), err)
	}
	if _, err := fmt.Fprintf(f, "%d\n", os.Getpid()); err != nil {
		return fmt.Errorf("write %s: %w", s.path(lockFile), err)
	}
	return nil
}

// checkLock is for a lock that was inherited: it must be that of this folder.
func (s *Store) checkLock() error {
	held, err := s.lock.Stat()
	if err != nil {
		return err
	}
	if is, err := s.root.Stat(lockFile); err != nil || !os.SameFile(held, is) {
		return errors.Join(fmt.Errorf("the daemon before this one works in another folder than %s; only a restart changes that", s.dir), err)
	}
	return nil
}

// holder says who has the lock. The file may be empty: its holder has had it for no longer than an instant.
func holder(f *os.File) string {
	b := make([]byte, 32)
	n, _ := f.ReadAt(b, 0)
	if pid := strings.TrimSpace(string(b[:n])); pid != "" {
		return "pid " + pid
	}
	return "a process that is just starting"
}

// Close releases the lock. Nothing of s may be used afterwards.
func (s *Store) Close() error {
	var err error
	if s.lock != nil {
		err = s.lock.Close()
	}
	return errors.Join(err, s.root.Close())
}

// LockFile is the lock, for a process that goes on with the folder.
func (s *Store) LockFile() *os.File { return s.lock }

// Freeze waits until nothing changes releases and uploads, and lets nothing until release is called.
func (s *Store) Freeze(ctx context.Context) (release func(), err error) {
	if err := s.building.take(ctx); err != nil {
		return nil, err
	}
	if err := s.planning.take(ctx); err != nil {
		s.building.give()
		return nil, err
	}
	return func() { s.planning.give(); s.building.give() }, nil
}

// Dir is the root's absolute path.
func (s *Store) Dir() string { return s.dir }

// path is where a file of the root is, for people and other programs.
func (s *Store) path(name string) string { return filepath.Join(s.dir, name) }

func (s *Store) warn(format string, args ...any) {
	if s.Warn != nil {
		s.Warn(fmt.Errorf(format, args...))
	}
}

// turn is a lock that somebody who waits for it can stop waiting for. Unlike a mutex it is held while files are written.
type turn chan struct{}

func (t turn) take(ctx context.Context) error {
	select {
	case t <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for other work on this service's folder: %w", context.Cause(ctx))
	}
}

func (t turn) give() { <-t }

// refuse is an error for whoever asked: what broke and what to type next.
func refuse(code *api.Error, hint, format string, args ...any) error {
	e := code.With(fmt.Sprintf(format, args...))
	e.Hint = hint
	return e
}
