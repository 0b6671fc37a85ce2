package release

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
)

// found is one file or symlink that goes into a release.
type found struct {
	path string
	info fs.FileInfo
	link string // a symlink's target
}

// collector walks a project and takes what the patterns name. It follows no symlink.
type collector struct {
	ctx            context.Context
	root           *os.Root
	files, exclude []pattern
	shared         []string
	used           []bool // by index of files: it took something
	found          []found
}

// collect lists what to pack, sorted by path.
func collect(ctx context.Context, root *os.Root, o *PackOptions) ([]found, error) {
	c := collector{ctx: ctx, root: root, shared: o.Spec.Run.Shared, used: make([]bool, len(o.Files))}
	var err error
	if c.files, err = parsePatterns("pack.files", o.Files); err != nil {
		return nil, err
	}
	if c.exclude, err = parsePatterns("pack.exclude", o.Exclude); err != nil {
		return nil, err
	}
	if len(c.files) == 0 {
		return nil, errors.New("pack.files: is empty: list what the release is made of")
	}
	if err := c.walk(".", nil); err != nil {
		return nil, err
	}
	if err := c.unused(); err != nil {
		return nil, err
	}
	slices.SortFunc(c.found, func(a, b found) int { return strings.Compare(a.path, b.path) })
	return c.found, nil
}

// walk takes directory dir; by are the patterns that took it as a whole.
func (c *collector) walk(dir string, by []int) error {
	if err := c.ctx.Err(); err != nil {
		return err
	}
	d, err := c.root.Open(dir)
	if err != nil {
		return fmt.Errorf("read the project: %w", err)
	}
	entries, err := d.ReadDir(-1)
	d.Close()
	if err != nil {
		return fmt.Errorf("read the project: %w", err)
	}
	for _, e := range entries {
		if err := c.entry(path.Join(dir, e.Name()), e.IsDir(), by); err != nil {
			return err
		}
	}
	return nil
}

func (c *collector) entry(p string, dir bool, by []int) error {
	if c.left(p) {
		return nil
	}
	took := append([]int(nil), by...)
	for i, f := range c.files {
		if !slices.Contains(by, i) && f.match(p) {
			took = append(took, i)
		}
	}
	switch {
	case dir && (len(took) > 0 || c.mayMatchBelow(p)):
		return c.walk(p, took)
	case dir || len(took) == 0:
		return nil
	}
	for _, i := range took {
		c.used[i] = true
	}
	return c.take(p)
}

// left reports what never goes into a release: what is excluded, what is shared across releases, git's own directory
// and our own file (which names hosts).
func (c *collector) left(p string) bool {
	excluded := func(e pattern) bool { return e.match(p) }
	return path.Base(p) == ".git" || p == "hotdeploy.toml" || slices.Contains(c.shared, p) || slices.ContainsFunc(c.exclude, excluded)
}

func (c *collector) mayMatchBelow(dir string) bool {
	return slices.ContainsFunc(c.files, func(f pattern) bool { return f.below(dir) })
}

func (c *collector) take(p string) error {
	info, err := c.root.Lstat(p)
	if err != nil {
		return fmt.Errorf("pack %s: %w", quote(p), err)
	}
	f := found{path: p, info: info}
	switch {
	case info.Mode()&fs.ModeSymlink != 0:
		if f.link, err = c.root.Readlink(p); err != nil {
			return fmt.Errorf("pack %s: %w", quote(p), err)
		}
	case !info.Mode().IsRegular():
		return fmt.Errorf("pack %s: is a %s, which no release can hold: exclude it", quote(p), kind(info.Mode()))
	}
	if len(c.found) == MaxFiles {
		return fmt.Errorf("pack: more than %d files: exclude some", MaxFiles)
	}
	c.found = append(c.found, f)
	return nil
}

func (c *collector) unused() error {
	for i, f := range c.files {
		if !c.used[i] {
			return fmt.Errorf("pack.files: %s matches no file in %s (what is excluded, shared or an empty directory does not count): "+
				"build it first, or correct the pattern", quote(f.text), c.root.Name())
		}
	}
	return nil
}

// kind names a mode for people.
func kind(m fs.FileMode) string {
	switch {
	case m.IsRegular():
		return "regular file"
	case m.IsDir():
		return "directory"
	case m&fs.ModeSymlink != 0:
		return "symlink"
	case m&fs.ModeSocket != 0:
		return "socket"
	case m&fs.ModeNamedPipe != 0:
		return "named pipe"
	case m&fs.ModeDevice != 0:
		return "device"
	}
	return "special file"
}
