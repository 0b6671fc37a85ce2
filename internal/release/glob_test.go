package release

import (
	"strings"
	"testing"
)

func TestPattern_Match(t *testing.T) {
	for _, c := range []struct {
		pattern, path string
		want          bool
	}{
		{"a", "a", true}, {"a", "b", false}, {"a", "a/b", false}, {"./a/", "a", true},
		{"*.py", "x.py", true}, {"*.py", "d/x.py", false}, {"*", ".env", true}, {"a*", "a", true},
		{"**", "a", true}, {"**", "a/b/c", true}, {".", "a/b", true},
		{"**/*.py", "x.py", true}, {"**/*.py", "a/b/x.py", true}, {"**/*.py", "a/b/x.pyc", false},
		{"a/**", "a", true}, {"a/**", "a/b/c", true}, {"a/**", "ab", false},
		{"a/**/z", "a/z", true}, {"a/**/z", "a/b/c/z", true}, {"a/**/z", "a/b/c", false},
		{"**/a/**/b/*", "x/a/y/a/b/c", true}, {"**/a/**/b/*", "x/a/y/a/b/c/d", false},
		{"**/**/a", "a", true}, {"a/*/c", "a/b/c", true}, {"a/*/c", "a/b/b/c", false},
		{"[ab]", "b", true}, {"[id].js", "[id].js", true}, {"p/[id]/x", "p/[id]/x", true}, {"?", "é", true},
	} {
		p, err := parsePattern(c.pattern)
		if err != nil {
			t.Fatal(err)
		}
		if got := p.match(c.path); got != c.want {
			t.Errorf("%s, %s: %v", c.pattern, c.path, got)
		}
		if i := strings.LastIndexByte(c.path, '/'); c.want && i > 0 && !p.below(c.path[:i]) && !p.match(c.path[:i]) {
			t.Errorf("%s matches %s, but the walk would not get there", c.pattern, c.path)
		}
	}
}

func TestPattern_BelowPrunesTheWalk(t *testing.T) {
	for _, c := range []struct {
		pattern, dir string
		want         bool
	}{
		{"bin/app", "node_modules", false}, {"bin/app", "bin", true}, {"bin/app", "bin/x", false},
		{"*/app", "bin", true}, {"**/x", "any/where", true}, {"a/**", "b", false}, {"a/**/x", "a/b/c", true}, {"a", "a", false},
	} {
		p, err := parsePattern(c.pattern)
		if err != nil {
			t.Fatal(err)
		}
		if got := p.below(c.dir); got != c.want {
			t.Errorf("%s below %s: %v", c.pattern, c.dir, got)
		}
	}
}

func TestCheckPattern(t *testing.T) {
	for pattern, want := range map[string]string{
		"": "is empty", "/etc": "is absolute", "..": `has ".."`, "../a": `has ".."`, "a/../../b": `has ".."`, "a/../b": `has ".."`,
		"[a": "is malformed", "a/[": "is malformed", `a\`: "is malformed", strings.Repeat("a", 2000): "longer than",
	} {
		if err := CheckPattern(pattern); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %s", pattern, err, want)
		}
	}
}

func TestPattern_ManyStarsAreQuick(t *testing.T) {
	p, err := parsePattern(strings.Repeat("**/a/", 30) + "b")
	if err != nil {
		t.Fatal(err)
	}
	if p.match(strings.Repeat("a/", 200) + "c") {
		t.Error("matched")
	}
}
