package config

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"

	"github.com/hotdeploy/hotdeploy/internal/release"
)

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

// Pack is what goes into a release: see [release.PackOptions].
type Pack struct {
	Files   []string `toml:"files"`
	Exclude []string `toml:"exclude"`
}

// Target is a named set of hosts.
type Target struct {
	Hosts  []string `toml:"hosts"`  // destinations for SSH: an alias, a host, user@host, user@host:port
	Socket string   `toml:"socket"` // the control socket on those hosts; empty: /run/<service>/control.sock
}

// Load reads and checks the project file at path.
func Load(path string) (*Project, error) {
	b, err := readFile(path)
	if err != nil {
		return nil, err
	}
	p, err := Parse(path, b)
	if err != nil {
		return nil, err
	}
	abs, err := filepath.Abs(path)
	p.Dir = filepath.Dir(abs)
	return p, err
}

// Find returns the path of the project file in dir or above it. It does not look further up than the repository that
// dir is in.
func Find(dir string) (string, error) {
	start, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	for d := start; ; d = filepath.Dir(d) {
		p := filepath.Join(d, FileName)
		if _, err := os.Stat(p); err == nil {
			return p, nil
		} else if !errors.Is(err, os.ErrNotExist) {
			return "", err
		}
		if _, err := os.Lstat(filepath.Join(d, ".git")); err == nil || d == filepath.Dir(d) {
			return "", fmt.Errorf("%w in %s or above it: write one with  hotdeploy init", ErrNoProject, start)
		}
	}
}

// Parse reads and checks b; name stands for the file in errors. What b does not set has its default, what it sets to
// zero is zero. The error is an [Error].
func Parse(name string, b []byte) (*Project, error) {
	p := &Project{}
	p.Spec.Health = release.DefaultHealth()
	p.Spec.SetDefaults()
	var bad problems
	raw, err := decode(name, b, p, &bad)
	if err != nil {
		return nil, err
	}
	if _, ok := raw["health"]; !ok {
		p.Spec.Health = nil
	}
	p.Spec.Resolve()
	p.check(&bad)
	if err := bad.err(name, b); err != nil {
		return nil, err
	}
	return p, nil
}

func (p *Project) check(bad *problems) {
	if p.Service == "" {
		bad.add("service", "is missing: write the service's name")
	} else if err := release.CheckService(p.Service); err != nil {
		bad.add("service", "%v", err)
	}
	if len(p.Pack.Files) == 0 {
		bad.add("pack.files", "is empty: list what the release is made of")
	}
	checkPatterns(bad, "pack.files", p.Pack.Files)
	checkPatterns(bad, "pack.exclude", p.Pack.Exclude)
	bad.addInvalid(p.Spec.Validate())
	for _, name := range slices.Sorted(maps.Keys(p.Targets)) {
		p.Targets[name].check(bad, name)
	}
}

func checkPatterns(bad *problems, key string, patterns []string) {
	for i, t := range patterns {
		if err := release.CheckPattern(t); err != nil {
			bad.add(fmt.Sprintf("%s[%d]", key, i), "%q: %v", t, err)
		}
	}
}

var targetForm = regexp.MustCompile(`^[a-z][a-z0-9_-]{0,63}$`)

func (t Target) check(bad *problems, name string) {
	key := join("targets", name)
	if !targetForm.MatchString(name) {
		bad.add(key, "a target's name has 1 to 64 of a-z, 0-9, _ and -, and begins with a letter")
	}
	if len(t.Hosts) == 0 {
		bad.add(key+".hosts", "is empty: list the target's hosts")
	}
	for i, h := range t.Hosts {
		at := fmt.Sprintf("%s.hosts[%d]", key, i)
		if err := CheckDestination(h); err != nil {
			bad.add(at, "%v", err)
		} else if slices.Contains(t.Hosts[:i], h) {
			bad.add(at, "%q: comes twice", h)
		}
	}
	if t.Socket != "" && (!path.IsAbs(t.Socket) || checkPath(t.Socket) != nil) {
		bad.add(key+".socket", "%q: must be a clean absolute path", t.Socket)
	}
}
