package release

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
)

// maxScripts is how many scripts may start one another; the kernel's limit.
const maxScripts = 4

// needer finds what a release needs of its host: the machine, and the interpreters of its start command.
type needer struct {
	*tree
	spec     *Spec
	contents map[string]*content // by path
}

// platform is what the release was built for. The start command decides, if it is an ELF program of the release: what
// else lies there may be for other machines (an agent to copy elsewhere, BPF). If it is not (a script, "node"), then all ELF
// programs must agree, and if there are none, the libraries say it, as far as they agree: packages in other languages
// often bring one library for each machine.
func (n *needer) platform() (Platform, error) {
	start, err := n.start()
	if err != nil {
		return Platform{}, err
	}
	if start != nil && start.form == formELF {
		return start.Platform, nil
	}
	p, other, same := n.agree(true)
	if !same {
		return Platform{}, fmt.Errorf("pack: %s is built for %s and %s for %s: exclude the one that is not for your hosts",
			quote(p), n.contents[p].Platform, quote(other), n.contents[other].Platform)
	}
	if p == "" {
		if p, _, same = n.agree(false); p == "" || !same {
			return Platform{}, nil
		}
	}
	return n.contents[p].Platform, nil
}

func (p Platform) String() string { return p.OS + "/" + p.Arch }

// agree looks at all ELF programs, or at all other ELF files. It returns the first, and the first that differs from it.
func (n *needer) agree(programs bool) (first, other string, same bool) {
	for _, p := range n.paths {
		c := n.contents[p]
		switch {
		case c == nil || c.form != formELF || c.runs != programs || c.Arch == "":
		case first == "":
			first = p
		case c.Platform != n.contents[first].Platform:
			return first, p, false
		}
	}
	return first, "", true
}

// start is the start command's content if it is a file of the release; an error if no Linux machine can start it.
func (n *needer) start() (*content, error) {
	command := n.spec.Run.Command[0]
	if !isInside(command) {
		return nil, nil
	}
	f, err := n.program(command)
	if err != nil {
		return nil, fmt.Errorf("run.command: %s: %w", quote(command), err)
	}
	c := n.contents[f.Path]
	if err := c.startable(); err != nil {
		return nil, fmt.Errorf("run.command: %s %w", quote(command), err)
	}
	return c, nil
}

func (c *content) startable() error {
	switch {
	case c.form == formMachO:
		return errors.New("is built for darwin: build it with GOOS=linux")
	case c.form == formPE:
		return errors.New("is built for windows: build it with GOOS=linux")
	case c.form == formOther:
		return errors.New("is neither an ELF program nor a script that begins with #! and its interpreter")
	case c.form == formELF && c.OS != "linux":
		return fmt.Errorf("is built for %s: build it with GOOS=linux", c.OS)
	case c.form == formELF && c.Arch == "":
		return errors.New("is built for a machine that hotdeploy does not know")
	case c.form == formELF && !c.runs:
		return errors.New("is a library or an object file, not a program")
	}
	return nil
}

// interpreters are what the start command needs on the host.
func (n *needer) interpreters() ([]string, error) {
	command := n.spec.Run.Command[0]
	var list []string
	var err error
	switch {
	case isInside(command):
		list, err = n.needs(command, 0)
	case path.IsAbs(command):
		list = []string{path.Clean(command)}
	default:
		list, err = n.lookUp(command, 0)
	}
	if err != nil {
		return nil, fmt.Errorf("run.command: %s %w", quote(command), err)
	}
	return list, nil
}

// needs is what a file of the release needs on the host to be started.
func (n *needer) needs(command string, depth int) ([]string, error) {
	f, err := n.program(command)
	if err != nil {
		return nil, err
	}
	c := n.contents[f.Path]
	switch {
	case depth > maxScripts:
		return nil, errors.New("is a script of a script of a script: the kernel gives up")
	case c.form == formELF && c.interp != "" && !path.IsAbs(c.interp):
		return nil, fmt.Errorf("asks for the loader %s, which is not absolute", quote(c.interp))
	case c.form == formELF && c.interp != "":
		return []string{path.Clean(c.interp)}, nil
	case c.form == formScript:
		return n.script(c.shebang, depth)
	}
	return nil, nil
}

func (n *needer) script(shebang string, depth int) ([]string, error) {
	s, err := parseShebang(shebang)
	switch {
	case err != nil:
		return nil, err
	case path.IsAbs(s.interpreter):
		return []string{path.Clean(s.interpreter)}, nil
	case s.inPath && !strings.Contains(s.interpreter, "/"):
		return n.lookUp(s.interpreter, depth+1)
	}
	list, err := n.needs(s.interpreter, depth+1)
	if err != nil {
		return nil, fmt.Errorf("asks for the interpreter %s, which %w", quote(s.interpreter), err)
	}
	return list, nil
}

// lookUp is for a bare name: it is in the release if the release's own PATH says so, else it must be on the host.
func (n *needer) lookUp(name string, depth int) ([]string, error) {
	for _, dir := range strings.Split(n.spec.Run.Env["PATH"], ":") {
		if dir == "" || path.IsAbs(dir) {
			continue
		}
		if f, err := n.program(path.Join(dir, name)); err == nil && f.Mode == 0o755 {
			return n.needs(path.Join(dir, name), depth)
		}
	}
	return []string{name}, nil
}

// shebang is the first line of a script.
type shebang struct {
	interpreter string
	inPath      bool // it was named to env
}

func parseShebang(line string) (shebang, error) {
	fields := strings.Fields(line)
	switch {
	case strings.HasSuffix(line, "\r"):
		return shebang{}, errors.New("has Windows line ends, with which no kernel finds its interpreter: save it with Unix ones")
	case len(fields) == 0:
		return shebang{}, errors.New("begins with #! but names no interpreter")
	case path.Base(fields[0]) != "env" || len(fields) == 1:
		return shebang{interpreter: fields[0]}, nil
	}
	name, err := envName(fields[1:])
	return shebang{name, true}, err
}

// envName finds the program in the arguments of env. Linux gives env the rest of the line as one argument, so that
// more than a name needs -S; other systems split it, which is why such scripts come to us at all.
func envName(args []string) (string, error) {
	split := slices.Contains([]string{"-S", "-vS", "--split-string"}, args[0])
	if len(args) > 1 && !split && !strings.HasPrefix(args[0], "-S") && !strings.HasPrefix(args[0], "--split-string=") {
		return "", errors.New("gives env more than a name in its first line, which Linux does not split: write #!/usr/bin/env -S")
	}
	args[0] = strings.TrimPrefix(strings.TrimPrefix(args[0], "--split-string="), "-S")
	for _, a := range args {
		if a != "" && a[0] != '-' && !strings.Contains(a, "=") {
			return a, nil
		}
	}
	return "", errors.New("names no interpreter in its first line")
}
