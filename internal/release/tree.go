package release

import (
	"errors"
	"fmt"
	"path"
	"sort"
	"strings"
)

// maxHops is how many symlinks the kernel follows for one path.
const maxHops = 40

// tree answers questions about a manifest's paths as the kernel would answer them about the directory.
type tree struct {
	files  map[string]*File
	paths  []string // sorted: the files and the shared paths
	shared map[string]bool
	led    map[string]place // where each symlink ends, as far as it was asked
}

// place is where a path ends. Beyond a shared path nothing is known but that it is on the host.
type place struct {
	path   string // "" is the top
	shared bool
	hops   int
}

// absentError is a path on the way that nothing stands for.
type absentError struct{ path string }

func (e *absentError) Error() string {
	return "leads to " + quote(e.path) + ", which is not in the release"
}

func newTree(files []File, shared []string) *tree {
	t := &tree{files: make(map[string]*File, len(files)), shared: make(map[string]bool), led: make(map[string]place)}
	for i := range files {
		t.files[files[i].Path] = &files[i]
		t.paths = append(t.paths, files[i].Path)
	}
	for _, p := range shared {
		t.shared[p] = true
		t.paths = append(t.paths, p)
	}
	sort.Strings(t.paths)
	return t
}

// isDir reports whether something is below p. Directories are implied by what they hold.
func (t *tree) isDir(p string) bool {
	if p == "" {
		return true
	}
	i := sort.SearchStrings(t.paths, p+"/")
	return i < len(t.paths) && strings.HasPrefix(t.paths[i], p+"/")
}

// above returns what stands in p's way: a file, a symlink or a shared path where p needs a directory.
func (t *tree) above(p string) (string, bool) {
	for i := range len(p) {
		if p[i] == '/' && (t.files[p[:i]] != nil || t.shared[p[:i]]) {
			return p[:i], true
		}
	}
	return "", false
}

// follow walks target, which is written in directory dir, one element after the other.
func (t *tree) follow(dir, target string, depth int) (place, error) {
	at := place{path: dir}
	for _, name := range strings.Split(target, "/") {
		next, err := t.step(at, name, depth)
		if err != nil {
			return place{}, err
		}
		at = next
		if at.hops > maxHops {
			return place{}, errors.New("passes too many symlinks")
		}
	}
	return at, nil
}

func (t *tree) step(at place, name string, depth int) (place, error) {
	switch {
	case at.shared && name == "..":
		return at, fmt.Errorf(`goes through the shared path %s and out again with ".."`, quote(at.path))
	case at.shared:
		return place{path.Join(at.path, name), true, at.hops}, nil
	case !t.isDir(at.path):
		return at, fmt.Errorf("goes through %s, which is not a directory", quote(at.path))
	case name == "" || name == ".": // a slash at the end also asks for a directory
		return at, nil
	case name == ".." && at.path == "":
		return at, errors.New("leaves the release")
	case name == "..":
		return place{parent(at.path), false, at.hops}, nil
	}
	return t.enter(place{path.Join(at.path, name), false, at.hops}, depth)
}

// enter arrives at p, which may be a symlink itself.
func (t *tree) enter(p place, depth int) (place, error) {
	f := t.files[p.path]
	switch {
	case t.shared[p.path]:
		p.shared = true
		return p, nil
	case f != nil && f.Link != "":
		end, err := t.resolve(f, depth+1)
		end.hops += p.hops
		return end, err
	case f == nil && !t.isDir(p.path):
		return p, &absentError{p.path}
	}
	return p, nil
}

// resolve returns where the symlink f ends. Each one is walked once, however many lead through it.
func (t *tree) resolve(f *File, depth int) (place, error) {
	if p, ok := t.led[f.Path]; ok {
		return p, nil
	}
	if depth > maxHops {
		return place{}, errors.New("passes too many symlinks (a loop?)")
	}
	p, err := t.follow(parent(f.Path), f.Link, depth)
	if err != nil {
		return p, err
	}
	if p.hops++; p.hops > maxHops {
		return p, errors.New("passes too many symlinks")
	}
	t.led[f.Path] = p
	return p, nil
}

// program returns the file that command names inside the release, through symlinks.
func (t *tree) program(command string) (*File, error) {
	end, err := t.follow("", command, 0)
	var absent *absentError
	switch {
	case errors.As(err, &absent) && absent.path == path.Clean(command):
		return nil, errors.New("is not in the release: build it, and list it in pack.files")
	case err != nil:
		return nil, err
	case end.shared:
		return nil, errors.New("is in a shared path: a command must be part of the release")
	case t.files[end.path] == nil:
		return nil, errors.New("is a directory")
	}
	return t.files[end.path], nil
}

func parent(p string) string {
	if i := strings.LastIndexByte(p, '/'); i >= 0 {
		return p[:i]
	}
	return ""
}
