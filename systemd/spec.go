package systemd

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

const (
	defaultNOFILE      = 524288 // what systemd itself gives as the hard limit
	defaultStopTimeout = 90 * time.Second
	defaultWatchdog    = 30 * time.Second
	defaultSocketMode  = 0o660
	maxDescription     = 200
	maxNOFILE          = 1 << 30
	maxTimeout         = 30 * 24 * time.Hour
)

// tmpFolder is below a service's root.
const tmpFolder = "tmp"

// capNetBindService is the only capability that a unit of ours may have.
const capNetBindService = "CAP_NET_BIND_SERVICE"

// UnitSpec is what the units of one service are made from. A zero value of
// any field but Service and DaemonPath means its default.
type UnitSpec struct {
	Service     string `json:"service"`
	Description string `json:"description,omitempty"` // default: says whose service it is
	DaemonPath  string `json:"daemon_path"`           // of hotdeployd on the host
	ConfigPath  string `json:"config_path,omitempty"` // default: /etc/hotdeploy/<service>.toml

	User  string `json:"user,omitempty"`  // default: the name of the service
	Group string `json:"group,omitempty"` // default: the name of the user
	Root  string `json:"root,omitempty"`  // default: /srv/<service>

	// Capabilities is empty, or CAP_NET_BIND_SERVICE where a port below 1024 is
	// bound by the service itself. Sockets do without.
	Capabilities   []string      `json:"capabilities,omitempty"`
	LimitNOFILE    int           `json:"limit_nofile,omitempty"`     // default: 524288
	Watchdog       time.Duration `json:"watchdog,omitempty"`         // default: 30 s
	StopTimeout    time.Duration `json:"stop_timeout,omitempty"`     // default: 90 s
	ReadWritePaths []string      `json:"read_write_paths,omitempty"` // outside Root
	Sockets        []SocketSpec  `json:"sockets,omitempty"`          // bound by systemd
}

// SocketSpec is one socket that systemd binds and passes to the service under
// Name.
type SocketSpec struct {
	Name    string      `json:"name"`
	Network string      `json:"network"`        // tcp, tcp4, tcp6, udp, udp4, udp6, unix
	Address string      `json:"address"`        // as net.Listen takes it, but no host names
	Mode    fs.FileMode `json:"mode,omitempty"` // of a unix socket; default: 0660
}

// ErrInvalidSpec says that a spec asks for something that units are not made
// of. Nothing was changed.
var ErrInvalidSpec = errors.New("invalid service specification")

// WithDefaults fills in what was left out.
func (s UnitSpec) WithDefaults() UnitSpec {
	setDefault(&s.Description, "hotdeploy: "+s.Service)
	setDefault(&s.ConfigPath, "/etc/hotdeploy/"+s.Service+".toml")
	setDefault(&s.User, s.Service)
	setDefault(&s.Group, s.User)
	setDefault(&s.Root, "/srv/"+s.Service)
	setDefault(&s.LimitNOFILE, defaultNOFILE)
	setDefault(&s.StopTimeout, defaultStopTimeout)
	setDefault(&s.Watchdog, defaultWatchdog)
	s.Sockets = slices.Clone(s.Sockets)
	for i := range s.Sockets {
		if s.Sockets[i].Network == "unix" {
			setDefault(&s.Sockets[i].Mode, defaultSocketMode)
		}
	}
	return s
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// Validate says what is wrong with a spec, all of it at once. Call it after
// WithDefaults.
func (s UnitSpec) Validate() error {
	errs := []error{
		checkName("service", s.Service),
		checkDescription(s.Description),
		checkPath("daemon", s.DaemonPath),
		checkPath("configuration", s.ConfigPath),
		checkAccount("user", s.User),
		checkAccount("group", s.Group),
		checkRoot(s.Root),
		checkRange("limit_nofile", s.LimitNOFILE, 256, maxNOFILE),
		checkRange("stop_timeout", s.StopTimeout, time.Second, maxTimeout),
		checkRange("watchdog", s.Watchdog, time.Second, maxTimeout),
	}
	for _, c := range s.Capabilities {
		if c != capNetBindService {
			errs = append(errs, fmt.Errorf("capability %q: only %s is given to a service", c, capNetBindService))
		}
	}
	for _, p := range s.ReadWritePaths {
		errs = append(errs, checkWritable(p))
	}
	errs = append(errs, s.checkSockets())
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalidSpec, err)
	}
	return nil
}

