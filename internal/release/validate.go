package release

import (
	"errors"
	"fmt"
	"path"
	"regexp"
	"strings"
)

// Limits on what a manifest may ask for.
const (
	MaxTotalBytes   = 64 << 30 // all files together
	maxInterpreters = 16
)

var (
	serviceForm  = regexp.MustCompile(`^[a-z][a-z0-9-]{0,30}$`)
	versionForm  = regexp.MustCompile(`^[0-9A-Za-z][0-9A-Za-z._+-]{0,99}$`)
	platformForm = regexp.MustCompile(`^[a-z0-9]{0,16}$`)
	digestForm   = regexp.MustCompile(`^[0-9a-f]{64}$`)
)

// CheckService is the rule for a service's name: it becomes a user, a unit and a directory.
func CheckService(s string) error {
	if !serviceForm.MatchString(s) {
		return fmt.Errorf("%s: a service's name has 1 to 31 of a-z, 0-9 and -, and begins with a letter", quote(s))
	}
	return nil
}

// CheckVersion is the rule for a version: it becomes a directory.
func CheckVersion(s string) error {
	if !versionForm.MatchString(s) || strings.Contains(s, "..") {
		return fmt.Errorf(`%s: a version has 1 to 100 of letters, digits and . _ + -, begins with a letter or digit and has no ".."`, quote(s))
	}
	return nil
}

// CheckDigest is the rule for a digest, of a manifest or of a file.
func CheckDigest(s string) error {
	if !digestForm.MatchString(s) {
		return fmt.Errorf("%s: a digest has 64 of 0-9 and a-f", quote(s))
	}
	return nil
}

// Validate checks every rule of a manifest and tells the first broken ones, as an [InvalidError].
// A manifest that passed is safe to write below a directory: see the package's promise.
func (m *Manifest) Validate() error {
	if m.Format > Format {
		return fmt.Errorf("%w (%d; this hotdeploy knows up to %d)", ErrNewerFormat, m.Format, Format)
	}
	var p problems
	m.checkHead(&p)
	m.Spec.check(&p)
	m.checkSockets(&p)
	if m.checkFiles(&p); len(p.list) == 0 {
		m.checkTree(&p) // it relies on paths that are clean and sorted
	}
	return p.err()
}

// TotalBytes is the size of all files together, as they lie on the disk.
func (m *Manifest) TotalBytes() int64 {
	var sum int64
	for i := range m.Files {
		sum += m.Files[i].Size
	}
	return sum
}

func (m *Manifest) checkHead(p *problems) {
	if m.Format < 1 {
		p.add("format", "%d: must be 1 or more", m.Format)
	}
	if err := CheckService(m.Service); err != nil {
		p.add("service", "%v", err)
	}
	if err := CheckVersion(m.Version); err != nil {
		p.add("version", "%v", err)
	}
	if !platformForm.MatchString(m.OS) || !platformForm.MatchString(m.Arch) {
		p.add("os, arch", "%s, %s: must be names such as linux and amd64", quote(m.OS), quote(m.Arch))
	}
	if len(m.Interpreters) > maxInterpreters {
		p.add("interpreters", "%d of them, more than the %d allowed", len(m.Interpreters), maxInterpreters)
		return
	}
	for _, i := range m.Interpreters {
		if err := checkInterpreter(i); err != nil {
			p.add("interpreters", "%s: %v", quote(i), err)
		}
	}
}

func checkInterpreter(i string) error {
	if err := checkText(i, MaxPathBytes); err != nil {
		return err
	}
	switch {
	case i == "" || i == "." || i == "..":
		return errors.New("must be a program")
	case path.IsAbs(i) && path.Clean(i) == i && i != "/", !strings.Contains(i, "/"):
		return nil
	}
	return errors.New("must be a bare name or a clean absolute path")
}

// checkSockets holds what depends on the service's name: how long a socket's path is, and that it is not one of ours.
func (m *Manifest) checkSockets(p *problems) {
	run := "/run/" + m.Service
	for i, l := range m.Spec.Listeners {
		if l.Network != "unix" {
			continue
		}
		at := l.Address
		if !path.IsAbs(at) {
			at = path.Join(run, at)
		}
		if len(at) > maxSocketPath {
			p.add(listenField(i, "address"), "%s: longer than the %d bytes that a unix socket's path may have", quote(at), maxSocketPath)
		}
		if at == run+"/control.sock" || at == run+"/notify.sock" {
			p.add(listenField(i, "address"), "%s: is hotdeploy's own", quote(at))
		}
	}
}

