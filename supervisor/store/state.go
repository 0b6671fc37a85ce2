package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/hotdeploy/hotdeploy/internal/api"
	"github.com/hotdeploy/hotdeploy/internal/release"
)

// StateFormat is the form of the state file that this code writes; it refuses newer ones.
const StateFormat = 1

// What is wrong with a state file. Such an error's text names the file and says what to type.
var (
	ErrStateDamaged = errors.New("the state file is damaged")
	ErrStateMissing = errors.New("the state file is missing")
	ErrStateNewer   = errors.New("the state file was written by a newer hotdeployd")
)

// State is what the supervisor must know after a restart.
type State struct {
	Format         int          `json:"format"`  // SaveState sets it
	Service        string       `json:"service"` // SaveState sets it
	Committed      *release.Ref `json:"committed,omitempty"`
	Previous       *release.Ref `json:"previous,omitempty"`
	NextGeneration int          `json:"next_generation"` // at least 1
	Stopped        *Stopped     `json:"stopped,omitempty"`
	Upgrade        *api.Upgrade `json:"upgrade,omitempty"` // in flight
	Arrived        []string     `json:"arrived,omitempty"` // digests of releases that pushes brought and that have not served yet, the newest last
}

// maxArrived bounds them: who pushes so often without an upgrade loses sight of the oldest, which then stay on the host.
const maxArrived = 16

// Arrive notes that a push brings a release.
func (st *State) Arrive(digest string) {
	list := append(st.without(digest), digest)
	st.Arrived = list[max(0, len(list)-maxArrived):]
}

// Settle notes that a release serves, or is gone again.
func (st *State) Settle(digest string) { st.Arrived = st.without(digest) }

// without is a new slice: states share none that change.
func (st *State) without(digest string) []string {
	return slices.DeleteFunc(slices.Clone(st.Arrived), func(d string) bool { return d == digest })
}

// Stopped says that an operator stopped the service. It holds until he starts it, or the machine boots anew.
type Stopped struct {
	BootID string `json:"boot_id"` // as [BootID] told it
	By     string `json:"by,omitempty"`
}

// BootID is this boot of the machine.
func BootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("find out which boot this is: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

func (st *State) roleOf(digest string) string {
	switch {
	case st.Committed != nil && st.Committed.Digest == digest:
		return "committed"
	case st.Previous != nil && st.Previous.Digest == digest:
		return "previous"
	}
	return ""
}

// LoadState reads the state. Where nothing was ever committed it is a fresh one. A damaged file is an error with
// a remedy, and so is one that is missing although a release was committed.
func (s *Store) LoadState() (State, error) {
	b, err := readLimited(s.root, stateFile, maxStateBytes)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return s.freshState()
	case errors.Is(err, fs.ErrPermission):
		return State{}, fmt.Errorf("read the state: %w", err)
	case err != nil:
		return State{}, s.stateError(ErrStateDamaged, err)
	}
	st, err := decodeState(b)
	if err == nil && st.Service != s.service {
		err = fmt.Errorf("%w: it is of the service %q, not %q", ErrStateDamaged, st.Service, s.service)
	}
	if errors.Is(err, ErrStateNewer) {
		return State{}, fmt.Errorf("%w: update hotdeployd on this host, it is older than %s", err, s.path(stateFile))
	}
	if err != nil {
		return State{}, s.stateError(ErrStateDamaged, err)
	}
	return st, nil
}

func (s *Store) freshState() (State, error) {
	if _, err := s.root.Lstat(currentLink); err == nil {
		return State{}, s.stateError(ErrStateMissing, fmt.Errorf("%s is there, so a release was committed", s.path(currentLink)))
	} else if !errors.Is(err, fs.ErrNotExist) {
		return State{}, fmt.Errorf("read the state: %w", err)
	}
	return State{Format: StateFormat, Service: s.service, NextGeneration: 1}, nil
}

func decodeState(b []byte) (State, error) {
	var head struct {
		Format int `json:"format"`
	}
	if err := json.Unmarshal(b, &head); err != nil {
		return State{}, fmt.Errorf("%w: %w", ErrStateDamaged, err)
	}
	if head.Format > StateFormat {
		return State{}, fmt.Errorf("%w (format %d, known up to %d)", ErrStateNewer, head.Format, StateFormat)
	}
	var st State
	if err := json.Unmarshal(b, &st); err != nil {
		return State{}, fmt.Errorf("%w: %w", ErrStateDamaged, err)
	}
	if err := st.check(); err != nil {
		return State{}, fmt.Errorf("%w: %w", ErrStateDamaged, err)
	}
	return st, nil
}

