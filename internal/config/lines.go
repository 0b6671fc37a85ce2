package config

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// maxDepth is how deep lines are told; nothing that we read is nested as deep.
const maxDepth = 8

// lines says at which line of a TOML file a key is. Keys are written as in messages: listen[1].address.
type lines map[string]int

// of returns the key's line, or that of what it is in, or 0.
func (l lines) of(key string) int {
	for key != "" {
		if n := l[key]; n > 0 {
			return n
		}
		key = key[:max(strings.LastIndexByte(key, '.'), strings.LastIndexByte(key, '['), 0)]
	}
	return 0
}

// lineMapper reads TOML that the parser has found to be well-formed, only to see where its keys are, since the
// parser does not tell. On anything unexpected it stops; the lines that it has found are right.
type lineMapper struct {
	s        string
	pos      int
	newlines []int // offsets
	lines    lines
	arrays   map[string]int // arrays of tables: how many tables so far
}

func mapLines(s string) lines {
	s = strings.TrimPrefix(s, "\ufeff")
	m := lineMapper{s: s, lines: lines{}, arrays: map[string]int{}}
	for i := range len(s) {
		if s[i] == '\n' {
			m.newlines = append(m.newlines, i)
		}
	}
	table := place{}
	for ok := true; ok; {
		m.skip(" \t\r\n")
		switch {
		case m.pos == len(m.s):
			ok = false
		case m.s[m.pos] == '[':
			table, ok = m.header()
		default:
			ok = m.pair(table)
		}
	}
	return m.lines
}

// place is a position in the tree of keys. Beyond maxDepth it has no name.
type place struct {
	name  string
	depth int
}

func (p place) key(k string) place {
	if p.depth == 0 {
		return place{keyText(k), 1}
	}
	if p.depth >= maxDepth {
		return place{"", p.depth + 1}
	}
	return place{p.name + "." + keyText(k), p.depth + 1}
}

func (p place) index(i int) place {
	if p.depth >= maxDepth {
		return place{"", p.depth + 1}
	}
	return place{fmt.Sprintf("%s[%d]", p.name, i), p.depth + 1}
}

// keyText is a key as it is written in messages.
func keyText(k string) string {
	bare := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '_' || r == '-'
	}
	if k != "" && !strings.ContainsFunc(k, func(r rune) bool { return !bare(r) }) {
		return k
	}
	if len(k) > 60 {
		return strconv.Quote(k[:60]) + "..."
	}
	return strconv.Quote(k)
}

func (m *lineMapper) note(p place, at int) {
	if p.depth > maxDepth || m.lines[p.name] != 0 {
		return
	}
	n, _ := slices.BinarySearch(m.newlines, at)
	m.lines[p.name] = n + 1
}

// skip passes spaces, of the kinds given, and comments.
func (m *lineMapper) skip(spaces string) {
	for m.pos < len(m.s) {
		switch {
		case strings.IndexByte(spaces, m.s[m.pos]) >= 0:
			m.pos++
		case m.s[m.pos] == '#':
			m.to("\n")
		default:
			return
		}
	}
}

// to goes on to the first of the bytes in set.
func (m *lineMapper) to(set string) {
	if i := strings.IndexAny(m.s[m.pos:], set); i >= 0 {
		m.pos += i
	} else {
		m.pos = len(m.s)
	}
}

func (m *lineMapper) at(s string) bool { return strings.HasPrefix(m.s[m.pos:], s) }

// eat passes s if it is next.
func (m *lineMapper) eat(s string) bool {
	if !m.at(s) {
		return false
	}
	m.pos += len(s)
	return true
}

// header reads [a.b] or [[a.b]].
func (m *lineMapper) header() (place, bool) {
	start := m.pos
	array := m.eat("[[")
	if !array {
		m.pos++
	}
	keys, ok := m.keys()
	if !ok || !m.eat("]") {
		return place{}, false
	}
	p := m.enter(place{}, keys, start)
	if array {
		if !m.eat("]") {
			return place{}, false
		}
		i := m.arrays[p.name]
		m.arrays[p.name]++
		p = p.index(i)
		m.note(p, start)
	}
	return p, true
}

// enter goes down keys; an array of tables on the way, not at the end, means its last table.
func (m *lineMapper) enter(p place, keys []string, at int) place {
	for i, k := range keys {
		p = p.key(k)
		m.note(p, at)
		if n := m.arrays[p.name]; n > 0 && i < len(keys)-1 {
			p = p.index(n - 1)
		}
	}
	return p
}

// pair reads key = value.
func (m *lineMapper) pair(table place) bool {
	start := m.pos
	keys, ok := m.keys()
	if !ok || !m.eat("=") {
		return false
	}
	m.skip(" \t")
	return m.value(m.enter(table, keys, start))
}

// keys reads a dotted key and the spaces after it.
func (m *lineMapper) keys() ([]string, bool) {
	var keys []string
	for {
		m.skip(" \t")
		k, ok := m.key()
		if !ok {
			return nil, false
		}
		keys = append(keys, k)
		m.skip(" \t")
		if !m.eat(".") {
			return keys, true
		}
	}
}

func (m *lineMapper) key() (string, bool) {
	start := m.pos
	if m.at(`"`) || m.at(`'`) {
		quote := m.s[m.pos]
		m.str()
		raw := m.s[start:m.pos]
		if quote == '\'' || !strings.Contains(raw, `\`) {
			return strings.Trim(raw, string(quote)), len(raw) >= 2
		}
		k, err := strconv.Unquote(raw)
		return k, err == nil
	}
	m.to(" \t\r\n.=]#\"'")
	return m.s[start:m.pos], m.pos > start
}

// value passes a value and notes what has keys in it.
func (m *lineMapper) value(p place) bool {
	switch {
	case m.at(`"`), m.at(`'`):
		m.str()
		return true
	case m.at("["):
		return m.array(p)
	case m.at("{"):
		return m.inline(p)
	}
	m.to(",]}\n#")
	return true
}

func (m *lineMapper) array(p place) bool {
	m.pos++
	for i := 0; ; i++ {
		m.skip(" \t\r\n,")
		if m.eat("]") {
			return true
		}
		start := m.pos
		m.note(p.index(i), start)
		if !m.value(p.index(i)) || m.pos == start {
			return false
		}
	}
}

func (m *lineMapper) inline(p place) bool {
	m.pos++
	for {
		m.skip(" \t\r\n,")
		if m.eat("}") {
			return true
		}
		if !m.pair(p) {
			return false
		}
	}
}

// str passes a string of any of the four kinds.
func (m *lineMapper) str() {
	quote := m.s[m.pos : m.pos+1]
	escapes := quote == `"`
	end := quote
	if m.at(strings.Repeat(quote, 3)) {
		end = strings.Repeat(quote, 3)
	}
	m.pos += len(end)
	for m.pos < len(m.s) {
		switch {
		case escapes && m.s[m.pos] == '\\':
			m.pos = min(m.pos+2, len(m.s))
		case m.eat(end):
			if len(end) == 3 && m.eat(quote) { // """a""""" ends with one or two quotes of its own
				m.eat(quote)
			}
			return
		default:
			m.pos++
		}
	}
}
