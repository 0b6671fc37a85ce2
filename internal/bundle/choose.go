package bundle

import (
	"path"

	"github.com/hotdeploy/hotdeploy/internal/release"
)

// maxCompared bounds how many pairs of names are compared for files that have no namesake.
const maxCompared = 1 << 20

// Lacks lists the files of m, by number, whose contents are nowhere in base, each content once. A nil base has none.
func Lacks(m, base *release.Manifest) (list []int) {
	has := map[string]bool{}
	if base != nil {
		for i := range base.Files {
			has[base.Files[i].SHA256] = true
		}
	}
	for i := range m.Files {
		if f := &m.Files[i]; f.Link == "" && f.Size > 0 && !has[f.SHA256] {
			has[f.SHA256] = true
			list = append(list, i)
		}
	}
	return list
}

// Choose makes the recipe for the lacking files of m. Each takes the base's file of the same path along, or one of those that are
// not in m any more, with the most similar path. A nil base gives a recipe without one.
func Choose(m *release.Manifest, lacks []int, base *release.Manifest, digest string) Recipe {
	r := Recipe{To: RangesOf(lacks)}
	if base == nil {
		return r
	}
	c := newChooser(m, base)
	var from []int
	for _, n := range lacks {
		if k, ok := c.source(&m.Files[n]); ok && !c.taken[base.Files[k].SHA256] {
			c.taken[base.Files[k].SHA256] = true
			from = append(from, k)
		}
	}
	if len(from) > 0 {
		r.Base, r.From = digest, RangesOf(from)
	}
	return r
}

type chooser struct {
	base     *release.Manifest
	byPath   map[string]int
	vanished []int // files of base that m does not have
	taken    map[string]bool
	compared int
}

func newChooser(m, base *release.Manifest) *chooser {
	c := &chooser{base: base, byPath: map[string]int{}, taken: map[string]bool{}}
	paths := map[string]bool{}
	for i := range m.Files {
		paths[m.Files[i].Path] = true
	}
	for i := range base.Files {
		if f := &base.Files[i]; f.Link == "" && f.Size > 0 {
			c.byPath[f.Path] = i
			if !paths[f.Path] {
				c.vanished = append(c.vanished, i)
			}
		}
	}
	return c
}

func (c *chooser) source(f *release.File) (int, bool) {
	if k, ok := c.byPath[f.Path]; ok {
		return k, true
	}
	best, at := len(path.Base(f.Path))/2, -1 // at least half of the name must be the same
	for _, k := range c.vanished {
		if c.compared++; c.compared > maxCompared {
			break
		}
		if n := alike(f.Path, c.base.Files[k].Path); n > best {
			best, at = n, k
		}
	}
	return at, at >= 0
}

// alike is how many bytes two paths' ends and the beginnings of their names have in common, if they are of one kind.
func alike(a, b string) int {
	if path.Ext(a) != path.Ext(b) {
		return 0
	}
	n := 0
	for n < min(len(a), len(b)) && a[len(a)-1-n] == b[len(b)-1-n] {
		n++
	}
	a, b = path.Base(a), path.Base(b)
	k := 0
	for k < min(len(a), len(b)) && a[k] == b[k] {
		k++
	}
	return n + k
}

// Nearest is the number of the base with the most bytes in common with m, in contents or by path; -1: none has any.
func Nearest(m *release.Manifest, bases []*release.Manifest) int {
	best, at := int64(0), -1
	for i, base := range bases {
		if base == nil {
			continue
		}
		if n := common(m, base); n > best {
			best, at = n, i
		}
	}
	return at
}

func common(m, base *release.Manifest) (n int64) {
	contents, paths := map[string]bool{}, map[string]int64{}
	for i := range base.Files {
		contents[base.Files[i].SHA256] = true
		paths[base.Files[i].Path] = base.Files[i].Size
	}
	for i := range m.Files {
		switch f := &m.Files[i]; {
		case contents[f.SHA256]:
			n += 2 * f.Size
		default:
			n += min(f.Size, paths[f.Path])
		}
	}
	return n
}