func (s UnitSpec) checkSockets() error {
	var errs []error
	seen := map[string]bool{}
	for _, sock := range s.Sockets {
		if seen[sock.Name] {
			errs = append(errs, fmt.Errorf("socket %q is there twice", sock.Name))
		}
		seen[sock.Name] = true
		errs = append(errs, checkName("socket", sock.Name))
		if _, err := sock.listen(s); err != nil {
			errs = append(errs, fmt.Errorf("socket %q: %w", sock.Name, err))
		}
	}
	return errors.Join(errs...)
}

var (
	namePattern    = regexp.MustCompile(`^[a-z][a-z0-9-]{0,30}$`)
	accountPattern = regexp.MustCompile(`^[a-z_][a-z0-9_-]{0,30}$`)
	// pathPattern has nothing that quoting, word splitting or variables of a
	// unit file are about. Percent signs are escaped.
	pathPattern = regexp.MustCompile(`^/[A-Za-z0-9/._+@%=,:~-]*$`)
)

func checkName(what, name string) error {
	if !namePattern.MatchString(name) {
		return fmt.Errorf("%s name %q: not a lower-case letter and then up to 30 of a-z, 0-9, -", what, name)
	}
	return nil
}

func checkAccount(what, name string) error {
	if !accountPattern.MatchString(name) {
		return fmt.Errorf("%s name %q: not a lower-case letter or _ and then up to 30 of a-z, 0-9, _, -", what, name)
	}
	if name == "root" {
		return fmt.Errorf("%s root: a service of ours never runs as root", what)
	}
	return nil
}

// checkDescription: a newline would start another line of the unit, and a
// backslash at the end would swallow the next one.
func checkDescription(text string) error {
	if text != printable(text) || len(text) > maxDescription || strings.HasSuffix(text, `\`) {
		return fmt.Errorf("description %q: not one printable line of up to %d bytes", clip(text, maxDescription), maxDescription)
	}
	return nil
}

func checkPath(what, path string) error {
	if !pathPattern.MatchString(path) || filepath.Clean(path) != path || len(path) > 1024 {
		return fmt.Errorf("%s path %q: not a clean absolute path of ordinary characters", what, clip(path, 1024))
	}
	return nil
}

func checkRange[T int | time.Duration](what string, value, least, most T) error {
	if value < least || value > most {
		return fmt.Errorf("%s %v: not from %v to %v", what, value, least, most)
	}
	return nil
}

var (
	// ownedTrees belong to the system, or are hidden from the service or taken
	// away from it by its own sandbox.
	ownedTrees = []string{
		"/bin", "/boot", "/dev", "/etc", "/home", "/lib", "/lib32", "/lib64", "/libx32", "/proc", "/root", "/run",
		"/sbin", "/sys", "/tmp", "/usr", "/var/run", "/var/lock", "/var/tmp",
	}
	// sharedFolders, and all that lie directly in /, are not for one service
	// alone. What is in them may be.
	sharedFolders = []string{
		"/var/backups", "/var/cache", "/var/lib", "/var/local",
		"/var/log", "/var/mail", "/var/opt", "/var/spool", "/var/www",
	}
)

func checkRoot(root string) error {
	if err := checkPath("root", root); err != nil {
		return err
	}
	for _, tree := range ownedTrees {
		if root == tree || strings.HasPrefix(root, tree+"/") {
			return fmt.Errorf("root path %s: %s is not for services, use /srv/<service>", root, tree)
		}
	}
	if filepath.Dir(root) == "/" || slices.Contains(sharedFolders, root) {
		return fmt.Errorf("root path %s: shared with others, use a folder in it", root)
	}
	return nil
}

func checkWritable(path string) error {
	if err := checkPath("writable", path); err != nil {
		return err
	}
	if strings.Count(path, "/") < 2 {
		return fmt.Errorf("writable path %s: a whole top-level folder", path)
	}
	return nil
}
