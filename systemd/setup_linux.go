package systemd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	unitDir   = "/etc/systemd/system"
	setupLock = "/run/hotdeploy-setup.lock"
)

// setup is one run of Setup. First everything is looked at and checked, then
// things are changed: what is refused has changed nothing.
type setup struct {
	spec    SetupSpec // with defaults
	replace ReplaceFunc
	named   named
	units   []UnitFile
	bus     *manager
	report  Report

	user     account
	group    groupEntry
	hasUser  bool
	hasGroup bool
	members  []string // to be added to the group
	readers  []string // to be added to the journal's group
	before   unitState
}

// named is what the operator chose, as opposed to what is a default.
type named struct{ user, group bool }

// Setup makes a service's user, folders, configuration and units on this
// host be as spec says, and enables and starts it where asked. It runs as
// root. What is right already stays untouched, so it may be repeated, also
// after a failure or a power cut in the middle; with an error the report says
// what was changed until then. It never restarts a running service; one whose
// binary is not the one at DaemonPath is asked by replace to make way for it,
// which the app does not notice. replace may be nil.
//
// ErrInvalidSpec, ErrForeign, ErrNoSystemd and ErrSetupBusy mean that nothing
// was changed, ErrNotReplaced that only the daemon that runs was not.
func Setup(ctx context.Context, spec SetupSpec, replace ReplaceFunc) (Report, error) {
	s := &setup{spec: spec.WithDefaults(), replace: replace, named: named{user: spec.User != "", group: spec.Group != ""}}
	err := s.run(ctx)
	if err != nil {
		err = fmt.Errorf("set up %s: %w", clip(printable(spec.Service), 40), err)
	}
	return s.report, err
}

func (s *setup) run(ctx context.Context) (err error) {
	if err := s.spec.Validate(); err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return errors.New("must run as root")
	}
	unlock, err := lockSetup()
	if err != nil {
		return err
	}
	defer unlock()
	if s.units, err = Units(s.spec.UnitSpec); err != nil {
		return err
	}
	if s.bus, err = connectManager(ctx); err != nil {
		return err
	}
	defer s.bus.Close()
	if err := s.check(ctx); err != nil {
		return err
	}
	return s.apply(ctx)
}

// lockSetup keeps two set-ups apart. The lock goes with the process, however
// that ends.
func lockSetup() (unlock func(), err error) {
	f, err := os.OpenFile(setupLock, os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	raw, err := f.SyscallConn()
	if err != nil {
		f.Close()
		return nil, err
	}
	var lockErr error
	if err = raw.Control(func(fd uintptr) { lockErr = unix.Flock(int(fd), unix.LOCK_EX|unix.LOCK_NB) }); err == nil {
		err = lockErr
	}
	if err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, ErrSetupBusy
		}
		return nil, fmt.Errorf("lock %s: %w", setupLock, err)
	}
	return func() { f.Close() }, nil
}

func (s *setup) check(ctx context.Context) error {
	for _, step := range []func(context.Context) error{
		s.checkUnits, s.checkAccounts, s.checkMembers, s.checkFiles,
	} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (s *setup) apply(ctx context.Context) error {
	for _, step := range []func(context.Context) error{
		s.makeAccounts, s.makeFolders, s.writeFiles, s.reload, s.enable, s.start, s.noteLeftovers, s.replaceRunning, s.compareRunning,
	} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (s *setup) changed(format string, args ...any) {
	s.report.Changes = append(s.report.Changes, fmt.Sprintf(format, args...))
}

func (s *setup) restartNeeded(format string, args ...any) {
	s.report.RestartNeeded = append(s.report.RestartNeeded, fmt.Sprintf(format, args...))
}

// checkUnits refuses names that belong to somebody else: in any of systemd's
// folders, generated, transient, masked, or an alias.
func (s *setup) checkUnits(ctx context.Context) error {
	for i, u := range s.units {
		state, err := s.bus.state(ctx, u.Name)
		if err != nil {
			return err
		}
		if i == 0 {
			s.before = state
		}
		path := filepath.Join(unitDir, u.Name)
		if state.exists() && (state.Path != path || state.ID != u.Name) {
			return fmt.Errorf("unit %s (%s, %s): %w; choose another name", u.Name, state.Load, state.Path, ErrForeign)
		}
		if err := s.checkOurUnit(path); err != nil {
			return err
		}
	}
	return nil
}

func (s *setup) checkOurUnit(path string) error {
	text, err := readOwn(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case !isOurs(string(text), s.spec.Service):
		return fmt.Errorf("unit %s: %w for this service; choose another name or remove it", path, ErrForeign)
	}
	return nil
}

func (s *setup) checkFiles(context.Context) error {
	info, err := os.Stat(s.spec.DaemonPath)
	if err != nil {
		return fmt.Errorf("daemon: %w", err)
	}
	if !info.Mode().IsRegular() || info.Mode()&0o111 == 0 || info.Mode()&0o022 != 0 || ownerOf(info) != 0 {
		return fmt.Errorf("daemon %s: not an executable file of root's that nobody else may change", s.spec.DaemonPath)
	}
	if _, err := readOwn(s.spec.ConfigPath); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return checkRootFolder(s.spec.Root, s.user.uid, s.hasUser)
}

// writeFiles: the configuration first, since the service reads it.
func (s *setup) writeFiles(context.Context) error {
	if err := s.ensureConfigDir(); err != nil {
		return err
	}
	files := []struct{ path, text string }{{s.spec.ConfigPath, s.spec.ConfigText}}
	for _, u := range s.units {
		files = append(files, struct{ path, text string }{filepath.Join(unitDir, u.Name), u.Text})
	}
	for _, f := range files {
		verb, err := writeOwn(f.path, []byte(f.text), 0o644)
		if err != nil {
			return err
		}
		if verb != "" {
			s.changed("%s %s", verb, f.path)
		}
	}
	return nil
}

func (s *setup) ensureConfigDir() error {
	err := os.Mkdir(configDir, 0o755)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err == nil {
		err = os.Chmod(configDir, 0o755) // whatever the umask
		s.changed("created %s", configDir)
	}
	return err
}

// noteLeftovers: socket units of an earlier set-up stay until someone removes
// them, since clients may be in their queue.
func (s *setup) noteLeftovers(context.Context) error {
	paths, err := filepath.Glob(filepath.Join(unitDir, s.spec.Service+"-*.socket"))
	if err != nil {
		return err
	}
	for _, path := range paths {
		name := filepath.Base(path)
		wanted := slices.ContainsFunc(s.units, func(u UnitFile) bool { return u.Name == name })
		text, err := readOwn(path)
		if err != nil || wanted || !isOurs(string(text), s.spec.Service) {
			continue
		}
		s.report.Notes = append(s.report.Notes, strings.Join([]string{
			name + " is from an earlier set-up and no longer asked for; remove it with",
			"systemctl disable --now " + name + " && rm " + path,
		}, "  "))
	}
	return nil
}
