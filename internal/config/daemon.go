package config

import (
	"bytes"
	"errors"
	"fmt"
	"path"
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/BurntSushi/toml"

	"github.com/hotdeploy/hotdeploy/internal/release"
)

// Daemon is /etc/hotdeploy/<service>.toml.
type Daemon struct {
	Service string `toml:"service"`
	Root    string `toml:"root"`           // releases, shared, env, state; default /srv/<service>
	RunDir  string `toml:"run_dir"`        // sockets; default /run/<service>
	User    string `toml:"user,omitempty"` // whom setup made for it; the daemon itself runs as whoever started it
}

// NewDaemon has the defaults for a service.
func NewDaemon(service string) *Daemon {
	d := &Daemon{Service: service}
	d.setDefaults()
	return d
}

func (d *Daemon) setDefaults() {
	if d.Root == "" {
		d.Root = "/srv/" + d.Service
	}
	if d.RunDir == "" {
		d.RunDir = "/run/" + d.Service
	}
}

// LoadDaemon reads and checks the daemon's file at path; what it does not set has its default.
func LoadDaemon(path string) (*Daemon, error) {
	b, err := readFile(path)
	if err != nil {
		return nil, err
	}
	return ParseDaemon(path, b)
}

// ParseDaemon reads and checks b; name stands for the file in errors. The error is an [Error].
func ParseDaemon(name string, b []byte) (*Daemon, error) {
	d := new(Daemon)
	var bad problems
	if _, err := decode(name, b, d, &bad); err != nil {
		return nil, err
	}
	d.setDefaults()
	d.check(&bad)
	if err := bad.err(name, b); err != nil {
		return nil, err
	}
	return d, nil
}

// Encode writes d so that LoadDaemon reads it. The same d gives the same bytes.
func (d *Daemon) Encode() ([]byte, error) {
	var bad problems
	d.check(&bad)
	if err := bad.err("daemon", nil); err != nil {
		return nil, err
	}
	var b bytes.Buffer
	b.WriteString("# Written by hotdeploy setup.\n")
	e := toml.NewEncoder(&b)
	e.Indent = ""
	err := e.Encode(d)
	return b.Bytes(), err
}

var userForm = regexp.MustCompile(`^[a-z_][a-z0-9_-]{0,31}$`)

// maxRunDir leaves room for the name of a socket: the whole path may have 107 bytes.
const maxRunDir = 80

func (d *Daemon) check(bad *problems) {
	if err := release.CheckService(d.Service); err != nil {
		bad.add("service", "%v", err)
	}
	if err := checkPath(d.Root); err != nil {
		bad.add("root", "%q: %v", d.Root, err)
	}
	if err := checkPath(d.RunDir); err != nil {
		bad.add("run_dir", "%q: %v", d.RunDir, err)
	} else if len(d.RunDir) > maxRunDir {
		bad.add("run_dir", "%q: longer than %d bytes, sockets in it would not fit", d.RunDir, maxRunDir)
	}
	if d.User != "" && !userForm.MatchString(d.User) {
		bad.add("user", "%q: must be a user's name", d.User)
	}
}

// checkPath is the rule for paths on a host.
func checkPath(p string) error {
	switch {
	case !path.IsAbs(p) || p == "/":
		return errors.New("must be an absolute path below /")
	case path.Clean(p) != p:
		return fmt.Errorf("is not clean: write %q", path.Clean(p))
	case len(p) > 1024:
		return errors.New("is too long")
	case !utf8.ValidString(p) || strings.ContainsFunc(p, unicode.IsControl):
		return errors.New("has control characters in it")
	}
	return nil
}