func (st *State) check() error {
	if st.Format < 1 {
		return fmt.Errorf("format is %d", st.Format)
	}
	if st.NextGeneration < 1 {
		return fmt.Errorf("next_generation is %d", st.NextGeneration)
	}
	for name, ref := range map[string]*release.Ref{"committed": st.Committed, "previous": st.Previous} {
		if ref == nil {
			continue
		}
		if err := errors.Join(release.CheckVersion(ref.Version), release.CheckDigest(ref.Digest)); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	for _, digest := range st.Arrived {
		if err := release.CheckDigest(digest); err != nil {
			return fmt.Errorf("arrived: %w", err)
		}
	}
	if st.Previous != nil && st.Committed == nil {
		return errors.New("there is a previous release but no committed one")
	}
	return nil
}

// SaveState replaces the state on disk, in one step and for good: after a power cut it is the old one or this one.
func (s *Store) SaveState(st State) error {
	st.Format, st.Service = StateFormat, s.service
	if err := st.check(); err != nil {
		return fmt.Errorf("save the state: %w", err)
	}
	b, err := json.Marshal(st)
	if err != nil {
		return fmt.Errorf("save the state: %w", err)
	}
	if len(b) >= maxStateBytes {
		return fmt.Errorf("save the state: it has %d bytes, too many to be read again", len(b))
	}
	if err := writeFile(s.root, stateFile, append(b, '\n'), 0o600); err != nil {
		return s.explain(fmt.Errorf("save the state: %w", err))
	}
	return nil
}

// stateError says what to type. The remedy is a state file made of what else is known: it needs no tool that may be
// missing, and the operator sees what he declares.
func (s *Store) stateError(kind, cause error) error {
	file := s.path(stateFile)
	lines := []string{}
	if kind == ErrStateDamaged {
		lines = append(lines, fmt.Sprintf("mv %s %s.damaged", file, file))
	}
	if st, err := s.guessState(); err != nil {
		lines = append(lines, "rm "+s.path(currentLink), "# and push: what was committed cannot be told: "+err.Error())
	} else if st != nil {
		b, _ := json.Marshal(st)
		lines = append(lines,
			"# declare committed what "+s.path(currentLink)+" says, release "+st.Committed.Version+":",
			fmt.Sprintf("echo '%s' > %s", b, file),
			fmt.Sprintf("chown --reference=%s %s && chmod 0600 %s", path.Dir(file), file, file))
	}
	if !errors.Is(cause, kind) {
		cause = fmt.Errorf("%w: %w", kind, cause)
	}
	return fmt.Errorf("%s: %w; to go on type:\n\t%s", file, cause, strings.Join(lines, "\n\t"))
}

// guessState is the state that current and the history speak for; nil: nothing was ever committed.
func (s *Store) guessState() (*State, error) {
	version, err := s.Current()
	if version == "" || err != nil {
		return nil, err
	}
	digest, _, err := s.readManifest(version)
	if err != nil {
		return nil, err
	}
	st := &State{Format: StateFormat, Service: s.service, NextGeneration: 1, Committed: &release.Ref{Version: version, Digest: digest}}
	err = s.eachUpgrade(nil, func(u *api.Upgrade) bool {
		st.NextGeneration = max(st.NextGeneration, u.Generation+1)
		return true
	})
	return st, err
}

// SetCurrent lets the symlink current point to a release, in one step. It comes after SaveState: what boots is what the state
// says, the link is for people and scripts.
func (s *Store) SetCurrent(version string) error {
	if _, _, err := s.readManifest(version); err != nil {
		return fmt.Errorf("set %s: release %s: %w", s.path(currentLink), version, err)
	}
	temp := tempName()
	if err := s.root.Symlink(path.Join(releasesDir, version), temp); err != nil {
		return s.explain(fmt.Errorf("set %s: %w", s.path(currentLink), err))
	}
	step("current")
	if err := s.root.Rename(temp, currentLink); err != nil {
		s.root.Remove(temp)
		return fmt.Errorf("set %s: %w", s.path(currentLink), err)
	}
	return syncPath(s.root, ".")
}

// Current is the version that the symlink current names; empty: there is none.
func (s *Store) Current() (string, error) {
	target, err := s.root.Readlink(currentLink)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("read %s: %w", s.path(currentLink), err)
	}
	version, ok := strings.CutPrefix(path.Clean(target), releasesDir+"/")
	if err := release.CheckVersion(version); !ok || err != nil {
		return "", fmt.Errorf("%s points to %q, which is no release", s.path(currentLink), target)
	}
	return version, nil
}