// checkFiles looks at each file by itself, and at their order.
func (m *Manifest) checkFiles(p *problems) {
	if len(m.Files) > MaxFiles {
		p.add("files", "%d of them, more than the %d allowed", len(m.Files), MaxFiles)
		return
	}
	var total int64
	sizes := make(map[string]int64)
	for i := range m.Files {
		f := &m.Files[i]
		if err := checkFile(f, sizes); err != nil {
			p.add("files", "%s: %v", quote(f.Path), err)
		}
		if i > 0 && m.Files[i-1].Path >= f.Path {
			p.add("files", "%s: comes twice, or not in its order", quote(f.Path))
		}
		if total += min(max(f.Size, 0), MaxTotalBytes); total > MaxTotalBytes {
			p.add("files", "%s: here the sum of sizes is beyond the %d bytes allowed", quote(f.Path), int64(MaxTotalBytes))
			return
		}
		if p.full() {
			return
		}
	}
}

// checkFile remembers in sizes how long each content is: one digest cannot have two lengths.
func checkFile(f *File, sizes map[string]int64) error {
	if err := checkName(f.Path); err != nil {
		return err
	}
	if f.Link != "" {
		if f.Mode != 0 || f.Size != 0 || f.SHA256 != "" {
			return errors.New("is a symlink: it has no mode, size or digest")
		}
		return checkLink(f.Link)
	}
	if f.Mode != 0o644 && f.Mode != 0o755 {
		return fmt.Errorf("has mode %#o: must be 0644 or 0755", f.Mode)
	}
	if f.Size < 0 || f.Size > MaxTotalBytes {
		return fmt.Errorf("has size %d: must be 0 to %d", f.Size, int64(MaxTotalBytes))
	}
	if err := CheckDigest(f.SHA256); err != nil {
		return err
	}
	if s, ok := sizes[f.SHA256]; ok && s != f.Size {
		return fmt.Errorf("has size %d, and another file with the same digest has %d", f.Size, s)
	}
	sizes[f.SHA256] = f.Size
	return nil
}

// checkTree looks at how the files lie to each other.
func (m *Manifest) checkTree(p *problems) {
	t := newTree(m.Files, m.Spec.Run.Shared)
	m.checkShared(t, p)
	for i := range m.Files {
		f := &m.Files[i]
		if by, ok := t.above(f.Path); ok {
			p.add("files", "%s: lies below %s, which is not a directory of the release", quote(f.Path), quote(by))
		}
		if f.Link != "" {
			if _, err := t.resolve(f, 0); err != nil {
				p.add("files", "%s: the symlink to %s %v", quote(f.Path), quote(f.Link), err)
			}
		}
		if p.full() {
			return
		}
	}
	m.checkCommands(t, p)
}

func (m *Manifest) checkShared(t *tree, p *problems) {
	for _, s := range m.Spec.Run.Shared {
		if by, ok := t.above(s); ok {
			p.add("run.shared", "%s: lies below %s, which is not a directory of the release", quote(s), quote(by))
		}
		if t.files[s] != nil || t.isDir(s) {
			p.add("run.shared", "%s: the release has files there: exclude them, or do not share it", quote(s))
		}
	}
}

func (m *Manifest) checkCommands(t *tree, p *problems) {
	commands := map[string][]string{"run.command": m.Spec.Run.Command, "ready.command": m.Spec.Ready.Command}
	if m.Spec.Health != nil {
		commands["health.command"] = m.Spec.Health.Command
	}
	for _, field := range []string{"run.command", "ready.command", "health.command"} {
		c := commands[field]
		if len(c) == 0 || !isInside(c[0]) {
			continue
		}
		f, err := t.program(c[0])
		switch {
		case err != nil:
			p.add(field, "%s: %v", quote(c[0]), err)
		case f.Mode != 0o755:
			p.add(field, "%s: not executable: chmod +x and pack again", quote(c[0]))
		}
	}
}
