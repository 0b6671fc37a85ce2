package config

import (
	"maps"
	"strings"
	"testing"
)

func TestMapLines(t *testing.T) {
	got := mapLines("\ufeff" + `# a comment = 1
a = 1
"b c".d = [ # [x]
  "one]", 'two', """three
  x = 1
"""",
  { e = '''
  y = "2" ''', f.g = 3 },
]
[h."i.j".k]
l = 1979-05-27 07:32:00 # m = 1
[[n.o]]
p = 1
[n.o.q]
r = { s = {}, t = [[1], [2,
3]] }
[[n.o]]
p = "\"#"
[n.o.q]
`)
	want := lines{
		"a": 2, `"b c"`: 3, `"b c".d`: 3, `"b c".d[0]`: 4, `"b c".d[1]`: 4, `"b c".d[2]`: 4,
		`"b c".d[3]`: 7, `"b c".d[3].e`: 7, `"b c".d[3].f`: 8, `"b c".d[3].f.g`: 8,
		"h": 10, `h."i.j"`: 10, `h."i.j".k`: 10, `h."i.j".k.l`: 11,
		"n": 12, "n.o": 12, "n.o[0]": 12, "n.o[0].p": 13, "n.o[0].q": 14, "n.o[0].q.r": 15,
		"n.o[0].q.r.s": 15, "n.o[0].q.r.t": 15, "n.o[0].q.r.t[0]": 15, "n.o[0].q.r.t[0][0]": 15,
		"n.o[0].q.r.t[1]": 15, "n.o[0].q.r.t[1][0]": 15, "n.o[0].q.r.t[1][1]": 16,
		"n.o[1]": 17, "n.o[1].p": 18, "n.o[1].q": 19,
	}
	if !maps.Equal(got, want) {
		for k := range want {
			if got[k] != want[k] {
				t.Errorf("%s: line %d, want %d", k, got[k], want[k])
			}
		}
		for k := range got {
			if want[k] == 0 {
				t.Errorf("%s: line %d is too much", k, got[k])
			}
		}
	}
}

func TestLinesOf_FallsBackToWhatTheKeyIsIn(t *testing.T) {
	l := lines{"listen[0]": 3, "listen[0].name": 4, "run": 7}
	for key, want := range map[string]int{
		"listen[0].name": 4, "listen[0].address": 3, "run.command[3]": 7, "ready.timeout": 0, "": 0,
	} {
		if got := l.of(key); got != want {
			t.Errorf("%q: line %d, want %d", key, got, want)
		}
	}
}

func TestMapLines_StopsAtWhatIsNoTOML(t *testing.T) {
	for _, s := range []string{"a", "a =", "[", "[[", "[[a]", "=", "a = [", "a = {b", "a = \"", "a = '''", "a = [}", `"\`, `"\q" = 1`, "a = \"\\"} {
		mapLines(s) // neither panics nor hangs
	}
}

func TestMapLines_DeepNestingCostsLittle(t *testing.T) {
	s := "a = " + strings.Repeat("[", 100_000) + strings.Repeat("]", 100_000)
	if n := len(mapLines(s)); n > 2*maxDepth {
		t.Errorf("%d places noted", n)
	}
}
