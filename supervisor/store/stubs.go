package store

import (
	"context"
	"errors"
	"os"

	"github.com/hotdeploy/hotdeploy/internal/api"
	"github.com/hotdeploy/hotdeploy/internal/release"
)

var errTODO = errors.New("not built yet")

// ErrLocked is a root that another process works on. The error's text names its pid.
var ErrLocked = errors.New("another hotdeployd works on this root")

// Store is the folder of one service, opened by one process.
type Store struct {
	// Warn is told of what went wrong without stopping the work, such as rubbish that cannot be removed. Set it before
	// the first use; nil: nobody wants to know.
	Warn func(error)
}

// Open takes the lock on dir, makes the folders that are missing and removes what unfinished work left behind. It does
// not block: a root in use is [ErrLocked].
func Open(dir, service string) (*Store, error) { return nil, errTODO }

// Close releases the lock.
func (s *Store) Close() error { return errTODO }

// Dir is the root's absolute path.
func (s *Store) Dir() string { return "" }

// Facts are what [Store.Plan] must know of the machine and of who asks.
type Facts struct {
	OS, Arch string
	// Env is the environment that generations start from, before the release's and the host's own (see [Store.Env]).
	Env []string
	// SameUser: who will upload is the user that this process runs as, so that content need not be copied. When in
	// doubt false: then Plan wants room for the copies.
	SameUser bool
}

// Plan checks whether the release of that manifest could run here, opens its upload and says what to send. It may be
// called again at any time, and at the same time by several. Its errors are [api.Error]s.
func (s *Store) Plan(ctx context.Context, manifest []byte, f Facts) (api.UploadPlan, error) {
	return api.UploadPlan{}, errTODO
}

// Complete makes an upload a release, or says that it is one already. Interrupted anywhere it can be called again.
// Its errors are [api.Error]s; after [api.ErrDigest] and [api.ErrIncomplete] Plan tells what to send once more.
func (s *Store) Complete(ctx context.Context, digest string) (api.ReleaseInfo, error) {
	return api.ReleaseInfo{}, errTODO
}

// Release is a complete release on this host.
type Release struct {
	release.Ref
	Dir      string // absolute; what HOTDEPLOY_RELEASE names
	FilesDir string // absolute; the working directory of its processes
	Manifest *release.Manifest
}

// Release returns a release, or [api.ErrNotFound]. It believes the files; [Store.Verify] does not.
func (s *Store) Release(version string) (*Release, error) { return nil, errTODO }

// Verify reads every file of r again: [api.ErrDigest] names what is not as the manifest says.
func (s *Store) Verify(ctx context.Context, r *Release) error { return errTODO }

// List returns the complete releases, the newest first, with State "committed" or "previous" as on disk. If some cannot be
// read it returns the others and an error.
func (s *Store) List() ([]api.ReleaseInfo, error) { return nil, errTODO }

// Remove deletes a release. The committed one, the previous one and one in use are [api.ErrConflict].
func (s *Store) Remove(ctx context.Context, version string, inUse func(digest string) bool) error {
	return errTODO
}

// Prune deletes all releases but the committed one, the previous one, those in use, and besides them the keep newest.
// It returns the versions that are gone. A release that is about to be started counts as in use.
func (s *Store) Prune(ctx context.Context, keep int, inUse func(digest string) bool) ([]string, error) {
	return nil, errTODO
}

// Env returns the environment of a generation: base, over it the release's [run].env, over it the host's env file: the
// host knows best. Each name is there once. The file may be absent; warnings are for the log.
func (s *Store) Env(base []string, spec release.Spec) (env, warnings []string, err error) {
	return nil, nil, errTODO
}

// StateFormat is the form of the state file that this code writes; it refuses newer ones.
const StateFormat = 1

// What is wrong with a state file. Such an error's text names the file and says what to type.
var (
	ErrStateDamaged = errors.New("the state file is damaged")
	ErrStateMissing = errors.New("the state file is missing")
	ErrStateNewer   = errors.New("the state file has a newer format")
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
}

// Stopped says that an operator stopped the service. It holds until he starts it, or the machine boots anew.
type Stopped struct {
	BootID string `json:"boot_id"`
	By     string `json:"by,omitempty"`
}

// LoadState reads the state. On a root where nothing was ever committed it is a fresh one; a lost or damaged file is an
// error with a remedy.
func (s *Store) LoadState() (State, error) { return State{}, errTODO }

// SaveState replaces the state on disk at once and for good: after a power cut it is the old or the new one.
func (s *Store) SaveState(st State) error { return errTODO }

// SetCurrent lets the symlink current point to a release, in one step.
func (s *Store) SetCurrent(version string) error { return errTODO }

// Current is the version that the symlink current names; empty: there is none.
func (s *Store) Current() (string, error) { return "", errTODO }

// AppendHistory adds an upgrade to the log, for good when it returns.
func (s *Store) AppendHistory(u api.Upgrade) error { return errTODO }

// History returns the newest n upgrades of the log, the newest first. Lines that cannot be read are left out.
func (s *Store) History(n int) ([]api.Upgrade, error) { return nil, errTODO }

// FindUpgrade returns the newest entry of the log with that id, or [api.ErrNotFound].
func (s *Store) FindUpgrade(id string) (api.Upgrade, error) { return api.Upgrade{}, errTODO }

// BootID is this boot of the machine, for [Stopped].
func BootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return string(b), err
}
