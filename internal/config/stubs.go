package config

import (
	"errors"

	"github.com/hotdeploy/hotdeploy/internal/release"
)

var errTODO = errors.New("not built yet")

// FileName is the name of a project's file.
const FileName = "hotdeploy.toml"

// ErrNoProject is a directory without hotdeploy.toml in it or above it.
var ErrNoProject = errors.New("no " + FileName)

// Project is hotdeploy.toml.
type Project struct {
	Service string `toml:"service"`
	Pack    Pack   `toml:"pack"`
	release.Spec
	Targets map[string]Target `toml:"targets"`

	Dir string `toml:"-"` // the directory that the file was loaded from, absolute
}

// Pack is what goes into a release.
type Pack struct {
	Files   []string `toml:"files"`
	Exclude []string `toml:"exclude"`
}

// Target is a named set of hosts.
type Target struct {
	Hosts  []string `toml:"hosts"`
	Socket string   `toml:"socket"` // the control socket on those hosts; default /run/<service>/control.sock
}

// Load reads and checks the project file at path.
func Load(path string) (*Project, error) { return nil, errTODO }

// Find returns the path of the project file in dir or above it.
func Find(dir string) (string, error) { return "", errTODO }

// Parse reads and checks b; name stands for the file in errors.
func Parse(name string, b []byte) (*Project, error) { return nil, errTODO }

// Hosts says where arg points: a target's hosts, or arg itself as one destination; empty: the only target's hosts.
func (p *Project) Hosts(arg string) ([]string, error) { return nil, errTODO }

// Template is the commented hotdeploy.toml for a service.
func Template(service string) []byte { return nil }

// TemplateFor is Template filled in for what is found in dir.
func TemplateFor(service, dir string) ([]byte, error) { return nil, errTODO }

// ServiceName guesses a service's name from its project's directory.
func ServiceName(dir string) string { return "" }

// Daemon is /etc/hotdeploy/<service>.toml.
type Daemon struct {
	Service string `toml:"service"`
	Root    string `toml:"root"`
	RunDir  string `toml:"run_dir"`
	User    string `toml:"user,omitempty"` // whom setup made for it; the daemon itself only runs as whom it is started
}

// LoadDaemon reads and checks the daemon's file at path; what it does not set has its default.
func LoadDaemon(path string) (*Daemon, error) { return nil, errTODO }

// ParseDaemon does it for b; name stands for the file in errors.
func ParseDaemon(name string, b []byte) (*Daemon, error) { return nil, errTODO }

// Encode writes d so that LoadDaemon reads it.
func (d *Daemon) Encode() ([]byte, error) { return nil, errTODO }
